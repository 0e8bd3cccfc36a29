//! A command's output as it comes, over plain HTTP: one JSON document in a line for each piece.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use utoipa::ToSchema;
use wrenn_agent_api::{ProcessEvent, ProcessStream};

use super::exec::{Encoding, Exec, feed};
use crate::api::Error;
use crate::api::extract::{Json, Path};
use crate::app::App;
use crate::auth::Member;
use crate::sandboxes::{agent, agent_failed};

/// One line.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Line {
    Started {
        pid: u32,
    },
    Stdout {
        data: String,
    },
    Stderr {
        data: String,
    },
    /// What it exited with, or -1 and the signal that ended it. The last line.
    Exited {
        exit_code: i32,
        signal: Option<i32>,
    },
    /// Nothing more is known of it. The last line.
    Error {
        code: &'static str,
        message: String,
    },
}

/// Run a command and follow its output, line by line
///
/// The answer has one JSON document in each line, as things happen. A line's `data` is in the request's `encoding`, cut
/// anywhere: where characters are to stay whole, ask for `base64`. A command whose client leaves runs on until its
/// `timeout_seconds`.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/exec/stream", tag = "commands", params(("sandbox" = String, Path)),
    request_body = Exec, responses((status = OK, body = Line, content_type = "application/x-ndjson")))]
pub(super) async fn follow(
    State(app): State<App>,
    member: Member,
    Path(id): Path<String>,
    Json(asked): Json<Exec>,
) -> Result<Response, Error> {
    let encoding = asked.encoding;
    let (command, stdin) = asked.checked()?;
    let agent = agent(&app, member.team, &id).await?;
    let events = agent.start(command).await.map_err(|error| agent_failed(&app, &id, &error))?;
    let pid = events.pid();
    // Beside the output: a command may answer while it reads.
    app.tasks.spawn(async move { feed(&agent, pid, stdin).await });
    let lines = Lines { app, sandbox: id, events, encoding };
    let mut response = Response::new(Body::from_stream(stream::unfold(Some(lines), next)));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

struct Lines {
    app: App,
    sandbox: String,
    events: ProcessStream,
    encoding: Encoding,
}

/// The next line. Drawn only when the client has taken what came before: a slow client slows its command.
async fn next(lines: Option<Lines>) -> Option<(Result<Bytes, std::convert::Infallible>, Option<Lines>)> {
    let mut lines = lines?;
    let line = loop {
        let encoding = lines.encoding;
        break match lines.events.next().await {
            Ok(Some(ProcessEvent::Start { pid, .. })) => Line::Started { pid },
            Ok(Some(ProcessEvent::Stdout(piece))) => Line::Stdout { data: encoding.write(&piece) },
            Ok(Some(ProcessEvent::Stderr(piece))) => Line::Stderr { data: encoding.write(&piece) },
            Ok(Some(ProcessEvent::End { exit_code, signal, .. })) => Line::Exited { exit_code, signal },
            Ok(Some(_)) => continue,
            Ok(None) => return None,
            Err(error) => {
                let error = agent_failed(&lines.app, &lines.sandbox, &error);
                Line::Error { code: error.code.as_str(), message: error.message }
            }
        };
    };
    let mut text = serde_json::to_vec(&line).unwrap_or_default();
    text.push(b'\n');
    let more = (!matches!(line, Line::Exited { .. } | Line::Error { .. })).then_some(lines);
    Some((Ok(text.into()), more))
}

//! Commands and terminals, followed over a WebSocket.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use wrenn_agent_api::{AgentClient, ProcessEvent, ProcessStream, TerminalSize};

use super::exec::{Line, SignalName, described};
use crate::api::extract::Path;
use crate::api::{Code, Error};
use crate::app::App;
use crate::auth::Member;
use crate::sandboxes::{agent, agent_failed};

/// The subprotocol. A client that cannot set headers, as browsers, offers its token as another, `wrenn.token.TOKEN`, and
/// its team, where it means another than the first, as a third: `wrenn.team.ID`.
pub(crate) const PROTOCOL: &str = "wrenn";

/// The largest message that a client may send.
const MOST_MESSAGE: usize = 1 << 20;
/// How long a client may take to say what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How often a client is asked for a sign of life, and how long it may be without one.
const PING_EVERY: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(90);
/// How long a client may take to take a message.
const SEND_LIMIT: Duration = Duration::from_secs(60);
/// A day. Nothing is followed for longer.
const MOST_LIMIT: u32 = 86_400;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(stream))
}

/// The first message of a client: a command to be started, or one to be followed that runs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Start {
    /// A line for the shell, or a program with its arguments.
    command: Option<Line>,
    /// In place of a command: the process to follow. What it wrote while nobody followed it comes first, as far as it
    /// was kept.
    attach: Option<u32>,
    cwd: Option<String>,
    user: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Whether it reads what the client sends.
    #[serde(default)]
    stdin: bool,
    /// It gets a terminal of that size, and reads and writes there.
    terminal: Option<Size>,
    /// It is killed after so long; never where not set.
    timeout_seconds: Option<u32>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Size {
    #[schema(minimum = 1)]
    columns: u16,
    #[schema(minimum = 1)]
    rows: u16,
}

impl Size {
    fn checked(self) -> Result<TerminalSize, Error> {
        if self.columns == 0 || self.rows == 0 {
            return Err(Code::InvalidRequest.because("terminal: it has at least one column and one row"));
        }
        Ok(TerminalSize { columns: self.columns, rows: self.rows })
    }
}

/// Whatever else a client says in text.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Control {
    Signal(SignalName),
    Resize(Size),
    CloseStdin(bool),
}

/// What the server says in text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum Said<'a> {
    Started {
        pid: u32,
    },
    /// So many bytes of an output were not kept.
    Lost {
        bytes: u64,
    },
    Exited {
        exit_code: i32,
        signal: Option<i32>,
    },
    Error {
        code: &'static str,
        message: &'a str,
    },
}

/// The first byte of a binary message from the server.
#[derive(Debug, Clone, Copy)]
enum Output {
    Stdout = 1,
    Stderr = 2,
    Terminal = 3,
}

/// Run a command, with a terminal if wanted, and follow it over a WebSocket
///
/// The client's first message is text: what to run (`Start`). Then binary messages are its input; text messages are
/// `{"resize":{"columns":80,"rows":24}}`, `{"signal":"terminate"}` or `"kill"`, `{"close_stdin":true}`. The server's binary
/// messages are output: a first byte that is 1 for standard output, 2 for standard error and 3 for the terminal, then what was
/// written. Its text messages are `{"event":"started","pid":7}`, `{"event":"lost","bytes":9}`,
/// `{"event":"exited","exit_code":0,"signal":null}` and `{"event":"error","code":"…","message":"…"}`, of which the last two are the
/// end. A command whose client leaves runs on, and can be attached to. Browsers, which cannot set headers, offer their
/// token as a subprotocol, and perhaps their team: `wrenn, wrenn.token.TOKEN, wrenn.team.ID`.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/stream", tag = "commands", params(("sandbox" = String, Path)),
    responses((status = SWITCHING_PROTOCOLS, description = "The WebSocket")))]
async fn stream(
    State(app): State<App>,
    member: Member,
    Path(id): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Error> {
    let agent = agent(&app, member.team, &id).await?;
    let upgrade = upgrade.map_err(|error| Code::InvalidRequest.because(error.body_text()))?;
    let upgrade = upgrade.protocols([PROTOCOL]).max_message_size(MOST_MESSAGE).max_frame_size(MOST_MESSAGE);
    let owned = app.clone();
    let tasks = app.tasks.clone();
    // A task of the server's: one that shuts down waits for it, after telling it.
    Ok(upgrade.on_upgrade(move |socket| async move {
        let followed = tasks.spawn(async move { follow(&owned, &agent, &id, socket).await });
        let _ = followed.await;
    }))
}

/// Serves one WebSocket to its end.
async fn follow(app: &App, agent: &AgentClient, sandbox: &str, socket: WebSocket) {
    let (mut sink, mut client) = socket.split();
    let ended = tokio::select! {
        ended = converse(app, agent, sandbox, &mut sink, &mut client) => ended,
        () = app.stopping.cancelled() => Ended::Closed(close_code::AWAY, "the server stops"),
    };
    let (code, reason) = match ended {
        Ended::Gone => return,
        Ended::Closed(code, reason) => (code, reason),
        Ended::Failed(error) => {
            let said = Said::Error { code: error.code.as_str(), message: &error.message };
            if send(&mut sink, text(&said)).await.is_err() {
                return;
            }
            (close_code::ERROR, "see the error")
        }
    };
    let _ = send(&mut sink, Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
}

/// How a WebSocket came to its end.
enum Ended {
    /// The client is gone.
    Gone,
    Closed(u16, &'static str),
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Sink = SplitSink<WebSocket, Message>;

fn text(said: &Said<'_>) -> Message {
    Message::text(serde_json::to_string(said).unwrap_or_default())
}

async fn send(sink: &mut Sink, message: Message) -> Result<(), Ended> {
    match timeout(SEND_LIMIT, sink.send(message)).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Ended::Gone),
    }
}

async fn converse(
    app: &App,
    agent: &AgentClient,
    sandbox: &str,
    sink: &mut Sink,
    client: &mut SplitStream<WebSocket>,
) -> Ended {
    let begun = async {
        let start = first(client).await?;
        begin(agent, start).await.map_err(|error| {
            match error {
                Begun::Refused(error) => error,
                Begun::Failed(error) => agent_failed(app, sandbox, &error),
            }
            .into()
        })
    };
    let (mut events, terminal) = match begun.await {
        Ok(begun) => begun,
        Err(ended) => return ended,
    };
    let pid = events.pid();
    if let Err(ended) = send(sink, text(&Said::Started { pid })).await {
        return ended;
    }
    // Both ways at once: a command that waits for its output to be taken does not take input.
    let heard = Mutex::new(Instant::now());
    let output = async {
        let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Drawn only when the client has taken what came before: a slow client slows its command.
            let step = tokio::select! {
                event = events.next() => match event {
                    Ok(event) => tell(sink, event).await,
                    Err(error) => Err(agent_failed(app, sandbox, &error).into()),
                },
                _ = pings.tick() => {
                    let silent = heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
                    if silent > SILENCE { Err(Ended::Gone) } else { send(sink, Message::Ping(Bytes::new())).await }
                }
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    };
    let input = async {
        loop {
            let message = client.next().await;
            *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let step = match message {
                Some(Ok(message)) => hear(app, agent, sandbox, pid, terminal, message).await,
                _ => Err(Ended::Gone),
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    };
    tokio::select! {
        ended = output => ended,
        ended = input => ended,
    }
}

/// What the client wants, which it has to say soon.
async fn first(client: &mut SplitStream<WebSocket>) -> Result<Start, Ended> {
    let said = async {
        loop {
            match client.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Binary(_))) => {
                    return Err(Code::InvalidRequest
                        .because("the first message is text: what to run")
                        .into());
                }
                _ => return Err(Ended::Gone),
            }
        }
    };
    let said = timeout(FIRST_MESSAGE, said)
        .await
        .map_err(|_| Ended::Failed(Code::Timeout.because("nothing was said about what to run")))??;
    serde_json::from_str(&said).map_err(|error| {
        let code = if error.is_data() { Code::InvalidRequest } else { Code::MalformedJson };
        code.because(error.to_string()).into()
    })
}

enum Begun {
    Refused(Error),
    Failed(wrenn_agent_api::AgentError),
}

/// Starts the command or attaches to it; and whether what the client sends goes to a terminal.
async fn begin(agent: &AgentClient, start: Start) -> Result<(ProcessStream, bool), Begun> {
    let refused = |message: &str| Err(Begun::Refused(Code::InvalidRequest.because(message)));
    let line = match (start.command, start.attach) {
        (Some(line), None) => line,
        (None, Some(pid)) => {
            let events = agent.attach_with_missed(pid).await.map_err(Begun::Failed)?;
            let terminal = events.is_terminal();
            return Ok((events, terminal));
        }
        _ => return refused("either `command` or `attach`"),
    };
    let mut command =
        described(line, start.cwd, start.user, start.env).map_err(Begun::Refused)?.stdin(start.stdin);
    let size = start.terminal.map(Size::checked).transpose().map_err(Begun::Refused)?;
    if let Some(size) = size {
        command = command.terminal(size);
    }
    match start.timeout_seconds {
        Some(0) => return refused("timeout_seconds: at least 1"),
        Some(seconds) if seconds > MOST_LIMIT => return refused("timeout_seconds: at most a day"),
        Some(seconds) => command = command.timeout(Duration::from_secs(seconds.into())),
        None => {}
    }
    Ok((agent.start(command).await.map_err(Begun::Failed)?, size.is_some()))
}

/// Passes an event on to the client.
async fn tell(sink: &mut Sink, event: Option<ProcessEvent>) -> Result<(), Ended> {
    let output = |kind: Output, piece: &[u8]| {
        let mut message = BytesMut::with_capacity(piece.len() + 1);
        message.put_u8(kind as u8);
        message.put_slice(piece);
        Message::Binary(message.freeze())
    };
    let message = match event {
        Some(ProcessEvent::Stdout(piece)) => output(Output::Stdout, &piece),
        Some(ProcessEvent::Stderr(piece)) => output(Output::Stderr, &piece),
        Some(ProcessEvent::Terminal(piece)) => output(Output::Terminal, &piece),
        Some(ProcessEvent::Lost { bytes, .. }) => text(&Said::Lost { bytes }),
        Some(ProcessEvent::End { exit_code, signal, .. }) => {
            send(sink, text(&Said::Exited { exit_code, signal })).await?;
            return Err(Ended::Closed(close_code::NORMAL, "the command ended"));
        }
        Some(_) => return Ok(()),
        None => return Err(Ended::Closed(close_code::NORMAL, "the command ended")),
    };
    send(sink, message).await
}

/// Passes what the client said on to the command.
async fn hear(
    app: &App,
    agent: &AgentClient,
    sandbox: &str,
    pid: u32,
    terminal: bool,
    message: Message,
) -> Result<(), Ended> {
    let done = match message {
        Message::Binary(input) if terminal => agent.send_terminal_input(pid, input).await,
        Message::Binary(input) => agent.send_input(pid, input).await,
        Message::Text(text) => match serde_json::from_str::<Control>(&text) {
            Ok(Control::Signal(signal)) => agent.send_signal(pid, signal.signal()).await,
            Ok(Control::Resize(size)) => agent.resize(pid, size.checked()?).await,
            Ok(Control::CloseStdin(true)) => agent.close_stdin(pid).await,
            Ok(Control::CloseStdin(false)) => Ok(()),
            Err(error) => return Err(Code::InvalidRequest.because(error.to_string()).into()),
        },
        Message::Ping(_) | Message::Pong(_) => Ok(()),
        Message::Close(_) => return Err(Ended::Gone),
    };
    match done {
        // It ended just now, which the next event tells.
        Ok(()) | Err(wrenn_agent_api::AgentError::NotFound { .. }) => Ok(()),
        Err(error) => Err(agent_failed(app, sandbox, &error).into()),
    }
}

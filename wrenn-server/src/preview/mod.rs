//! Previews: what listens at a port of a sandbox, at a name of its own, `PORT-SANDBOX.DOMAIN`.
//!
//! Whoever knows the name reaches the port: a sandbox's id cannot be guessed. Requests, responses and upgraded connections
//! are passed through as they come, and count as use of the sandbox.

mod name;
mod proxy;

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use wrenn_agent_api::AGENT_PORT;

pub(crate) use self::name::Name;
pub(crate) use self::proxy::pass;
use crate::api::{Code, Error};
use crate::app::App;
use crate::auth::PeerAddress;
use crate::sandboxes::{self, State as SandboxState};
use crate::{db, e2b};

/// How long a guest may take until it begins to answer.
pub(crate) const HEAD_LIMIT: Duration = Duration::from_secs(300);

/// Passes requests for the names of previews to their sandboxes, and all others on.
pub(crate) async fn divert(State(app): State<App>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = request.uri().host().or(host);
    match host.and_then(|host| Name::parse(host, &app.config.domain)) {
        None => next.run(request).await,
        Some(name) => {
            metrics::counter!("wrenn_preview_requests_total").increment(1);
            serve(&app, &name, request).await.unwrap_or_else(IntoResponse::into_response)
        }
    }
}

async fn serve(app: &App, name: &Name, request: Request) -> Result<Response, Error> {
    // What clients of E2B may ask of an agent was diverted before.
    if name.port == AGENT_PORT {
        return Err(Code::Forbidden.because("this port is the sandbox's agent's"));
    }
    let none = || Code::NotFound.because("there is no such sandbox");
    let row = db::sandboxes::find_any(&app.db, name.sandbox.as_str()).await?;
    let row = row.filter(|row| !row.state().is_over()).ok_or_else(none)?;
    let row = match row.state() {
        SandboxState::Running => row,
        SandboxState::Missing => return Err(sandboxes::host_unavailable()),
        state => {
            let woken = e2b::wake(app, &row).await?;
            woken.ok_or_else(|| Code::WrongState.because(format!("the sandbox is {state}")))?
        }
    };
    let host = sandboxes::host_of(app, &row.host).await?;
    let tunnel = host.tunnel(&name.sandbox, name.port).await;
    let tunnel = tunnel.map_err(|error| sandboxes::host_failed(&error))?;
    let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0.ip());
    proxy::pass(app, tunnel, request, peer, HEAD_LIMIT).await
}

/// Whether a response hands its connection over to another protocol.
fn is_upgrade(response: &hyper::Response<hyper::body::Incoming>) -> bool {
    response.status() == StatusCode::SWITCHING_PROTOCOLS
}

//! Requests for what is in a sandbox: its agent first of all, whose routes clients call themselves.
//!
//! They name the sandbox by their host (`49983-SANDBOX.DOMAIN`), or by headers where one URL serves all sandboxes. A signed
//! URL of a file that has neither is for whichever sandbox's token it was signed with.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use wrenn_agent_api::{ACCESS_TOKEN_HEADER, AGENT_PORT, AccessToken};
use wrenn_base::SandboxId;

use super::control;
use super::error::Error;
use super::token::Signed;
use crate::api;
use crate::api::Code;
use crate::app::App;
use crate::auth::PeerAddress;
use crate::db::sandboxes::Sandbox;
use crate::preview::{HEAD_LIMIT, Name, pass};
use crate::sandboxes::State;
use crate::{db, sandboxes};

const SANDBOX_ID: HeaderName = HeaderName::from_static("e2b-sandbox-id");
const SANDBOX_PORT: HeaderName = HeaderName::from_static("e2b-sandbox-port");
const TOKEN: HeaderName = HeaderName::from_static(ACCESS_TOKEN_HEADER);

/// How many agents' tokens are kept; with more, all are forgotten and asked for again.
const MOST_TOKENS: usize = 4096;
/// A call that streams input is answered at its end, and clients may type for a while.
const CALL_LIMIT: Duration = Duration::from_secs(86_400);
/// How many ids are looked at in one step of a search.
const STEP: i64 = 500;

/// What the agents themselves want to be shown, by sandbox, each for one version of its row.
#[derive(Debug, Default)]
pub(super) struct AgentTokens(Mutex<HashMap<String, (i64, AccessToken)>>);

impl AgentTokens {
    async fn of(&self, app: &App, row: &Sandbox) -> Result<AccessToken, api::Error> {
        {
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((version, token)) = known.get(&row.id)
                && *version == row.version
            {
                return Ok(token.clone());
            }
        }
        let host = sandboxes::host_of(app, &row.host).await?;
        let record = host.get(&row.sandbox_id()?).await.map_err(|error| sandboxes::host_failed(&error))?;
        let token = record.token.ok_or_else(|| Code::WrongState.because("the sandbox does not run"))?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_TOKENS {
            known.clear();
        }
        known.insert(row.id.clone(), (row.version, token.clone()));
        Ok(token)
    }

    fn forget(&self, sandbox: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(sandbox);
    }
}

/// Whom a request is for.
enum Target {
    /// A port of a sandbox.
    Port(Name),
    /// The agent of the sandbox whose token signed the request's URL.
    Signer(Signed),
}

/// Passes requests for what is in sandboxes on to it, and all others to who comes next.
pub(crate) async fn divert(Shared(app): Shared<App>, request: Request, next: Next) -> Response {
    let target = match target(&app, &request) {
        Ok(Some(target)) => target,
        Ok(None) => return next.run(request).await,
        Err(refusal) => return refusal.into_response(),
    };
    metrics::counter!("wrenn_e2b_traffic_requests_total").increment(1);
    serve(&app, target, request).await.unwrap_or_else(IntoResponse::into_response)
}

fn target(app: &App, request: &Request) -> Result<Option<Target>, Refusal> {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let named = request.uri().host().or(host).and_then(|host| Name::parse(host, &app.config.domain));
    // Other ports are for previews, unless a client of E2B asks: it reads errors in another form.
    if let Some(name) = named {
        let ours = match name.port {
            AGENT_PORT => is_for_clients(request.uri().path()),
            _ => headers.contains_key(SANDBOX_ID),
        };
        return Ok(ours.then_some(Target::Port(name)));
    }
    if let Some(id) = headers.get(SANDBOX_ID) {
        let text = id.to_str().unwrap_or_default();
        let sandbox = text.parse().map_err(|_| Refusal::NotFound(text.to_owned()))?;
        let port =
            headers.get(SANDBOX_PORT).map_or(Some(AGENT_PORT), |port| port.to_str().ok()?.parse().ok());
        let port = port.filter(|port| *port != 0);
        let port = port.ok_or_else(|| Error::bad_request("E2b-Sandbox-Port: this is no port"))?;
        return Ok(Some(Target::Port(Name { port, sandbox })));
    }
    if request.uri().path() != "/files" || ![Method::GET, Method::POST].contains(request.method()) {
        return Ok(None);
    }
    Ok(Signed::of(request.method(), request.uri()).map(Target::Signer))
}

async fn serve(app: &App, target: Target, mut request: Request) -> Result<Response, Refusal> {
    let name = match target {
        Target::Port(name) => name,
        Target::Signer(signed) => Name { port: AGENT_PORT, sandbox: signer(app, &signed).await? },
    };
    let for_agent = name.port == AGENT_PORT;
    if for_agent {
        // Before anything of the sandbox is touched, and so that strangers do not keep it awake.
        admit(app, name.sandbox.as_str(), &request)?;
    }
    let row = running(app, &name.sandbox).await?;
    if for_agent {
        let token = app.e2b.agent_tokens.of(app, &row).await.map_err(|error| Refusal::of(error, &name))?;
        let mut token = HeaderValue::from_str(token.reveal())
            .map_err(|error| api::Error::internal("an agent's token is none", &error))?;
        token.set_sensitive(true);
        request.headers_mut().insert(TOKEN, token);
    }
    let host = sandboxes::host_of(app, &row.host).await?;
    let tunnel = host.tunnel(&name.sandbox, name.port).await;
    let tunnel = tunnel.map_err(|error| Refusal::of(sandboxes::host_failed(&error), &name))?;
    let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0.ip());
    let limit = if for_agent { CALL_LIMIT } else { HEAD_LIMIT };
    let response =
        pass(app, tunnel, request, peer, limit).await.map_err(|error| Refusal::of(error, &name))?;
    if for_agent && response.status() == StatusCode::UNAUTHORIZED {
        app.e2b.agent_tokens.forget(name.sandbox.as_str());
    }
    Ok(response)
}

/// Whether a path is of the agent's calls: `/package.Service/Method`.
fn is_rpc(path: &str) -> bool {
    ["/process.Process/", "/filesystem.Filesystem/"].iter().any(|service| path.starts_with(service))
}

/// Whether a path is one that clients ask agents for. What only hosts do is not: passed on with the agent's own token, anyone
/// could do it.
fn is_for_clients(path: &str) -> bool {
    ["/health", "/files", "/files/compose", "/metrics", "/envs"].contains(&path) || is_rpc(path)
}

/// Lets a request for an agent through that is for a route that clients have, and that shows a token or is signed.
fn admit(app: &App, sandbox: &str, request: &Request) -> Result<(), Refusal> {
    let path = request.uri().path();
    if path == "/health" {
        return Ok(());
    }
    if !is_for_clients(path) {
        return Err(Error::new(StatusCode::NOT_FOUND, "there is no such path").into());
    }
    if let Some(shown) = request.headers().get(TOKEN) {
        if app.e2b.tokens.accepts(sandbox, shown.as_bytes()) {
            return Ok(());
        }
    } else if path == "/files"
        && let Some(signed) = Signed::of(request.method(), request.uri())
    {
        return if !signed.is_by(&app.e2b.tokens.of(sandbox)) {
            Err(Refusal::unauthenticated(false, "invalid signature"))
        } else if signed.is_expired() {
            Err(Refusal::unauthenticated(false, "signature is already expired"))
        } else {
            Ok(())
        };
    }
    Err(Refusal::unauthenticated(is_rpc(path), "the access token is missing or wrong"))
}

/// The sandbox whose token a URL was signed with.
async fn signer(app: &App, signed: &Signed) -> Result<SandboxId, Refusal> {
    let invalid = || Refusal::unauthenticated(false, "invalid signature");
    let _turn = app.e2b.searches.acquire().await;
    let mut place = String::new();
    loop {
        let ids = db::e2b::ids_after(&app.db, &place, STEP).await?;
        let Some(last) = ids.last() else { return Err(invalid()) };
        place.clone_from(last);
        if let Some(found) = ids.iter().find(|id| signed.is_by(&app.e2b.tokens.of(id))) {
            return found.parse().map_err(|_| invalid());
        }
    }
}

/// A sandbox that runs, if need be because this request resumes it.
async fn running(app: &App, sandbox: &SandboxId) -> Result<Sandbox, Refusal> {
    let not_found = || Refusal::NotFound(sandbox.as_str().to_owned());
    let row = db::sandboxes::find_any(&app.db, sandbox.as_str()).await?.ok_or_else(not_found)?;
    match row.state() {
        State::Running => Ok(row),
        State::Paused | State::Pausing | State::Resuming => {
            control::wake(app, &row).await?.ok_or_else(not_found)
        }
        State::Missing => Err(sandboxes::host_unavailable().into()),
        _ => Err(not_found()),
    }
}

/// Why a request is not passed on.
#[derive(Debug)]
enum Refusal {
    /// The sandbox is not there, or does not run.
    NotFound(String),
    PortClosed(Name),
    /// Calls and plain routes have errors of their own forms.
    Unauthenticated {
        rpc: bool,
        message: &'static str,
    },
    Other(Error),
}

impl Refusal {
    fn unauthenticated(rpc: bool, message: &'static str) -> Self {
        Self::Unauthenticated { rpc, message }
    }

    /// What a client is told of a failure to reach a port.
    fn of(error: api::Error, name: &Name) -> Self {
        match error.code {
            Code::NotFound | Code::WrongState => Self::NotFound(name.sandbox.as_str().to_owned()),
            Code::PortClosed => Self::PortClosed(name.clone()),
            _ => Self::Other(error.into()),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<api::Error> for Refusal {
    fn from(error: api::Error) -> Self {
        Self::Other(error.into())
    }
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Other(error.into())
    }
}

/// What is said of a sandbox or a port that cannot be reached. Clients look for these very words.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Unreached<'a> {
    sandbox_id: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    code: u16,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (sandbox_id, message, port) = match &self {
            Self::NotFound(sandbox) => (sandbox.as_str(), "The sandbox was not found", None),
            Self::PortClosed(name) => {
                (name.sandbox.as_str(), "The sandbox is running but port is not open", Some(name.port))
            }
            Self::Unauthenticated { rpc: true, message } => {
                let body = serde_json::json!({ "code": "unauthenticated", "message": message });
                return (StatusCode::UNAUTHORIZED, Json(body)).into_response();
            }
            Self::Unauthenticated { rpc: false, message } => {
                return Error::new(StatusCode::UNAUTHORIZED, *message).into_response();
            }
            Self::Other(error) => return error.clone().into_response(),
        };
        (StatusCode::BAD_GATEWAY, Json(Unreached { sandbox_id, message, port, code: 502 })).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_of_the_two_services_are_calls() {
        assert!(is_rpc("/process.Process/Start") && is_rpc("/filesystem.Filesystem/Stat"));
        assert!(!is_rpc("/process.Process") && !is_rpc("/init") && !is_rpc("//process.Process/Start"));
    }
}

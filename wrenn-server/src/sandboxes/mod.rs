//! What is done with sandboxes: each change of state is entered first, then done by the host, then settled.
//!
//! Once it is entered, the work belongs to a task of its own, and goes on when whoever asked for it is gone. While it lasts
//! the task prolongs its lease on the rows; see [`State`].

mod create;
mod cursor;
mod guest;
mod operate;
mod place;
mod state;

use uuid::Uuid;
use wrenn_base::{SandboxId, TemplateName};
use wrenn_host::{HostClient, HostError, Reason, Timeout};

pub(crate) use self::create::{Idempotent, NewSandbox, branch, create};
pub(crate) use self::cursor::{cursor_after, read_cursor};
pub(crate) use self::guest::{Agents, agent, agent_failed};
pub(crate) use self::operate::{destroy, pause, resume, set_timeout, settled, snapshot};
pub(crate) use self::state::State;
use crate::api::{Code, Error};
use crate::app::App;
use crate::db;
use crate::db::sandboxes::Sandbox;

/// How long a lease holds that nobody prolongs, in seconds.
const LEASE: f64 = 30.0;

/// What a host calls a snapshot: names are a team's, and two teams may have the same.
pub(crate) fn template_name(snapshot: Uuid) -> TemplateName {
    format!("snapshot-{}", snapshot.simple()).parse().expect("letters, digits and a dash make a name")
}

/// A sandbox of the team that is not over.
pub(crate) async fn find(app: &App, team: Uuid, id: &str) -> Result<Sandbox, Error> {
    let none = || Code::NotFound.because("there is no such sandbox");
    // What cannot be an id is not asked for: it may be too long, or have characters that no text of the database has.
    id.parse::<SandboxId>().map_err(|_| none())?;
    let row = db::sandboxes::find(&app.db, team, id).await?;
    row.filter(|row| !row.state().is_over()).ok_or_else(none)
}

/// A sandbox of the team that runs.
pub(crate) async fn running(app: &App, team: Uuid, id: &str) -> Result<Sandbox, Error> {
    let row = find(app, team, id).await?;
    match row.state() {
        State::Running => Ok(row),
        state => Err(cannot(state, "it has to run for that")),
    }
}

/// A client of a sandbox's host.
pub(crate) async fn host_of(app: &App, host: &str) -> Result<HostClient, Error> {
    let row = db::hosts::find(&app.db, host).await?;
    let row = row.ok_or_else(|| Error::internal("a sandbox's host is unknown", &host))?;
    app.hosts.client(&row.name, &row.endpoint).map_err(|error| {
        tracing::warn!(host, %error, "there is no client of a host");
        host_unavailable()
    })
}

/// Why something cannot be done with a sandbox that is in such a state.
fn cannot(state: State, needs: &str) -> Error {
    if state == State::Missing {
        return host_unavailable();
    }
    if state.is_leased() {
        return Code::SandboxBusy.because(format!("the sandbox is {state}")).retry_after(1);
    }
    Code::WrongState.because(format!("the sandbox is {state}, and {needs}"))
}

pub(crate) fn host_unavailable() -> Error {
    Code::HostUnavailable.because("the sandbox's host does not answer; it comes back with it").retry_after(5)
}

/// What a client is told of a host's failure.
pub(crate) fn host_failed(error: &HostError) -> Error {
    if error.is_unreachable() {
        tracing::warn!(%error, cause = cause(error), "a host does not answer");
        return host_unavailable();
    }
    let message = error.to_string();
    match error.reason() {
        Some(Reason::InvalidArgument) => Code::InvalidRequest.because(message),
        Some(Reason::NoSuchSandbox) => Code::NotFound.because("there is no such sandbox"),
        Some(Reason::NoSuchTemplate | Reason::NoSuchImage) => {
            Code::NotFound.because("there is no such template")
        }
        Some(Reason::NotRunning) => Code::WrongState.because("the sandbox does not run"),
        Some(Reason::Busy) => {
            Code::SandboxBusy.because("something else is being done with the sandbox").retry_after(1)
        }
        Some(Reason::Draining | Reason::Exhausted) => {
            Code::NoCapacity.because("the host takes no more just now").retry_after(10)
        }
        Some(Reason::PortClosed) => Code::PortClosed.because("nobody in the sandbox listens at that port"),
        Some(Reason::GuestEnded) => Code::WrongState.because("the sandbox's guest ended by itself"),
        Some(Reason::TimedOut) => Code::HostFailed.because("it took longer than the host lets it take"),
        _ => {
            tracing::error!(%error, cause = cause(error), "a host failed");
            Code::HostFailed.because("the host failed; the server's log has the cause")
        }
    }
}

fn cause(error: &HostError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

/// A timeout as the database has it.
pub(crate) fn stored_timeout(timeout: &Timeout) -> (Option<i64>, &'static str) {
    let millis = timeout.after.map(|after| i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
    (millis, if timeout.then == wrenn_host::OnTimeout::Pause { "pause" } else { "destroy" })
}

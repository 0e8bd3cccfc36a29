//! Operations on one sandbox.

use std::future::Future;
use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_base::SandboxId;
use wrenn_host::{HostClient, HostError, Reason, SandboxRecord, SandboxState, Timeout};

use super::{LEASE, State, cannot, find, host_failed, host_of, running, stored_timeout, template_name};
use crate::api::{Code, Error};
use crate::app::App;
use crate::auth::Member;
use crate::db;
use crate::db::sandboxes::{Sandbox, Settled};
use crate::db::snapshots::Snapshot;
use crate::reconcile::REQUESTED;

/// How often a lease is prolonged.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How long a removal waits for what is being done with its sandbox.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a row is looked at while something is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often, and how many times, an end is entered again that the database did not take.
const RETRY: (Duration, u32) = (Duration::from_secs(1), 600);

/// Takes a sandbox from one of these states into a leased one, or says why not.
async fn begin(
    app: &App,
    team: Uuid,
    id: &str,
    from: &[State],
    into: State,
) -> Result<(Sandbox, State), Error> {
    let before = find(app, team, id).await?;
    if !from.contains(&before.state()) {
        return Err(cannot(before.state(), &format!("cannot be {into} from there")));
    }
    match db::sandboxes::begin(&app.db, team, id, from, into, LEASE).await? {
        Some(row) => Ok((row, before.state())),
        // Somebody was faster.
        None => Err(cannot(find(app, team, id).await?.state(), &format!("cannot be {into} from there"))),
    }
}

/// Prolongs leases for as long as it is polled.
pub(super) async fn hold(app: &App, held: &[(String, i64)]) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        for (id, version) in held {
            if let Err(error) = db::sandboxes::renew(&app.db, id, *version, LEASE).await {
                tracing::warn!(sandbox = id, %error, "a lease could not be prolonged");
            }
        }
    }
}

/// Does the work while the leases are held.
pub(super) async fn holding<T>(app: &App, held: &[(String, i64)], work: impl Future<Output = T>) -> T {
    tokio::select! {
        done = work => done,
        never = hold(app, held) => match never {},
    }
}

/// Runs work as a task of the server's, which goes on when nobody waits for it any more.
pub(super) async fn as_task<T: Send + 'static>(
    app: &App,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let span = tracing::Span::current();
    let done = app.tasks.spawn(tracing::Instrument::instrument(work, span)).await;
    done.unwrap_or_else(|error| Err(Error::internal("an operation's task failed", &error)))
}

/// Enters what a sandbox has become. A database that is away is waited for: the work is done, and only this task knows.
pub(super) async fn settle(
    app: &App,
    row: &Sandbox,
    state: State,
    settled: &Settled,
) -> Result<Sandbox, Error> {
    let (pause, most) = RETRY;
    for _ in 0..most {
        match db::sandboxes::settle(&app.db, &row.id, row.version, state, settled).await {
            Ok(Some(settled)) => return Ok(settled),
            // Somebody believed this task dead and asked the host.
            Ok(None) => break,
            Err(error) if db::is_unreachable(&error) => {
                tracing::warn!(sandbox = row.id, %error, "the outcome could not be entered yet");
                tokio::time::sleep(pause).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let row = db::sandboxes::find(&app.db, row.team_id, &row.id).await?;
    row.ok_or_else(|| Code::NotFound.because("there is no such sandbox"))
}

/// What a host's record says that the database is to say.
pub(super) fn recorded(record: &SandboxRecord) -> (State, Settled) {
    let state = if record.state == SandboxState::Running { State::Running } else { State::Paused };
    let settled = Settled {
        reason: None,
        vcpus: i32::try_from(record.vcpus).ok(),
        memory_mib: i32::try_from(record.memory.0).ok(),
        expires_at: record.expires.map(OffsetDateTime::from),
    };
    (state, settled)
}

/// Enters the end of an operation that takes a sandbox from a state to another.
async fn conclude(
    app: &App,
    row: &Sandbox,
    before: State,
    outcome: Result<SandboxRecord, HostError>,
) -> Result<Sandbox, Error> {
    let because = |text: &str| Settled {
        reason: Some(text.to_owned()),
        expires_at: row.expires_at,
        ..Settled::default()
    };
    let error = match outcome {
        Ok(record) => {
            let (state, settled) = recorded(&record);
            return settle(app, row, state, &settled).await;
        }
        Err(error) => error,
    };
    let told = host_failed(&error);
    let (state, settled) = match (&error, error.reason()) {
        (_, Some(Reason::NoSuchSandbox)) => (State::Destroyed, because("its host has it no longer")),
        (_, Some(Reason::GuestEnded)) => (State::Destroyed, because("its guest ended")),
        // The host saw nothing of it, or says that all is as it was.
        (HostError::Unreachable { .. }, _) | (_, Some(_)) => (before, because(&told.message)),
        // Whether it was done only the host knows.
        _ => (State::Missing, because("its host was lost in the middle of something")),
    };
    settle(app, row, state, &settled).await?;
    Err(told)
}

async fn record(app: &App, member: &Member, action: &str, id: &str) -> Result<(), Error> {
    let actor = member.actor.to_string();
    db::audit::record(&app.db, Some(member.team), &actor, action, id, &serde_json::json!({})).await?;
    Ok(())
}

/// Takes a running sandbox to disk.
pub(crate) async fn pause(app: &App, member: &Member, id: &str) -> Result<Sandbox, Error> {
    let (row, before) = begin(app, member.team, id, &[State::Running], State::Pausing).await?;
    record(app, member, "sandbox.pause", id).await?;
    change(app, row, before, |host, id| async move { host.pause(&id).await.map(|done| done.sandbox) }).await
}

/// Brings a paused sandbox back.
pub(crate) async fn resume(
    app: &App,
    member: &Member,
    id: &str,
    timeout: Option<Timeout>,
) -> Result<Sandbox, Error> {
    let (row, before) = begin(app, member.team, id, &[State::Paused], State::Resuming).await?;
    record(app, member, "sandbox.resume", id).await?;
    let done =
        change(app, row, before, move |host, id| async move { host.resume(&id, timeout).await }).await?;
    if let Some(timeout) = timeout {
        let (millis, then) = stored_timeout(&timeout);
        db::sandboxes::set_timeout(&app.db, id, millis, then, done.expires_at).await?;
        return find(app, member.team, id).await;
    }
    Ok(done)
}

/// Lets a host work on a row that is leased, and enters what came of it.
async fn change<W, F>(app: &App, row: Sandbox, before: State, work: W) -> Result<Sandbox, Error>
where
    W: FnOnce(HostClient, SandboxId) -> F + Send + 'static,
    F: Future<Output = Result<SandboxRecord, HostError>> + Send,
{
    let owned = app.clone();
    as_task(app, async move {
        let app = owned;
        let held = [(row.id.clone(), row.version)];
        let outcome = holding(&app, &held, async {
            let host = host_of(&app, &row.host).await?;
            Ok::<_, Error>(work(host, row.sandbox_id()?).await)
        });
        match outcome.await {
            Ok(outcome) => conclude(&app, &row, before, outcome).await,
            Err(error) => {
                // The host was not asked.
                let settled = Settled { expires_at: row.expires_at, ..Settled::default() };
                settle(&app, &row, before, &settled).await?;
                Err(error)
            }
        }
    })
    .await
}

/// Removes a sandbox. It is gone for its team even if its host does not answer: that removes it once it does.
pub(crate) async fn destroy(app: &App, member: &Member, id: &str) -> Result<(), Error> {
    let from = [State::Running, State::Paused, State::Missing];
    let begun = tokio::time::Instant::now();
    let (row, before) = loop {
        match begin(app, member.team, id, &from, State::Destroying).await {
            Ok(begun) => break begun,
            Err(error) if error.code == Code::SandboxBusy && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(error) => return Err(error),
        }
    };
    record(app, member, "sandbox.destroy", id).await?;
    let owned = app.clone();
    as_task(app, async move {
        let app = owned;
        let held = [(row.id.clone(), row.version)];
        let gone = holding(&app, &held, async {
            match host_of(&app, &row.host).await {
                Ok(host) => host.destroy(&row.sandbox_id()?).await.map_or_else(after_failure, Ok),
                Err(error) => {
                    tracing::warn!(sandbox = row.id, message = error.message, "removed without its host");
                    Ok(())
                }
            }
        });
        let (state, reason, told) = match gone.await {
            Ok(()) => (State::Destroyed, REQUESTED.to_owned(), Ok(())),
            Err(error) => (before, "it could not be removed".to_owned(), Err(error)),
        };
        settle(&app, &row, state, &Settled { reason: Some(reason), ..Settled::default() }).await?;
        told
    })
    .await
}

/// Whether a sandbox counts as removed though its host failed.
fn after_failure(error: HostError) -> Result<(), Error> {
    match error.reason() {
        // It left something on the host, which the host's own sweep takes away.
        Some(Reason::NoSuchSandbox | Reason::Cleanup) => Ok(()),
        Some(_) => Err(host_failed(&error)),
        // The reconciler removes it once the host answers.
        None if error.is_unreachable() => Ok(()),
        None => Err(host_failed(&error)),
    }
}

/// Sets how long a sandbox may be idle: from now on, or from its next resume.
pub(crate) async fn set_timeout(
    app: &App,
    member: &Member,
    id: &str,
    timeout: Timeout,
) -> Result<Sandbox, Error> {
    let row = find(app, member.team, id).await?;
    let (millis, then) = stored_timeout(&timeout);
    let expires_at = match row.state() {
        State::Running => {
            let host = host_of(app, &row.host).await?;
            let set =
                host.set_timeout(&row.sandbox_id()?, timeout).await.map_err(|error| host_failed(&error))?;
            set.expires.map(OffsetDateTime::from)
        }
        State::Paused => None,
        state => return Err(cannot(state, "it has to run or be paused for that")),
    };
    db::sandboxes::set_timeout(&app.db, id, millis, then, expires_at).await?;
    db::e2b::forget_end(&app.db, id).await?;
    find(app, member.team, id).await
}

/// Waits until nothing is being done with a sandbox; it as it is then, also if it is over.
pub(crate) async fn settled(app: &App, team: Uuid, id: &str) -> Result<Sandbox, Error> {
    loop {
        let row = db::sandboxes::find(&app.db, team, id).await?;
        let row = row.ok_or_else(|| Code::NotFound.because("there is no such sandbox"))?;
        if !row.state().is_leased() {
            return Ok(row);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Makes a template of a running sandbox, which runs on.
pub(crate) async fn snapshot(app: &App, member: &Member, id: &str, name: &str) -> Result<Snapshot, Error> {
    let source = running(app, member.team, id).await?;
    let snapshot = Uuid::now_v7();
    let row = db::snapshots::insert(&app.db, snapshot, &source, name, LEASE).await?;
    let row = row.ok_or_else(|| Code::Conflict.because("there is a snapshot of that name"))?;
    record(app, member, "snapshot.create", name).await?;
    let (owned, team) = (app.clone(), member.team);
    as_task(app, async move {
        let app = owned;
        let outcome = tokio::select! {
            outcome = async {
                let host = host_of(&app, &row.host).await?;
                let taken = host.snapshot(&source.sandbox_id()?, &template_name(row.id)).await;
                taken.map_err(|error| host_failed(&error))
            } => outcome,
            never = hold_snapshot(&app, row.id) => match never {},
        };
        match outcome {
            Ok(taken) => {
                let size = i64::try_from(taken.template.allocated.get()).ok();
                db::snapshots::set_state(&app.db, row.id, "creating", "ready", size).await?;
                let made = db::snapshots::find(&app.db, team, &row.name).await?;
                made.ok_or_else(|| Code::NotFound.because("the snapshot was removed meanwhile"))
            }
            Err(error) => {
                // Its name is free again. If the host has it after all, the reconciler removes it there.
                db::snapshots::set_state(&app.db, row.id, "creating", "failed", None).await?;
                Err(error)
            }
        }
    })
    .await
}

async fn hold_snapshot(app: &App, id: Uuid) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        if let Err(error) = db::snapshots::renew(&app.db, id, LEASE).await {
            tracing::warn!(snapshot = %id, %error, "a lease could not be prolonged");
        }
    }
}

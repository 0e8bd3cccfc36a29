//! When sandboxes end.
//!
//! A timeout of this server's counts idle time, on the sandbox's host. One of E2B's is an appointment: at its end the sandbox is
//! killed or paused, however busy it is. So both are set. The appointment is kept here, by whichever control plane comes
//! first; the host's timeout, which is as long and so never earlier, is for when none does. An appointment is about one
//! run of the sandbox: once its state was changed by anyone, the host's timeout alone holds, until another is made.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::MissedTickBehavior;
use wrenn_host::{OnTimeout, Timeout};

use super::error::Error;
use crate::app::App;
use crate::auth::{Actor, Member, Role};
use crate::db::e2b::{Due, Extra};
use crate::db::sandboxes::Sandbox;
use crate::{db, sandboxes};

/// How often it is looked for sandboxes whose time is over.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long to wait before one is tried again that could not be ended.
const RETRY: Duration = Duration::from_secs(10);

/// When a sandbox ends, and whether requests resume it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifecycle {
    pub(super) ends_at: OffsetDateTime,
    pub(super) auto_resume: bool,
}

impl Lifecycle {
    fn new(row: &Sandbox, extra: Option<&Extra>) -> Self {
        let appointed = extra.filter(|extra| extra.version == row.version).and_then(|extra| extra.ends_at);
        // One that other routes made may run for ever, which here has no word.
        let never = time::macros::datetime!(9999-12-31 23:59:59 UTC);
        let otherwise = || if row.state() == sandboxes::State::Running { never } else { row.changed_at };
        Self {
            ends_at: appointed.or(row.expires_at).unwrap_or_else(otherwise),
            auto_resume: extra.is_some_and(|extra| extra.auto_resume),
        }
    }
}

/// What is known of how sandboxes end, in their order.
pub(super) async fn lifecycles(app: &App, rows: &[Sandbox]) -> Result<Vec<Lifecycle>, Error> {
    let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
    let extras = db::e2b::of(&app.db, &ids).await?;
    let of = |row: &Sandbox| Lifecycle::new(row, extras.iter().find(|extra| extra.sandbox == row.id));
    Ok(rows.iter().map(of).collect())
}

pub(super) async fn lifecycle(app: &App, row: &Sandbox) -> Result<Lifecycle, Error> {
    let extras = db::e2b::of(&app.db, std::slice::from_ref(&row.id)).await?;
    Ok(Lifecycle::new(row, extras.first()))
}

/// What becomes of a sandbox at its end.
pub(super) fn then(row: &Sandbox) -> OnTimeout {
    if row.on_timeout == "pause" { OnTimeout::Pause } else { OnTimeout::Destroy }
}

/// Makes the appointment of a running sandbox that ends so long from now.
pub(super) async fn appoint(
    app: &App,
    row: &Sandbox,
    after: Duration,
    auto_resume: Option<bool>,
) -> Result<(), Error> {
    let ends_at = OffsetDateTime::now_utc() + after;
    db::e2b::set_end(&app.db, &row.id, row.version, ends_at, auto_resume).await?;
    Ok(())
}

/// Sets when a running sandbox ends, also for its host.
pub(super) async fn set(app: &App, member: &Member, row: &Sandbox, after: Duration) -> Result<(), Error> {
    if after.is_zero() {
        // No host takes a timeout of nothing.
        return Ok(end(app, member, &row.id, then(row)).await?);
    }
    let timeout = Timeout { after: Some(after), then: then(row) };
    let row = sandboxes::set_timeout(app, member, &row.id, timeout).await?;
    appoint(app, &row, after, None).await
}

async fn end(app: &App, member: &Member, id: &str, then: OnTimeout) -> Result<(), crate::api::Error> {
    match then {
        OnTimeout::Pause => sandboxes::pause(app, member, id).await.map(drop),
        OnTimeout::Destroy => sandboxes::destroy(app, member, id).await,
    }
}

/// The server itself, for what nobody asks for at the moment.
pub(super) fn system(team: uuid::Uuid) -> Member {
    Member { team, role: Role::Member, actor: Actor::System }
}

/// Ends sandboxes whose time is over, for as long as it is polled.
pub(crate) async fn keep_appointments(app: App) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match db::e2b::take_due(&app.db).await {
            Ok(due) => {
                for due in due {
                    let owned = app.clone();
                    app.tasks.spawn(async move { keep(&owned, due).await });
                }
            }
            Err(error) => tracing::warn!(%error, "sandboxes whose time is over could not be looked for"),
        }
    }
}

async fn keep(app: &App, due: Due) {
    let Due { sandbox, team_id, on_timeout } = due;
    let then = if on_timeout == "pause" { OnTimeout::Pause } else { OnTimeout::Destroy };
    tracing::info!(sandbox, on_timeout, "a sandbox's time is over");
    let Err(error) = end(app, &system(team_id), &sandbox, then).await else { return };
    tracing::warn!(sandbox, message = error.message, "a sandbox whose time is over could not be ended");
    // A pause that fails leaves it running.
    match sandboxes::running(app, team_id, &sandbox).await {
        Ok(row) => {
            if let Err(error) = appoint(app, &row, RETRY, None).await {
                tracing::warn!(sandbox, message = error.message, "its end is left to its host");
            }
        }
        Err(error) => tracing::debug!(sandbox, message = error.message, "it does not run any more"),
    }
}

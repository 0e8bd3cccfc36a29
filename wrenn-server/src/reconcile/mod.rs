//! Bringing the database and a host back together: what the host says about its sandboxes is what they are.
//!
//! Rows are read *before* the host is asked, and each change says which version of the row it is about. So a sandbox that
//! is not in the host's answer was not there after its row was read, and if somebody changed the row meanwhile nothing
//! happens to it. Any number of control planes may do this at the same time.
//!
//! A host that does not answer changes nothing here, and what nobody knows of is never removed.

mod ends;
mod verdict;

use std::collections::HashMap;

use time::OffsetDateTime;
use wrenn_base::SandboxId;
use wrenn_host::{HostClient, HostError, Reason, SandboxRecord, SandboxState};

pub(crate) use self::ends::Ends;
pub(crate) use self::verdict::REQUESTED;
use self::verdict::{Live, Verdict, judge};
use crate::app::App;
use crate::db;
use crate::db::sandboxes::{Sandbox, Settled};
use crate::sandboxes::State;

/// Why a comparison did not come to its end. What was done before stays done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("the host does not answer")]
    Host(#[from] HostError),
    #[error("the database cannot be used")]
    Database(#[from] sqlx::Error),
}

/// Compares everything that a host has with what the database says.
pub(crate) async fn host(app: &App, name: &str, client: &HostClient, ends: &Ends) -> Result<(), Failed> {
    let rows = db::sandboxes::of_host(&app.db, name).await?;
    let mut live: HashMap<String, SandboxRecord> =
        client.list().await?.into_iter().map(|record| (record.id.as_str().to_owned(), record)).collect();
    let (mut cleared, mut expiries) = (Vec::new(), (Vec::new(), Vec::new()));
    for row in &rows {
        let found = match live.remove(&row.id) {
            Some(record) => Found::Whole(record.into()),
            // What is damaged is not listed.
            None => look(client, &row.sandbox_id()?).await?,
        };
        if let Some(record) = found.record().filter(|record| record.state == SandboxState::Running) {
            expiries.0.push(row.id.clone());
            expiries.1.push(record.expires.map(OffsetDateTime::from));
        }
        if carry_out(app, client, row, &found, ends).await? == Verdict::Clear {
            cleared.push(row.id.clone());
        }
    }
    db::sandboxes::note_expiry(&app.db, &expiries.0, &expiries.1).await?;
    db::sandboxes::clear(&app.db, &cleared).await?;
    strangers(app, name, client, live, ends).await?;
    snapshots(app, name, client).await
}

/// Sandboxes that the host has and that were not among the rows: entered since, or believed gone, or not ours.
async fn strangers(
    app: &App,
    name: &str,
    client: &HostClient,
    live: HashMap<String, SandboxRecord>,
    ends: &Ends,
) -> Result<(), Failed> {
    let mut unknown = 0_u32;
    for (id, record) in live {
        match db::sandboxes::find_any(&app.db, &id).await? {
            Some(row) if row.host == name => {
                if row.state().is_over() {
                    carry_out(app, client, &row, &Found::Whole(record.into()), ends).await?;
                }
            }
            _ => unknown += 1,
        }
    }
    if unknown > 0 {
        tracing::info!(host = name, unknown, "the host has sandboxes that are not this control plane's");
    }
    metrics::gauge!("wrenn_host_unknown_sandboxes", "host" => name.to_owned()).set(unknown);
    Ok(())
}

/// Compares one sandbox, of which something was heard.
pub(crate) async fn one(
    app: &App,
    name: &str,
    client: &HostClient,
    id: &SandboxId,
    ends: &Ends,
) -> Result<(), Failed> {
    let row = db::sandboxes::find_any(&app.db, id.as_str()).await?;
    let Some(row) = row.filter(|row| row.host == name) else { return Ok(()) };
    let found = look(client, id).await?;
    carry_out(app, client, &row, &found, ends).await?;
    Ok(())
}

/// What a host has of a sandbox.
enum Found {
    Whole(Box<SandboxRecord>),
    /// It is there, and cannot be read: a paused one whose snapshot is damaged.
    Damaged,
    Nothing,
}

impl Found {
    fn record(&self) -> Option<&SandboxRecord> {
        match self {
            Self::Whole(record) => Some(record),
            _ => None,
        }
    }

    fn live(&self) -> Option<Live> {
        match self {
            Self::Whole(record) => Some(record.state.into()),
            Self::Damaged => Some(Live::Paused),
            Self::Nothing => None,
        }
    }
}

/// Asks a host for one sandbox.
async fn look(client: &HostClient, id: &SandboxId) -> Result<Found, HostError> {
    match client.get(id).await {
        Ok(record) => Ok(Found::Whole(record.into())),
        Err(error) => match error.reason() {
            Some(Reason::NoSuchSandbox) => Ok(Found::Nothing),
            Some(reason) => {
                tracing::warn!(sandbox = %id, ?reason, %error, "a sandbox cannot be read on its host");
                Ok(Found::Damaged)
            }
            None => Err(error),
        },
    }
}

/// Decides about one sandbox and does it.
async fn carry_out(
    app: &App,
    client: &HostClient,
    row: &Sandbox,
    found: &Found,
    ends: &Ends,
) -> Result<Verdict, Failed> {
    let record = found.record();
    let verdict = judge(row, found.live(), ends.of(&row.id));
    match &verdict {
        Verdict::Leave | Verdict::Clear => {}
        Verdict::Set(state, reason) => {
            let settled = Settled {
                reason: reason.clone(),
                vcpus: record.and_then(|record| i32::try_from(record.vcpus).ok()),
                memory_mib: record.and_then(|record| i32::try_from(record.memory.0).ok()),
                expires_at: record.and_then(|record| record.expires).map(OffsetDateTime::from),
            };
            let set = db::sandboxes::settle(&app.db, &row.id, row.version, *state, &settled).await?;
            if set.is_some() {
                tracing::info!(sandbox = row.id, from = row.state, to = %state, reason, "a sandbox is not what it was");
                let detail = serde_json::json!({ "from": row.state, "to": state, "reason": reason });
                db::audit::record(
                    &app.db,
                    Some(row.team_id),
                    "system",
                    "sandbox.reconcile",
                    &row.id,
                    &detail,
                )
                .await?;
            }
        }
        Verdict::Remove => remove(app, client, row).await?,
    }
    Ok(verdict)
}

/// Removes from its host what its team removed while the host did not answer, or was told never came to be.
async fn remove(app: &App, client: &HostClient, row: &Sandbox) -> Result<(), Failed> {
    match client.destroy(&row.sandbox_id()?).await {
        Ok(()) => {}
        Err(error) if matches!(error.reason(), Some(Reason::NoSuchSandbox | Reason::Cleanup)) => {}
        // It is tried again at the next comparison.
        Err(error) if error.reason().is_some() => {
            tracing::warn!(sandbox = row.id, %error, "a sandbox that is over could not be removed from its host");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    if !row.state().is_over() {
        let settled = Settled { reason: Some(REQUESTED.to_owned()), ..Settled::default() };
        db::sandboxes::settle(&app.db, &row.id, row.version, State::Destroyed, &settled).await?;
    }
    tracing::info!(sandbox = row.id, "removed a sandbox from its host that was over");
    Ok(())
}

/// Ends what a dead task left of snapshots: the host says whether one came to be.
async fn snapshots(app: &App, name: &str, client: &HostClient) -> Result<(), Failed> {
    let rows = db::snapshots::of_host(&app.db, name).await?;
    let now = OffsetDateTime::now_utc();
    let abandoned = |lease: Option<OffsetDateTime>| lease.is_none_or(|until| until < now);
    let open = rows.iter().filter(|row| row.state != "ready" && abandoned(row.lease_until));
    let open: Vec<_> = open.collect();
    if open.is_empty() {
        return Ok(());
    }
    let there = client.templates().await?;
    for row in open {
        let known = crate::sandboxes::template_name(row.id);
        let found = there.iter().find(|template| template.name == known);
        match (row.state.as_str(), found) {
            ("creating", Some(template)) => {
                let size = i64::try_from(template.allocated.get()).ok();
                db::snapshots::set_state(&app.db, row.id, "creating", "ready", size).await?;
            }
            // Its team was told that it failed, or that it is gone.
            (_, Some(_)) => match client.delete_template(&known).await {
                Ok(()) => db::snapshots::remove(&app.db, row.id).await?,
                Err(error) => tracing::warn!(snapshot = %row.id, %error, "a snapshot could not be removed"),
            },
            (_, None) => db::snapshots::remove(&app.db, row.id).await?,
        }
    }
    Ok(())
}

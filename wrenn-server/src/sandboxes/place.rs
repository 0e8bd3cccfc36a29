//! Where a sandbox is made: on the host that was chosen for it, or on the next where that cannot be reached.

use wrenn_host::{CreateSandbox, HostError, SandboxRecord, Source};

use super::operate::holding;
use super::{LEASE, host_of};
use crate::api::{Code, Error};
use crate::app::App;
use crate::db;
use crate::db::hosts::Need;
use crate::db::sandboxes::Sandbox;

/// What came of asking a host, or why none was asked.
pub(super) type Outcome = Result<Result<SandboxRecord, HostError>, Error>;

/// Lets a host make a sandbox that is entered for it; the row, which may have moved to another host, and what came of it.
///
/// A host that certainly heard nothing of the request is passed over. Where one may have heard of it, no other is asked:
/// the sandbox may be there, and there must not be two.
pub(super) async fn make(app: &App, mut row: Sandbox, asked: &CreateSandbox) -> (Sandbox, Outcome) {
    let mut tried = Vec::new();
    loop {
        let held = [(row.id.clone(), row.version)];
        let outcome = holding(app, &held, async {
            let host = host_of(app, &row.host).await?;
            Ok(host.create(asked.clone()).await)
        })
        .await;
        if !heard_nothing(&outcome) {
            return (row, outcome);
        }
        tracing::warn!(sandbox = row.id, host = row.host, "a new sandbox's host cannot be reached");
        tried.push(row.host.clone());
        match move_on(app, &row, asked, &tried).await {
            Ok(Some(moved)) => row = moved,
            Ok(None) => return (row, Err(none_answers())),
            Err(error) => return (row, Err(error.into())),
        }
    }
}

fn heard_nothing(outcome: &Outcome) -> bool {
    match outcome {
        Ok(Err(error)) => matches!(error, HostError::Unreachable { .. }),
        // There is no client of it here.
        Err(error) => error.code == Code::HostUnavailable,
        Ok(Ok(_)) => false,
    }
}

fn none_answers() -> Error {
    Code::HostUnavailable.because("no host that can make it can be reached just now").retry_after(5)
}

/// Moves a sandbox that no host has heard of to one that was not tried yet. `None` if there is no such host with room, or
/// somebody believed this task dead and ended the sandbox.
async fn move_on(
    app: &App,
    row: &Sandbox,
    asked: &CreateSandbox,
    tried: &[String],
) -> sqlx::Result<Option<Sandbox>> {
    // A snapshot lies on its host and nowhere else.
    let Source::Image(image) = &asked.source else { return Ok(None) };
    let mut transaction = app.db.begin().await?;
    let need = Need { image: image.as_str(), memory_mib: row.memory_mib.into(), except: tried };
    let Some(host) = db::hosts::choose(&mut transaction, need).await? else { return Ok(None) };
    let moved = db::sandboxes::place(&mut *transaction, &row.id, row.version, &host, LEASE).await?;
    let Some(moved) = moved else { return Ok(None) };
    let detail = serde_json::json!({ "from": row.host, "to": host });
    db::audit::record(&mut *transaction, Some(row.team_id), "system", "sandbox.move", &row.id, &detail)
        .await?;
    transaction.commit().await?;
    Ok(Some(moved))
}

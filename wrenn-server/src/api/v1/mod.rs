//! The API's first version.

mod accounts;
mod audit;
mod exec;
mod exec_lines;
mod files;
mod hosts;
mod keys;
mod sandbox_types;
mod sandboxes;
mod snapshots;
mod stream;
mod teams;

use utoipa_axum::router::OpenApiRouter;

pub(crate) use self::accounts::checked_account;
pub(crate) use self::sandbox_types::{check_env, check_metadata};
pub(crate) use self::sandboxes::idempotent;
pub(crate) use self::snapshots::remove_named as remove_snapshot;
use super::{Code, Error};
use crate::app::App;
use crate::auth::Member;
use crate::db;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(accounts::routes())
        .merge(teams::routes())
        .merge(keys::routes())
        .merge(audit::routes())
        .merge(sandboxes::routes())
        .merge(exec::routes())
        .merge(stream::routes())
        .merge(files::routes())
        .merge(snapshots::routes())
        .merge(hosts::routes())
}

/// Writes into the audit log what a member of a team did.
async fn record(
    app: &App,
    member: &Member,
    action: &str,
    subject: &str,
    detail: serde_json::Value,
) -> Result<(), Error> {
    db::audit::record(&app.db, Some(member.team), &member.actor.to_string(), action, subject, &detail)
        .await?;
    Ok(())
}

/// How many things a page has.
fn page_size(asked: Option<i64>) -> Result<i64, Error> {
    match asked.unwrap_or(50) {
        limit @ 1..=100 => Ok(limit),
        _ => Err(Code::InvalidRequest.because("limit: from 1 to 100")),
    }
}

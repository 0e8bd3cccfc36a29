//! Snapshots: templates with a name, made of running sandboxes.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use wrenn_host::Reason;

use crate::api::extract::{Json, Path, Query};
use crate::api::{Code, Error};
use crate::app::App;
use crate::auth::Member;
use crate::{db, sandboxes};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, remove))
}

/// A template that the team made. Its name does for `template` where sandboxes are made.
#[derive(Debug, Serialize, ToSchema)]
struct Snapshot {
    name: String,
    /// `creating`, `ready` or `deleting`.
    state: String,
    /// The sandbox that it was made of, which may be gone.
    sandbox: String,
    vcpus: i32,
    memory_mib: i32,
    /// What it takes of its host's disk.
    size_bytes: i64,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<db::snapshots::Snapshot> for Snapshot {
    fn from(row: db::snapshots::Snapshot) -> Self {
        let db::snapshots::Snapshot {
            name, state, sandbox, vcpus, memory_mib, size_bytes, created_at, ..
        } = row;
        Self { name, state, sandbox, vcpus, memory_mib, size_bytes, created_at }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct SnapshotList {
    snapshots: Vec<Snapshot>,
    /// For the next page's `cursor`; null: there is none.
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewSnapshot {
    /// A running sandbox. It runs on.
    sandbox: String,
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    name: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Page {
    /// Where the last page ended.
    #[param(pattern = "^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")]
    cursor: Option<String>,
    /// At most so many.
    #[param(minimum = 1, maximum = 100, default = 50)]
    limit: Option<i64>,
}

fn checked(name: &str) -> Option<&str> {
    name.parse::<wrenn_base::TemplateName>().is_ok().then_some(name)
}

/// The team's snapshots, by name
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", params(Page),
    responses((status = OK, body = SnapshotList)))]
async fn list(
    State(app): State<App>,
    member: Member,
    Query(page): Query<Page>,
) -> Result<Reply<SnapshotList>, Error> {
    let limit = super::page_size(page.limit)?;
    let after = page.cursor.unwrap_or_default();
    if !after.is_empty() && checked(&after).is_none() {
        return Err(Code::InvalidRequest.because("cursor: this is none"));
    }
    let mut rows = db::snapshots::of_team(&app.db, member.team, &after, limit + 1).await?;
    let more = i64::try_from(rows.len()).unwrap_or(i64::MAX) > limit;
    if more {
        rows.pop();
    }
    let next_cursor = rows.last().filter(|_| more).map(|row| row.name.clone());
    Ok(Reply(SnapshotList { snapshots: rows.into_iter().map(Snapshot::from).collect(), next_cursor }))
}

/// Make a snapshot of a running sandbox, which runs on
///
/// A name stands for one snapshot at a time, so the same request sent twice makes one: the second is answered with
/// `conflict`.
#[utoipa::path(post, path = "/v1/snapshots", tag = "snapshots", request_body = NewSnapshot,
    responses((status = CREATED, body = Snapshot)))]
async fn create(
    State(app): State<App>,
    member: Member,
    Json(new): Json<NewSnapshot>,
) -> Result<(StatusCode, Reply<Snapshot>), Error> {
    if checked(&new.name).is_none() {
        return Err(Code::InvalidRequest.because(
            "name: 1 to 64 letters, digits, dots, dashes and underscores, of which it begins with a letter or digit, \
             without `..`",
        ));
    }
    let made = sandboxes::snapshot(&app, &member, &new.sandbox, &new.name).await?;
    Ok((StatusCode::CREATED, Reply(made.into())))
}

async fn find(app: &App, member: &Member, name: &str) -> Result<db::snapshots::Snapshot, Error> {
    let none = || Code::NotFound.because("there is no such snapshot");
    let name = checked(name).ok_or_else(none)?;
    db::snapshots::find(&app.db, member.team, name).await?.ok_or_else(none)
}

/// One snapshot
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}", tag = "snapshots", params(("snapshot" = String, Path)),
    responses((status = OK, body = Snapshot)))]
async fn get(
    State(app): State<App>,
    member: Member,
    Path(name): Path<String>,
) -> Result<Reply<Snapshot>, Error> {
    Ok(Reply(find(&app, &member, &name).await?.into()))
}

/// Remove a snapshot
///
/// Sandboxes that were made of it stay whole.
#[utoipa::path(delete, path = "/v1/snapshots/{snapshot}", tag = "snapshots", params(("snapshot" = String, Path)),
    responses((status = NO_CONTENT)))]
async fn remove(
    State(app): State<App>,
    member: Member,
    Path(name): Path<String>,
) -> Result<StatusCode, Error> {
    remove_named(&app, &member, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a snapshot of the caller's team.
pub(crate) async fn remove_named(app: &App, member: &Member, name: &str) -> Result<(), Error> {
    let row = find(app, member, name).await?;
    if !db::snapshots::set_state(&app.db, row.id, "ready", "deleting", None).await? {
        return Err(Code::SandboxBusy.because("something is being done with the snapshot").retry_after(1));
    }
    super::record(app, member, "snapshot.delete", name, serde_json::json!({})).await?;
    let host = sandboxes::host_of(app, &row.host).await?;
    match host.delete_template(&sandboxes::template_name(row.id)).await {
        Ok(()) => {}
        Err(error) if error.reason() == Some(Reason::NoSuchTemplate) => {}
        Err(error) if error.reason() == Some(Reason::Busy) => {
            db::snapshots::set_state(&app.db, row.id, "deleting", "ready", None).await?;
            return Err(Code::SandboxBusy.because("sandboxes are being made of it").retry_after(1));
        }
        // The reconciler removes it once the host answers.
        Err(error) if error.is_unreachable() => return Ok(()),
        Err(error) => {
            db::snapshots::set_state(&app.db, row.id, "deleting", "ready", None).await?;
            return Err(sandboxes::host_failed(&error));
        }
    }
    db::snapshots::remove(&app.db, row.id).await?;
    Ok(())
}

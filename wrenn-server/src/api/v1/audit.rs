//! What was done in a team.

use axum::Json as Reply;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::api::Error;
use crate::api::extract::Query;
use crate::app::App;
use crate::auth::{Member, Role};
use crate::db;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Page {
    /// Entries before the one with this id.
    before: Option<i64>,
    /// At most so many.
    #[param(minimum = 1, maximum = 100, default = 50)]
    limit: Option<i64>,
}

#[derive(Serialize, ToSchema)]
struct AuditEntry {
    id: i64,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    #[schema(example = "user:01926f3e-7a0b-7c1d-8e2f-3a4b5c6d7e8f")]
    actor: String,
    #[schema(example = "key.create")]
    action: String,
    subject: String,
    detail: serde_json::Value,
}

#[derive(Serialize, ToSchema)]
struct AuditList {
    entries: Vec<AuditEntry>,
}

/// What was done in the team, the latest first
#[utoipa::path(get, path = "/v1/audit", tag = "teams", params(Page), responses((status = OK, body = AuditList)))]
async fn list(
    State(app): State<App>,
    member: Member,
    Query(page): Query<Page>,
) -> Result<Reply<AuditList>, Error> {
    member.needs(Role::Admin)?;
    let limit = super::page_size(page.limit)?;
    let entries = db::audit::of_team(&app.db, member.team, page.before.unwrap_or(i64::MAX), limit).await?;
    let entries = entries.into_iter().map(|entry| {
        let db::audit::Entry { id, at, actor, action, subject, detail } = entry;
        AuditEntry { id, at, actor, action, subject, detail }
    });
    Ok(Reply(AuditList { entries: entries.collect() }))
}

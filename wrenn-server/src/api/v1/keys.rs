//! API keys of a team.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::api::extract::{Json, Path};
use crate::api::{Code, Error};
use crate::app::App;
use crate::auth::{Member, Role, SecretText};
use crate::db;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(revoke))
}

#[derive(Serialize, ToSchema)]
struct ApiKey {
    id: Uuid,
    name: String,
    /// The first characters of the key.
    #[schema(example = "wrn_4fQ2aZ")]
    prefix: String,
    /// The user who made it, while there is that user.
    created_by: Option<Uuid>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// To the minute.
    #[serde(with = "time::serde::rfc3339::option")]
    last_used_at: Option<OffsetDateTime>,
    /// The key itself. Shown here and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl ApiKey {
    fn with_key(stored: db::keys::Key, key: Option<String>) -> Self {
        let db::keys::Key { id, name, prefix, created_by, created_at, last_used_at } = stored;
        Self { id, name, prefix, created_by, created_at, last_used_at, key }
    }
}

#[derive(Serialize, ToSchema)]
struct ApiKeyList {
    keys: Vec<ApiKey>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewApiKey {
    #[schema(
        min_length = 1,
        max_length = 100,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    name: String,
}

/// The team's API keys
#[utoipa::path(get, path = "/v1/keys", tag = "keys", responses((status = OK, body = ApiKeyList)))]
async fn list(State(app): State<App>, member: Member) -> Result<Reply<ApiKeyList>, Error> {
    let keys = db::keys::of_team(&app.db, member.team).await?;
    Ok(Reply(ApiKeyList { keys: keys.into_iter().map(|key| ApiKey::with_key(key, None)).collect() }))
}

/// Make an API key, which is shown this once
#[utoipa::path(post, path = "/v1/keys", tag = "keys", request_body = NewApiKey,
    responses((status = CREATED, body = ApiKey)))]
async fn create(
    State(app): State<App>,
    member: Member,
    Json(new): Json<NewApiKey>,
) -> Result<(StatusCode, Reply<ApiKey>), Error> {
    member.needs(Role::Admin)?;
    let user = member.user().ok_or_else(|| Code::Forbidden.because("keys are made by users"))?;
    let name = super::teams::checked_name(&new.name)?;
    let key = SecretText::random("wrn_");
    let made = db::keys::create(&app.db, member.team, &name, &key.prefix, &key.hash, user).await?;
    let detail = serde_json::json!({ "name": name, "prefix": key.prefix });
    super::record(&app, &member, "key.create", &made.id.to_string(), detail).await?;
    Ok((StatusCode::CREATED, Reply(ApiKey::with_key(made, Some(key.text)))))
}

/// Revoke an API key
#[utoipa::path(delete, path = "/v1/keys/{key}", tag = "keys", params(("key" = Uuid, Path)),
    responses((status = NO_CONTENT)))]
async fn revoke(State(app): State<App>, member: Member, Path(key): Path<Uuid>) -> Result<StatusCode, Error> {
    member.needs(Role::Admin)?;
    if !db::keys::revoke(&app.db, member.team, key).await? {
        return Err(Code::NotFound.because("there is no such key"));
    }
    super::record(&app, &member, "key.revoke", &key.to_string(), serde_json::json!({})).await?;
    Ok(StatusCode::NO_CONTENT)
}

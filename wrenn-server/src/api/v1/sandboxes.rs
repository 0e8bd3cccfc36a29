//! Sandboxes: their lives.

use axum::Json as Reply;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use time::OffsetDateTime;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::sandbox_types::{
    Branches, Metrics, NewBranches, NewSandbox, NewTimeout, Resume, Sandbox, SandboxList, check_metadata,
};
use crate::api::extract::{Json, OptionalJson, Path, Query};
use crate::api::{Code, Error};
use crate::app::App;
use crate::auth::Member;
use crate::db;
use crate::sandboxes::{self, Idempotent, State, cursor_after, read_cursor};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, destroy))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(branch))
        .routes(routes!(set_timeout))
        .routes(routes!(metrics))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// States, separated by commas. Without it, all but `destroyed` and `failed`.
    #[param(example = "running,paused")]
    state: Option<String>,
    /// Metadata that they have, as a JSON object of strings.
    #[param(example = "{\"user\":\"ada\"}")]
    metadata: Option<String>,
    /// Where the last page ended.
    #[param(pattern = "^[0-9]{1,16}_[a-z0-9]{16}$")]
    cursor: Option<String>,
    /// At most so many.
    #[param(minimum = 1, maximum = 100, default = 50)]
    limit: Option<i64>,
}

impl Filter {
    fn states(&self) -> Result<Vec<String>, Error> {
        let all = State::ALL.iter().map(|state| state.as_str());
        let Some(asked) = &self.state else {
            let alive = State::ALL.iter().filter(|state| !state.is_over());
            return Ok(alive.map(|state| state.as_str().to_owned()).collect());
        };
        let asked: Vec<String> = asked.split(',').map(|state| state.trim().to_owned()).collect();
        match asked.iter().find(|state| !all.clone().any(|known| known == *state)) {
            Some(_) => {
                let all: Vec<_> = all.collect();
                Err(Code::InvalidRequest.because(format!("state: of {}", all.join(", "))))
            }
            None => Ok(asked),
        }
    }

    fn metadata(&self) -> Result<serde_json::Value, Error> {
        let Some(text) = &self.metadata else { return Ok(serde_json::json!({})) };
        let parsed = serde_json::from_str::<std::collections::BTreeMap<String, String>>(text);
        let parsed =
            parsed.map_err(|_| Code::InvalidRequest.because("metadata: a JSON object of strings"))?;
        check_metadata(&parsed)?;
        Ok(serde_json::json!(parsed))
    }

    /// The place in the order that a cursor stands for: a time and an id.
    fn after(&self) -> Result<Option<(OffsetDateTime, String)>, Error> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        read_cursor(cursor).map(Some).ok_or_else(|| Code::InvalidRequest.because("cursor: this is none"))
    }
}

/// The team's sandboxes, the newest first
#[utoipa::path(get, path = "/v1/sandboxes", tag = "sandboxes", params(Filter),
    responses((status = OK, body = SandboxList)))]
async fn list(
    Shared(app): Shared<App>,
    member: Member,
    Query(filter): Query<Filter>,
) -> Result<Reply<SandboxList>, Error> {
    let limit = super::page_size(filter.limit)?;
    let metadata = filter.metadata()?;
    let narrowed = db::sandboxes::Filter {
        states: filter.states()?,
        metadata: &metadata,
        after: filter.after()?,
        // One more than asked for says whether there is another page.
        limit: limit + 1,
    };
    let mut rows = db::sandboxes::list(&app.db, member.team, narrowed).await?;
    let more = i64::try_from(rows.len()).unwrap_or(i64::MAX) > limit;
    if more {
        rows.pop();
    }
    let next_cursor = rows.last().filter(|_| more).map(cursor_after);
    let sandboxes = rows.into_iter().map(|row| Sandbox::new(&app, row)).collect();
    Ok(Reply(SandboxList { sandboxes, next_cursor }))
}

/// The client's `Idempotency-Key`, if it sent one.
pub(crate) fn idempotent(
    headers: &HeaderMap,
    kind: &str,
    request: &impl std::fmt::Debug,
) -> Result<Option<Idempotent>, Error> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| (1..=255).contains(&key.len()));
    let key = key
        .ok_or_else(|| Code::InvalidRequest.because("Idempotency-Key: 1 to 255 visible ASCII characters"))?;
    Ok(Some(Idempotent::new(key.to_owned(), kind, request)))
}

/// Make a sandbox
///
/// Answers once its guest runs. With an `Idempotency-Key` the same request makes one sandbox, however often it is sent
/// within a day.
#[utoipa::path(post, path = "/v1/sandboxes", tag = "sandboxes", request_body = NewSandbox,
    params(("Idempotency-Key" = Option<String>, Header, pattern = "^[!-~]{1,255}$")),
    responses((status = CREATED, body = Sandbox)))]
async fn create(
    Shared(app): Shared<App>,
    member: Member,
    headers: HeaderMap,
    Json(new): Json<NewSandbox>,
) -> Result<(StatusCode, Reply<Sandbox>), Error> {
    let new = new.checked()?;
    let idempotent = idempotent(&headers, "create", &new)?;
    let made = sandboxes::create(&app, &member, new, idempotent).await?;
    Ok((StatusCode::CREATED, Reply(Sandbox::new(&app, made))))
}

/// One sandbox
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}", tag = "sandboxes", params(("sandbox" = String, Path)),
    responses((status = OK, body = Sandbox)))]
async fn get(
    Shared(app): Shared<App>,
    member: Member,
    Path(id): Path<String>,
) -> Result<Reply<Sandbox>, Error> {
    let row = sandboxes::find(&app, member.team, &id).await?;
    Ok(Reply(Sandbox::new(&app, row)))
}

/// Remove a sandbox, running or paused, with all that is kept of it
#[utoipa::path(delete, path = "/v1/sandboxes/{sandbox}", tag = "sandboxes", params(("sandbox" = String, Path)),
    responses((status = NO_CONTENT)))]
async fn destroy(
    Shared(app): Shared<App>,
    member: Member,
    Path(id): Path<String>,
) -> Result<StatusCode, Error> {
    sandboxes::destroy(&app, &member, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Take a running sandbox to disk
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/pause", tag = "sandboxes", params(("sandbox" = String, Path)),
    responses((status = OK, body = Sandbox)))]
async fn pause(
    Shared(app): Shared<App>,
    member: Member,
    Path(id): Path<String>,
) -> Result<Reply<Sandbox>, Error> {
    let row = sandboxes::pause(&app, &member, &id).await?;
    Ok(Reply(Sandbox::new(&app, row)))
}

/// Bring a paused sandbox back
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/resume", tag = "sandboxes", params(("sandbox" = String, Path)),
    request_body = Option<Resume>, responses((status = OK, body = Sandbox)))]
async fn resume(
    Shared(app): Shared<App>,
    member: Member,
    Path(id): Path<String>,
    OptionalJson(asked): OptionalJson<Resume>,
) -> Result<Reply<Sandbox>, Error> {
    let timeout = asked.timeout()?;
    let row = sandboxes::resume(&app, &member, &id, timeout).await?;
    Ok(Reply(Sandbox::new(&app, row)))
}

/// Make sandboxes that go on where a running one is, which runs on itself
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/branch", tag = "sandboxes",
    params(("sandbox" = String, Path), ("Idempotency-Key" = Option<String>, Header, pattern = "^[!-~]{1,255}$")),
    request_body = Option<NewBranches>, responses((status = CREATED, body = Branches)))]
async fn branch(
    Shared(app): Shared<App>,
    member: Member,
    Path(id): Path<String>,
    headers: HeaderMap,
    OptionalJson(asked): OptionalJson<NewBranches>,
) -> Result<(StatusCode, Reply<Branches>), Error> {
    if !(1..=64).contains(&asked.count) {
        return Err(Code::InvalidRequest.because("count: from 1 to 64"));
    }
    check_metadata(&asked.metadata)?;
    let timeout = asked.timeout()?;
    let idempotent = idempotent(&headers, "branch", &(&id, asked.count, &asked.metadata, timeout))?;
    let made =
        sandboxes::branch(&app, &member, &id, asked.count, asked.metadata, timeout, idempotent).await?;
    let sandboxes = made.into_iter().map(|row| Sandbox::new(&app, row)).collect();
    Ok((StatusCode::CREATED, Reply(Branches { sandboxes })))
}

/// Set how long a sandbox may be idle, from now on
#[utoipa::path(put, path = "/v1/sandboxes/{sandbox}/timeout", tag = "sandboxes", params(("sandbox" = String, Path)),
    request_body = NewTimeout, responses((status = OK, body = Sandbox)))]
async fn set_timeout(
    Shared(app): Shared<App>,
    member: Member,
    Path(id): Path<String>,
    Json(asked): Json<NewTimeout>,
) -> Result<Reply<Sandbox>, Error> {
    let row = sandboxes::set_timeout(&app, &member, &id, asked.checked()?).await?;
    Ok(Reply(Sandbox::new(&app, row)))
}

/// What a running sandbox uses
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/metrics", tag = "sandboxes",
    params(("sandbox" = String, Path)), responses((status = OK, body = Metrics)))]
async fn metrics(
    Shared(app): Shared<App>,
    member: Member,
    Path(id): Path<String>,
) -> Result<Reply<Metrics>, Error> {
    let row = sandboxes::running(&app, member.team, &id).await?;
    let host = sandboxes::host_of(&app, &row.host).await?;
    let used = host.stats(&row.sandbox_id()?).await.map_err(|error| sandboxes::host_failed(&error))?;
    Ok(Reply(Metrics {
        cpu_seconds: used.cpu.as_secs_f64(),
        memory_resident_bytes: used.memory_resident.get(),
        memory_mib: row.memory_mib,
        vcpus: row.vcpus,
        disk_allocated_bytes: used.disk_allocated.get(),
        network_received_bytes: used.network_received.get(),
        network_sent_bytes: used.network_sent.get(),
    }))
}

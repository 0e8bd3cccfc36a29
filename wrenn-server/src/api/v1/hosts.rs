//! Hosts, for operators. To everyone else they do not exist.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::api::extract::{Json, Path};
use crate::api::{Code, Error};
use crate::app::App;
use crate::auth::{Actor, HostItself, Operator};
use crate::db;
use crate::hosts::{IN_PROCESS, is_host_name};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get, register, remove))
        .routes(routes!(drain))
        .routes(routes!(announce))
}

/// A machine that sandboxes live on.
#[derive(Debug, Serialize, ToSchema)]
struct Host {
    name: String,
    endpoint: String,
    /// The identity of its data directory, once it was reached. At another one the host is not taken for this one.
    host_id: Option<String>,
    /// Whether it answers.
    up: bool,
    /// Whether it takes no new sandboxes.
    draining: bool,
    version: String,
    vcpus: i32,
    memory_mib: i64,
    /// What its system says is free.
    available_mib: i64,
    disk_free_bytes: i64,
    images: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    last_seen_at: Option<OffsetDateTime>,
}

impl From<db::hosts::Host> for Host {
    fn from(row: db::hosts::Host) -> Self {
        Self {
            name: row.name,
            endpoint: row.endpoint,
            host_id: row.host_id,
            up: row.up,
            draining: row.draining,
            version: row.version,
            vcpus: row.vcpus,
            memory_mib: row.memory_mib,
            available_mib: row.available_mib,
            disk_free_bytes: row.disk_free_bytes,
            images: row.images,
            created_at: row.created_at,
            last_seen_at: row.last_seen_at,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct HostList {
    hosts: Vec<Host>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewHost {
    /// `http://HOST:PORT`, `https://HOST:PORT` or `unix:/PATH`.
    #[schema(example = "https://10.0.0.5:7070")]
    endpoint: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Drain {
    draining: bool,
}

fn none() -> Error {
    Code::NotFound.because("there is no such host")
}

async fn record(app: &App, operator: &Operator, action: &str, host: &str) -> Result<(), Error> {
    let actor = Actor::User(operator.0.user).to_string();
    db::audit::record(&app.db, None, &actor, action, host, &serde_json::json!({})).await?;
    Ok(())
}

/// All hosts
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts", responses((status = OK, body = HostList)))]
async fn list(State(app): State<App>, _operator: Operator) -> Result<Reply<HostList>, Error> {
    let hosts = db::hosts::all(&app.db).await?;
    Ok(Reply(HostList { hosts: hosts.into_iter().map(Host::from).collect() }))
}

/// One host
#[utoipa::path(get, path = "/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path)),
    responses((status = OK, body = Host)))]
async fn get(
    State(app): State<App>,
    _operator: Operator,
    Path(name): Path<String>,
) -> Result<Reply<Host>, Error> {
    let found = if is_host_name(&name) { db::hosts::find(&app.db, &name).await? } else { None };
    Ok(Reply(found.ok_or_else(none)?.into()))
}

/// Register a host, or tell its new address
///
/// Its name is what its tokens name as their audience. It is asked how it is within seconds.
#[utoipa::path(put, path = "/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path)), request_body = NewHost,
    responses((status = OK, body = Host)))]
async fn register(
    State(app): State<App>,
    operator: Operator,
    Path(name): Path<String>,
    Json(new): Json<NewHost>,
) -> Result<Reply<Host>, Error> {
    check(&app, &name, &new)?;
    let row = db::hosts::register(&app.db, &name, &new.endpoint).await?;
    record(&app, &operator, "host.register", &name).await?;
    Ok(Reply(row.into()))
}

/// Whether there can be a client of a host, which is known before it is entered.
fn check(app: &App, name: &str, new: &NewHost) -> Result<(), Error> {
    if !is_host_name(name) {
        return Err(Code::InvalidRequest.because("host: 1 to 63 lower-case letters, digits and dashes"));
    }
    if new.endpoint.len() > 300 {
        return Err(Code::InvalidRequest.because("endpoint: at most 300 bytes"));
    }
    let client = app.hosts.client(name, &new.endpoint);
    client.map(drop).map_err(|error| Code::InvalidRequest.because(format!("endpoint: {error}")))
}

/// Tell where a host is
///
/// For hosts themselves, which repeat it: it registers the host, or tells its new address. The credentials are a host token: a
/// JWT (HS256) signed with the host secret, for the audience `wrenn:control-plane`, whose subject is the host's name, and
/// which lives for ten minutes at most.
#[utoipa::path(put, path = "/v1/hosts/{host}/endpoint", tag = "hosts", params(("host" = String, Path)),
    request_body = NewHost, security(("host_token" = [])), responses((status = NO_CONTENT)))]
async fn announce(
    State(app): State<App>,
    HostItself(bearer): HostItself,
    Path(name): Path<String>,
    Json(new): Json<NewHost>,
) -> Result<StatusCode, Error> {
    if name != bearer {
        return Err(none());
    }
    check(&app, &name, &new)?;
    let known = db::hosts::find(&app.db, &name).await?;
    if new.endpoint == IN_PROCESS || known.is_some_and(|host| host.endpoint == IN_PROCESS) {
        return Err(Code::Conflict.because("a host of that name lives in the process of a control plane"));
    }
    if db::hosts::announce(&app.db, &name, &new.endpoint).await? {
        let detail = serde_json::json!({ "endpoint": new.endpoint });
        let actor = format!("host:{name}");
        db::audit::record(&app.db, None, &actor, "host.register", &name, &detail).await?;
        tracing::info!(host = name, endpoint = new.endpoint, "a host says where it is");
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Forget a host that has neither sandboxes nor snapshots
#[utoipa::path(delete, path = "/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path)),
    responses((status = NO_CONTENT)))]
async fn remove(
    State(app): State<App>,
    operator: Operator,
    Path(name): Path<String>,
) -> Result<StatusCode, Error> {
    let found = if is_host_name(&name) { db::hosts::find(&app.db, &name).await? } else { None };
    found.ok_or_else(none)?;
    if !db::hosts::remove(&app.db, &name).await? {
        return Err(Code::Conflict.because("the host has sandboxes or snapshots, or had until a week ago"));
    }
    record(&app, &operator, "host.remove", &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Begin or end draining a host
///
/// A host that drains takes no new sandboxes and keeps those that it has.
#[utoipa::path(put, path = "/v1/hosts/{host}/draining", tag = "hosts", params(("host" = String, Path)),
    request_body = Drain, responses((status = OK, body = Host)))]
async fn drain(
    State(app): State<App>,
    operator: Operator,
    Path(name): Path<String>,
    Json(asked): Json<Drain>,
) -> Result<Reply<Host>, Error> {
    if !is_host_name(&name) {
        return Err(none());
    }
    let row = db::hosts::drain(&app.db, &name, asked.draining).await?.ok_or_else(none)?;
    record(&app, &operator, if asked.draining { "host.drain" } else { "host.undrain" }, &name).await?;
    Ok(Reply(row.into()))
}

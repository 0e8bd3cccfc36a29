//! What whoever runs the server asks it: whether it lives, whether it is ready, and how it does.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Code, Error};
use crate::app::App;
use crate::db;
use crate::sandboxes::State as SandboxState;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(ready)).routes(routes!(metrics))
}

#[derive(Serialize, ToSchema)]
struct Status {
    #[schema(example = "ok")]
    status: &'static str,
    /// The server's version.
    version: &'static str,
}

const OK: Status = Status { status: "ok", version: env!("CARGO_PKG_VERSION") };

/// Whether the server runs at all
#[utoipa::path(get, path = "/health", tag = "operations", security(()), responses((status = OK, body = Status)))]
async fn health() -> Json<Status> {
    Json(OK)
}

/// Whether the server can do its work: PostgreSQL answers
#[utoipa::path(get, path = "/ready", tag = "operations", security(()), responses((status = OK, body = Status)))]
async fn ready(State(app): State<App>) -> Result<Json<Status>, Error> {
    sqlx::query!(r#"SELECT 1 AS "one!""#).fetch_one(&app.db).await?;
    Ok(Json(OK))
}

/// Metrics, in Prometheus's text format
#[utoipa::path(get, path = "/metrics", tag = "operations", security(()),
    responses((status = OK, body = String, content_type = "text/plain")))]
async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, Error> {
    let handle = app.metrics.as_ref();
    let handle = handle.ok_or_else(|| Code::NotFound.because("the program records its metrics elsewhere"))?;
    metrics::gauge!("wrenn_database_connections").set(f64::from(app.db.size()));
    let counts = db::sandboxes::count(&app.db).await?;
    for state in SandboxState::ALL.iter().filter(|state| !state.is_over()) {
        let count =
            counts.iter().find(|(counted, _)| counted == state.as_str()).map_or(0, |(_, count)| *count);
        metrics::gauge!("wrenn_sandboxes", "state" => state.as_str())
            .set(u32::try_from(count).unwrap_or(u32::MAX));
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], handle.render()))
}

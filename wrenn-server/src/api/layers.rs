//! What goes around every request: an id, a span in the log, a time limit, cross-origin rules, and a net for panics.

use std::any::Any;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, Any as AnyOrigin, CorsLayer};
use tower_http::set_header::SetResponseHeaderLayer;
use tracing::Instrument;
use uuid::Uuid;

use super::{Code, Error};
use crate::app::App;
use crate::config::Config;
use crate::{e2b, preview};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Routes that take as long as a sandbox or a transfer does; what bounds them are the limits of hosts and agents.
const UNHURRIED: &[&str] = &[
    "/v1/sandboxes",
    "/v1/sandboxes/{sandbox}",
    "/v1/sandboxes/{sandbox}/pause",
    "/v1/sandboxes/{sandbox}/resume",
    "/v1/sandboxes/{sandbox}/branch",
    "/v1/sandboxes/{sandbox}/exec",
    "/v1/sandboxes/{sandbox}/stream",
    "/v1/sandboxes/{sandbox}/files",
    "/v1/snapshots",
];

/// Wraps the routes. The first layer named is the outermost.
pub(super) fn around(routes: Router<App>, app: &App) -> Router<App> {
    routes.layer(
        ServiceBuilder::new()
            .layer(from_fn(observe))
            // Outside of all that follows: what a sandbox answers is its own.
            .layer(from_fn_with_state(app.clone(), e2b::divert))
            .layer(from_fn_with_state(app.clone(), preview::divert))
            .layer(SetResponseHeaderLayer::if_not_present(
                header::X_CONTENT_TYPE_OPTIONS,
                HeaderValue::from_static("nosniff"),
            ))
            .layer(cors(&app.config))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(from_fn_with_state(app.clone(), hurry)),
    )
}

/// Gives each request an id, logs it and counts it. Neither its query nor its headers are logged: they may hold secrets.
async fn observe(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).filter(|id| id.len() <= 64).cloned().unwrap_or_else(|| {
        let id = Uuid::now_v7().to_string();
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("none"))
    });
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let method = request.method().clone();
    // The route and not the path: there is a bounded number of those.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", %method, route, id = id.to_str().unwrap_or("?"));
    let begun = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let (status, seconds) = (response.status(), begun.elapsed().as_secs_f64());
    span.in_scope(|| tracing::debug!(status = status.as_u16(), seconds, "answered"));
    let labels = [
        ("method", known_method(&method).to_owned()),
        ("route", route),
        ("status", status.as_str().to_owned()),
    ];
    metrics::counter!("wrenn_http_requests_total", &labels).increment(1);
    metrics::histogram!("wrenn_http_request_seconds", &labels[..2]).record(seconds);
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// A client may make up methods; the metrics have a bounded number of them.
fn known_method(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
    ];
    if known.contains(method) { method.as_str() } else { "other" }
}

/// Ends a request that takes too long, unless its route lets it.
async fn hurry(State(app): State<App>, request: Request, next: Next) -> Response {
    let limit = app.config.request_timeout;
    let route = request.extensions().get::<MatchedPath>();
    if route.is_some_and(|route| {
        UNHURRIED.iter().chain(e2b::UNHURRIED).any(|unhurried| *unhurried == route.as_str())
    }) {
        return next.run(request).await;
    }
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Code::Timeout.because(format!("it took longer than {} s", limit.as_secs())).into_response(),
    }
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<&str>().copied().map(ToOwned::to_owned);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    Error::internal("a handler panicked", &text).into_response()
}

fn cors(config: &Config) -> CorsLayer {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::RANGE,
            HeaderName::from_static("x-api-key"),
            HeaderName::from_static("x-team-id"),
            HeaderName::from_static("idempotency-key"),
        ])
        .expose_headers([REQUEST_ID, header::RETRY_AFTER]);
    if config.cors_origins.iter().any(|origin| origin == "*") {
        // Without cookies a wildcard gives no page anything that it does not hold already.
        return layer.allow_origin(AnyOrigin);
    }
    let origins = config.cors_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    layer.allow_origin(AllowOrigin::list(origins))
}

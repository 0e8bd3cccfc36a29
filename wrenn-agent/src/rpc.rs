//! What the RPC services have in common: on whose behalf a call is made, and how its stream shows that it lives.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use connectrpc::{ConnectError, RequestContext};
use tokio::time::Instant;
use wrenn_agent_api::KEEPALIVE_HEADER;

use crate::settings::{Settings, UserError};
use crate::users::User;

/// How long a stream is silent before a keepalive event, where the client asks for nothing else.
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(90);

/// How long the call's stream may be silent before a keepalive event.
pub(crate) fn keepalive(ctx: &RequestContext) -> Duration {
    let asked = ctx.header(KEEPALIVE_HEADER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    asked.filter(|seconds| (1..=86_400).contains(seconds)).map_or(DEFAULT_KEEPALIVE, Duration::from_secs)
}

/// Waits until a call's time limit has passed; for ever, if it has none.
pub(crate) async fn passed(limit: Option<Instant>) {
    match limit {
        Some(limit) => tokio::time::sleep_until(limit).await,
        None => std::future::pending().await,
    }
}

/// The error of what ran into its time limit.
pub(crate) fn too_late(what: &str) -> ConnectError {
    ConnectError::deadline_exceeded(format!("{what} ran into its time limit"))
}

/// The user that a call names, or the default one.
pub(crate) fn user(settings: &Settings, ctx: &RequestContext) -> Result<User, ConnectError> {
    settings.user(user_name(ctx)?.as_deref()).map_err(|error| match error {
        UserError::Unknown(_) => ConnectError::unauthenticated(error.to_string()),
        UserError::Lookup(..) => ConnectError::internal(error.to_string()),
    })
}

/// The user that the call names in its HTTP Basic credentials, if any.
fn user_name(ctx: &RequestContext) -> Result<Option<String>, ConnectError> {
    let Some(header) = ctx.header("authorization") else { return Ok(None) };
    let malformed = || ConnectError::unauthenticated("the Authorization header names no user");
    let text = header.to_str().ok().and_then(|text| text.strip_prefix("Basic ")).ok_or_else(malformed)?;
    let credentials = STANDARD.decode(text.trim()).map_err(|_| malformed())?;
    let credentials = String::from_utf8(credentials).map_err(|_| malformed())?;
    let name = credentials.split_once(':').map_or(credentials.as_str(), |(name, _password)| name);
    Ok(Some(name.to_owned()))
}

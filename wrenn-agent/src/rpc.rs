//! What the RPC services have in common: on whose behalf a call is made.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use connectrpc::{ConnectError, RequestContext};

use crate::settings::{Settings, UserError};
use crate::users::User;

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

//! What handlers ask requests for, with errors as clients of E2B read them.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use wrenn_base::SandboxId;

use super::error::Error;
use crate::api::extract;
use crate::app::App;
use crate::auth::Member;

/// Someone of a team.
pub(super) struct Caller(pub(super) Member);

impl FromRequestParts<App> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        Ok(Self(Member::from_request_parts(parts, app).await?))
    }
}

/// The sandbox that the path names. What cannot be an id is the id of none.
pub(super) struct Id(pub(super) String);

impl FromRequestParts<App> for Id {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let extract::Path(id) = extract::Path::<String>::from_request_parts(parts, app).await?;
        id.parse::<SandboxId>().map_err(|_| Error::no_such_sandbox())?;
        Ok(Self(id))
    }
}

/// A part of the path.
pub(super) struct Path(pub(super) String);

impl FromRequestParts<App> for Path {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        Ok(Self(extract::Path::<String>::from_request_parts(parts, app).await?.0))
    }
}

/// A JSON body, or none at all, which is as good as `{}`.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        Ok(Self(extract::OptionalJson::from_request(request, app).await?.0))
    }
}

/// The parameters of a query.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        Ok(Self(extract::Query::from_request_parts(parts, app).await?.0))
    }
}

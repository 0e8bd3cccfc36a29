//! Bodies, paths and queries, whose faults are told as every other error is.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::{Code, Error};
use crate::app::App;

/// A JSON body of at most the size that the configuration says.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        let (parts, body) = request.into_parts();
        if !is_json(&parts) {
            return Err(Code::UnsupportedMediaType.because("the body is to be application/json"));
        }
        let bytes = read(body, app).await?;
        parse(&bytes).map(Self)
    }
}

/// A JSON body, or none at all or null, which are as good as `{}`.
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for OptionalJson<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        let (parts, body) = request.into_parts();
        let bytes = read(body, app).await?;
        if !bytes.is_empty() && !is_json(&parts) {
            return Err(Code::UnsupportedMediaType.because("the body is to be application/json"));
        }
        if bytes.is_empty() || bytes.trim_ascii() == b"null" { parse(b"{}") } else { parse(&bytes) }.map(Self)
    }
}

fn is_json(parts: &Parts) -> bool {
    let kind = parts.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// Reads a whole body, if it is not larger than it may be and comes in the time of a request.
async fn read(body: Body, app: &App) -> Result<bytes::Bytes, Error> {
    let (limit, time) = (app.config.body_limit, app.config.request_timeout);
    let body = tokio::time::timeout(time, Limited::new(body, limit).collect()).await;
    match body.map_err(|_| Code::Timeout.because("the body did not come in time"))? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Code::BodyTooLarge.because(format!("the body is larger than {limit} bytes")))
        }
        Err(_) => Err(Code::InvalidRequest.because("the body ended before its end")),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let inner = error.inner();
        if inner.is_data() {
            let path = error.path().to_string();
            let place = if path == "." { String::new() } else { format!("{path}: ") };
            Code::InvalidRequest.because(format!("{place}{inner}"))
        } else {
            Code::MalformedJson.because(inner.to_string())
        }
    })?;
    json.end().map_err(|error| Code::MalformedJson.because(error.to_string()))?;
    Ok(parsed)
}

/// The parameters of a path. One that cannot name anything names nothing.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        match axum::extract::Path::from_request_parts(parts, app).await {
            Ok(axum::extract::Path(parameters)) => Ok(Self(parameters)),
            Err(_) => Err(Code::NotFound.because("there is no such thing")),
        }
    }
}

/// The parameters of a query.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        match axum::extract::Query::from_request_parts(parts, app).await {
            Ok(axum::extract::Query(parameters)) => Ok(Self(parameters)),
            Err(rejection) => Err(Code::InvalidRequest.because(rejection.body_text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[allow(dead_code, reason = "only whether it parses is looked at")]
        number: u8,
    }

    #[test]
    fn what_is_no_json_is_told_from_what_is_the_wrong_json() {
        let code = |text: &str| parse::<Body>(text.as_bytes()).map(|_| ()).map_err(|error| error.code);
        assert_eq!(code(r#"{"number":1}"#), Ok(()));
        for malformed in ["", "{", "{\"number\":1} x", "\u{0}", "{\"number\":1"] {
            assert_eq!(code(malformed), Err(Code::MalformedJson), "{malformed:?}");
        }
        for wrong in ["[]", "{}", r#"{"number":"1"}"#, r#"{"number":256}"#, r#"{"number":1,"x":1}"#] {
            assert_eq!(code(wrong), Err(Code::InvalidRequest), "{wrong:?}");
        }
        assert_eq!(parse::<Body>(b"{\"number\":\xff}").unwrap_err().code, Code::MalformedJson);
        let deep = "[".repeat(100_000);
        assert_eq!(code(&deep), Err(Code::InvalidRequest));
    }
}

//! Errors as clients of E2B read them: `{"code": 404, "message": "…"}`.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::api;
use crate::api::Code;

/// Says whether a client that repeats failed requests is to repeat this one.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

/// What a handler fails with.
#[derive(Debug, Clone)]
pub(crate) struct Error {
    status: StatusCode,
    /// What it is elsewhere.
    code: Option<Code>,
    pub(super) message: String,
    retry_after: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct ErrorBody {
    /// The status again: clients in JavaScript look here.
    pub(super) code: u16,
    pub(super) message: String,
}

impl Error {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, code: None, message: message.into(), retry_after: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Something of E2B's that there is not here. Better refused than done half.
    pub(super) fn unsupported(what: &str) -> Self {
        Self::bad_request(format!("{what} is not supported by this server"))
    }

    pub(super) fn no_such_sandbox() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is no such sandbox")
    }

    /// Whether it is because of what the sandbox's state was at that moment.
    pub(super) fn is_about_state(&self) -> bool {
        matches!(self.code, Some(Code::SandboxBusy | Code::WrongState))
    }

    pub(super) fn into_body(self) -> ErrorBody {
        ErrorBody { code: self.status.as_u16(), message: self.message }
    }
}

impl From<api::Error> for Error {
    fn from(error: api::Error) -> Self {
        let status = error.code.status();
        Self { status, code: Some(error.code), message: error.message, retry_after: error.retry_after }
    }
}

impl From<Error> for api::Error {
    fn from(error: Error) -> Self {
        let Error { code, message, retry_after, .. } = error;
        Self { code: code.unwrap_or(Code::WrongState), message, retry_after }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        api::Error::from(error).into()
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = (status, Json(self.into_body())).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        } else if status.is_server_error() {
            // What failed may have been done in part: without a word clients would repeat it three times.
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}

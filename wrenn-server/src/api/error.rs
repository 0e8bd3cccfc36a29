//! Errors as clients get them: a status, and `{"error":{"code","message"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::PasswordRefused;
use crate::db;

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $status:ident;)+) => {
        /// What went wrong, in words that programs may rely on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Code {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Code {
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];

            /// The code as clients see it.
            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// The status that goes with it.
            pub(crate) fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)+ }
            }
        }

        /// The codes as a table, for the API's description.
        pub(crate) const CODES: &str = concat!(
            "| code | meaning |\n|---|---|\n",
            $("| `", $code, "` |", $($doc,)+ " |\n",)+
        );
    };
}

codes! {
    /// The body is not JSON.
    MalformedJson = "malformed_json", BAD_REQUEST;
    /// A field, a parameter or a header is missing or has a value that it cannot have.
    InvalidRequest = "invalid_request", BAD_REQUEST;
    /// There are no credentials, or they are not valid.
    Unauthenticated = "unauthenticated", UNAUTHORIZED;
    /// Address and password do not go together, or there is no such address.
    InvalidCredentials = "invalid_credentials", UNAUTHORIZED;
    /// The caller may see it, but not do that.
    Forbidden = "forbidden", FORBIDDEN;
    /// Accounts are made by the operator.
    SignUpClosed = "sign_up_closed", FORBIDDEN;
    /// There is no such thing, or it belongs to another team.
    NotFound = "not_found", NOT_FOUND;
    /// The path exists, but not for this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED;
    /// Something else is being done with it: try again in a moment.
    SandboxBusy = "sandbox_busy", CONFLICT;
    /// The sandbox is in a state in which that cannot be done.
    WrongState = "wrong_state", CONFLICT;
    /// Another request came with this `Idempotency-Key` before.
    IdempotencyKeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY;
    /// The command did not end in time and was killed.
    CommandTimeout = "command_timeout", REQUEST_TIMEOUT;
    /// The sandbox's disk is full.
    GuestDiskFull = "guest_disk_full", INSUFFICIENT_STORAGE;
    /// The sandbox itself could not do it.
    GuestFailed = "guest_failed", BAD_GATEWAY;
    /// Nobody in the sandbox listens at the port, or what listens is no HTTP server.
    PortClosed = "port_closed", BAD_GATEWAY;
    /// The sandbox's host failed.
    HostFailed = "host_failed", BAD_GATEWAY;
    /// The sandbox's host does not answer. What became of what was under way shows when it does.
    HostUnavailable = "host_unavailable", SERVICE_UNAVAILABLE;
    /// No host has room for it just now.
    NoCapacity = "no_capacity", SERVICE_UNAVAILABLE;
    /// It would contradict what there is.
    Conflict = "conflict", CONFLICT;
    /// The body is larger than the server reads.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE;
    /// The body is of a kind that is not read here.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE;
    /// Too many attempts, or too much at a time: try again after `Retry-After` seconds.
    RateLimited = "rate_limited", TOO_MANY_REQUESTS;
    /// The server is at fault; its log has the cause.
    Internal = "internal", INTERNAL_SERVER_ERROR;
    /// PostgreSQL cannot be reached just now.
    DatabaseUnavailable = "database_unavailable", SERVICE_UNAVAILABLE;
    /// It took longer than the server lets a request take.
    Timeout = "timeout", GATEWAY_TIMEOUT;
}

impl Code {
    /// The error with that code, and a sentence for people.
    pub(crate) fn because(self, message: impl Into<String>) -> Error {
        Error { code: self, message: message.into(), retry_after: None }
    }
}

/// What a handler fails with.
#[derive(Debug, Clone)]
pub(crate) struct Error {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) retry_after: Option<u64>,
}

impl Error {
    /// The caller may try again in so many seconds.
    #[must_use]
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The server is at fault: the cause goes to the log, and not to the client.
    pub(crate) fn internal(what: &str, cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(error = %cause, "{what}");
        Code::Internal.because("the server failed; its log has the cause")
    }
}

/// The body of every response that is an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// A stable name for it.
    #[schema(example = "not_found")]
    code: &'static str,
    /// A sentence for people, which may change.
    message: String,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let body = ErrorBody { error: ErrorDetail { code: self.code.as_str(), message: self.message } };
        let mut response = (self.code.status(), Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.code == Code::Unauthenticated {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        if db::is_unreachable(&error) {
            tracing::warn!(%error, "the database cannot be reached");
            return Code::DatabaseUnavailable
                .because("the database cannot be reached just now")
                .retry_after(5);
        }
        Self::internal("a query failed", &error)
    }
}

impl From<PasswordRefused> for Error {
    fn from(error: PasswordRefused) -> Self {
        match error {
            PasswordRefused::Busy => {
                Code::RateLimited.because("too many are logging in just now").retry_after(1)
            }
            PasswordRefused::Failed(_) => Self::internal("hashing failed", &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_errors() {
        let names: std::collections::BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| code.status().as_u16() >= 400));
    }
}

//! What can go wrong in a call, by what the caller can do about it.

use std::time::Duration;

use connectrpc::{ConnectError, ErrorCode};
use hyper::StatusCode;

use crate::http::ErrorBody;
use crate::transport::BoxError;

/// A call to the agent that failed.
///
/// Texts that come from the guest are cut to 1000 characters and freed of control characters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// No connection could be made; the agent saw nothing of the call.
    #[error("cannot reach the agent for {call}")]
    Unreachable {
        /// The call.
        call: &'static str,
        /// What the dialing said.
        #[source]
        source: BoxError,
    },
    /// The connection broke during the call, which may have taken effect or not.
    #[error("lost the agent's connection during {call}; whether it took effect is unknown")]
    Disconnected {
        /// The call.
        call: &'static str,
        /// What the connection said.
        #[source]
        source: BoxError,
    },
    /// No answer came in time; the call may have taken effect or not.
    #[error("the agent did not answer {call} within {limit:?}")]
    Timeout {
        /// The call.
        call: &'static str,
        /// The limit that passed.
        limit: Duration,
    },
    /// The command ran into its own time limit; the agent killed it.
    #[error("the command did not end within its time limit and was killed")]
    CommandTimeout,
    /// The agent refuses the access token.
    #[error("the agent refused {call}: {message}")]
    Unauthenticated {
        /// The call.
        call: &'static str,
        /// The agent's words.
        message: String,
    },
    /// The guest has no user of the name that the call gives.
    #[error("{call}: {message}")]
    UnknownUser {
        /// The call.
        call: &'static str,
        /// The agent's words.
        message: String,
    },
    /// The file or process is not there.
    #[error("{call}: {message}")]
    NotFound {
        /// The call.
        call: &'static str,
        /// The agent's words.
        message: String,
    },
    /// The call asks for something that cannot be: a directory for a file, a missing working directory.
    #[error("{call}: {message}")]
    InvalidArgument {
        /// The call.
        call: &'static str,
        /// The agent's words.
        message: String,
    },
    /// The guest's disk is full.
    #[error("no space left in the guest for {call}: {message}")]
    NoSpace {
        /// The call.
        call: &'static str,
        /// The agent's words.
        message: String,
    },
    /// Any other failure that the agent reports.
    #[error("{call} failed in the guest ({code}): {message}")]
    Failed {
        /// The call.
        call: &'static str,
        /// A Connect error code, or an HTTP status.
        code: String,
        /// The agent's words.
        message: String,
    },
    /// What answered is not an agent, or not one of this protocol.
    #[error("the answer to {call} is not an agent's: {what}")]
    Protocol {
        /// The call.
        call: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The data to upload could not be read.
    #[error("cannot read what {call} should send")]
    Upload {
        /// The call.
        call: &'static str,
        /// What its source said.
        #[source]
        source: BoxError,
    },
}

impl AgentError {
    /// Whether a later attempt may succeed because nothing answered this one: true while a guest boots.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Disconnected { .. } | Self::Timeout { .. })
    }

    pub(super) fn protocol(call: &'static str, what: impl Into<String>) -> Self {
        Self::Protocol { call, what: what.into() }
    }

    /// One code for two things, as E2B's clients expect it: a wrong token and a wrong user differ by their texts.
    fn unauthenticated(call: &'static str, message: String) -> Self {
        if message.starts_with("unknown user") {
            Self::UnknownUser { call, message }
        } else {
            Self::Unauthenticated { call, message }
        }
    }

    /// An error that the agent answered in the Connect protocol.
    pub(super) fn from_connect(call: &'static str, error: &ConnectError) -> Self {
        let message = tame(error.message.as_deref().unwrap_or(error.code.as_str()));
        match error.code {
            ErrorCode::Unauthenticated => Self::unauthenticated(call, message),
            ErrorCode::NotFound => Self::NotFound { call, message },
            ErrorCode::InvalidArgument => Self::InvalidArgument { call, message },
            code => Self::Failed { call, code: code.as_str().into(), message },
        }
    }

    /// An error that a plain route answered with `status` and `body`.
    pub(super) fn from_http(call: &'static str, status: StatusCode, body: &[u8]) -> Self {
        let message = match serde_json::from_slice::<ErrorBody>(body) {
            Ok(error) => tame(&error.message),
            Err(_) => return Self::protocol(call, format!("HTTP {status} without an error body")),
        };
        match status {
            StatusCode::UNAUTHORIZED => Self::unauthenticated(call, message),
            StatusCode::NOT_FOUND => Self::NotFound { call, message },
            StatusCode::BAD_REQUEST | StatusCode::RANGE_NOT_SATISFIABLE => {
                Self::InvalidArgument { call, message }
            }
            StatusCode::INSUFFICIENT_STORAGE => Self::NoSpace { call, message },
            _ => Self::Failed { call, code: format!("HTTP {}", status.as_u16()), message },
        }
    }
}

/// A guest's text, fit for a log line.
fn tame(text: &str) -> String {
    text.chars().take(1000).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_guest_are_tamed() {
        let error = ConnectError::not_found(format!("\u{1b}[2J{}", "x".repeat(5000)));
        let text = AgentError::from_connect("stat", &error).to_string();
        assert!(text.starts_with("stat: \u{fffd}[2Jxx"), "{text}");
        assert_eq!(text.chars().count(), 1000 + "stat: ".len());
    }

    #[test]
    fn statuses_have_their_kinds() {
        let of = |status: u16| {
            let body = format!("{{\"code\":{status},\"message\":\"m\"}}");
            AgentError::from_http("c", StatusCode::from_u16(status).unwrap(), body.as_bytes())
        };
        assert!(matches!(of(401), AgentError::Unauthenticated { .. }));
        assert!(matches!(of(404), AgentError::NotFound { .. }));
        assert!(matches!(of(400), AgentError::InvalidArgument { .. }));
        assert!(matches!(of(507), AgentError::NoSpace { .. }));
        assert!(matches!(of(500), AgentError::Failed { .. }));
        let html = AgentError::from_http("c", StatusCode::BAD_GATEWAY, b"<html>");
        assert!(matches!(html, AgentError::Protocol { .. }));
    }
}

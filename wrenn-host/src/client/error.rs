//! What can go wrong in a call, by what the caller can do about it.

use std::time::Duration;

use connectrpc::ConnectError;
use wrenn_agent_api::transport::BoxError;

use crate::{Malformed, Reason};

/// A call to a host that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// No connection could be made; the host saw nothing of the call.
    #[error("cannot reach the host for {call}")]
    Unreachable {
        /// The call.
        call: &'static str,
        /// What the connecting said.
        #[source]
        source: BoxError,
    },
    /// The connection broke during the call, which may have taken effect, or be going on.
    #[error("lost the host's connection during {call}; whether it took effect is unknown")]
    Disconnected {
        /// The call.
        call: &'static str,
        /// What the connection said.
        #[source]
        source: BoxError,
    },
    /// No answer came in time; the call may have taken effect, or be going on.
    #[error("the host did not answer {call} within {limit:?}")]
    Timeout {
        /// The call.
        call: &'static str,
        /// The limit that passed.
        limit: Duration,
    },
    /// The host refused the call, or failed in it.
    #[error("{call}: {message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// Why, for programs.
        reason: Reason,
        /// Why, for people.
        message: String,
    },
    /// What answered is not a host agent, or not one of this protocol.
    #[error("the answer to {call} is not a host agent's: {what}")]
    Protocol {
        /// The call.
        call: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

impl HostError {
    /// Why the host refused the call, if it was the host.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    /// Whether nothing answered: the host may be there again later, and its sandboxes with it.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Disconnected { .. } | Self::Timeout { .. })
    }

    pub(super) fn protocol(call: &'static str, what: impl Into<String>) -> Self {
        Self::Protocol { call, what: what.into() }
    }

    pub(super) fn malformed(call: &'static str, error: &Malformed) -> Self {
        Self::protocol(call, error.to_string())
    }

    /// An error that the host answered with.
    pub(super) fn from_connect(call: &'static str, error: &ConnectError) -> Self {
        let message = error.message.as_deref().unwrap_or(error.code.as_str());
        Self::Refused { call, reason: Reason::of(error), message: tame(message) }
    }
}

/// A text from elsewhere, fit for a log line.
fn tame(text: &str) -> String {
    text.chars().take(2000).map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_tamed_and_reasons_kept() {
        let error = Reason::Draining.error(format!("\u{1b}[2J{}", "x".repeat(5000)));
        let error = HostError::from_connect("create", &error);
        assert_eq!(error.reason(), Some(Reason::Draining));
        assert!(!error.is_unreachable());
        let text = error.to_string();
        assert!(text.starts_with("create: \u{fffd}[2Jxx") && text.len() < 2100, "{text}");
    }
}

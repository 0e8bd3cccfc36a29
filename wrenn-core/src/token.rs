//! The secret that lets the host, and nobody else, talk to a sandbox's agent.

use std::fmt;

use serde::{Deserialize, Serialize};
use wrenn_base::SandboxId;

/// 256 bits of randomness as text. Its `Debug` form shows nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn random() -> Self {
        // Four ids of 82 bits each: the one source of random text there is, and more than 256 bits.
        Self((0..4).map(|_| SandboxId::random().to_string()).collect())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

//! The states of a sandbox, as PostgreSQL has them, and the rules between them.
//!
//! ```text
//!   creating ──> running <──> pausing, resuming <──> paused        any of them ──> missing: its host does not answer,
//!      |            |                                  |           and only it knows
//!    failed         '──────> destroying <─────────────-'           missing ──> whatever the host says once it answers
//!                                |
//!                            destroyed
//! ```
//!
//! A state with a *lease* (creating, pausing, resuming, destroying) is held by a task of one control plane. Once the lease
//! is over, the task is believed dead and the host decides: see [`crate::reconcile`].

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a sandbox is doing, or has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = SandboxState)]
pub(crate) enum State {
    /// It is being booted, or made of a template or of a running sandbox.
    Creating,
    /// Its guest runs.
    Running,
    /// It is being paused to disk.
    Pausing,
    /// It is a snapshot on its host's disk.
    Paused,
    /// It is being resumed.
    Resuming,
    /// It is being removed.
    Destroying,
    /// It is no more.
    Destroyed,
    /// It never came to be.
    Failed,
    /// Its host does not answer. It comes back with it.
    Missing,
}

impl State {
    pub(crate) const ALL: &[Self] = &[
        Self::Creating,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Destroying,
        Self::Destroyed,
        Self::Failed,
        Self::Missing,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
            Self::Failed => "failed",
            Self::Missing => "missing",
        }
    }

    /// The state that the database has. It lets no other through; of one that it did, only a host could say more.
    pub(crate) fn from_stored(text: &str) -> Self {
        Self::ALL.iter().copied().find(|state| state.as_str() == text).unwrap_or(Self::Missing)
    }

    /// Whether a task works on it.
    pub(crate) fn is_leased(self) -> bool {
        matches!(self, Self::Creating | Self::Pausing | Self::Resuming | Self::Destroying)
    }

    /// Whether it is over. Clients see no such sandbox unless they ask for it.
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Destroyed | Self::Failed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_found_by_its_name() {
        for state in State::ALL {
            assert_eq!(State::from_stored(state.as_str()), *state);
            assert!(!(state.is_leased() && state.is_over()));
        }
    }
}

//! How sandboxes came to their ends, as their hosts told of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use wrenn_host::{EventKind, SandboxEvent};

/// What was heard is of use for so long.
const KEEP: Duration = Duration::from_secs(300);
/// No host has so many ends at a time; more are forgotten.
const MOST: usize = 10_000;

/// Reasons that were heard, by sandbox.
#[derive(Debug, Default)]
pub(crate) struct Ends(HashMap<String, (Instant, String)>);

impl Ends {
    /// Takes note of an event; whether it changed what its sandbox is.
    pub(crate) fn note(&mut self, event: &SandboxEvent) -> bool {
        let reason = match &event.kind {
            EventKind::Expired { .. } => "it was idle for its timeout".to_owned(),
            EventKind::GuestEnded { status } => {
                format!("its guest ended: {}", status.chars().take(200).collect::<String>())
            }
            EventKind::Running => {
                self.0.remove(event.sandbox.as_str());
                return true;
            }
            EventKind::Paused | EventKind::Destroyed => return true,
            _ => return false,
        };
        if self.0.len() < MOST {
            self.0.insert(event.sandbox.as_str().to_owned(), (Instant::now(), reason));
        }
        // What it has come to is told by an event of its own.
        matches!(event.kind, EventKind::GuestEnded { .. })
    }

    /// Why a sandbox ended or was paused, if that was heard.
    pub(crate) fn of(&self, sandbox: &str) -> Option<&str> {
        self.0.get(sandbox).map(|(_, reason)| reason.as_str())
    }

    /// Forgets what is of no more use.
    pub(crate) fn forget_old(&mut self) {
        self.0.retain(|_, (at, _)| at.elapsed() < KEEP);
    }
}

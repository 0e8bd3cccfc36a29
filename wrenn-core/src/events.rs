//! What happens to the sandboxes of a host, as it happens.

use std::time::{Duration, SystemTime};

use tokio::sync::broadcast::{self, error::RecvError};
use wrenn_base::SandboxId;

use crate::lifecycle::SandboxState;
use crate::lifetime::OnTimeout;

/// How many events wait for a listener that does not draw them, before the oldest are lost to it.
const KEPT: usize = 4096;

/// Something that happened to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SandboxEvent {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// When, by the host's clock.
    pub at: SystemTime,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// It went from one state to another; `None` is rest: it is on disk, or no more.
    State {
        /// The state before.
        from: Option<SandboxState>,
        /// The state now.
        to: Option<SandboxState>,
    },
    /// Its snapshot of this generation is on disk.
    Paused {
        /// How many snapshots it has had, this one included.
        generation: u64,
    },
    /// It was idle for its timeout, and what was asked for begins.
    Expired {
        /// What was asked for.
        then: OnTimeout,
    },
    /// What was to become of it at its timeout failed. A sandbox that was to be paused runs on.
    ExpiryFailed {
        /// Why.
        error: String,
        /// When it is tried again; `None` where there is nothing left to try it on.
        again_in: Option<Duration>,
    },
    /// Its guest or its monitor ended by itself.
    GuestEnded {
        /// The monitor's exit status.
        status: String,
    },
}

/// Events were lost because they were not drawn in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{count} events were lost, as nobody drew them in time; what there is now: Host::list")]
pub struct EventsLost {
    /// How many.
    pub count: u64,
}

/// The events of a host from the moment on at which this was made by [`Host::events`](crate::Host::events).
#[derive(Debug)]
pub struct Events(broadcast::Receiver<SandboxEvent>);

impl Events {
    /// The next event; `None` once the host is gone.
    ///
    /// # Errors
    /// [`EventsLost`] in place of events that were not drawn in time, of which 4096 are kept; those after them follow.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Result<Option<SandboxEvent>, EventsLost> {
        match self.0.recv().await {
            Ok(event) => Ok(Some(event)),
            Err(RecvError::Closed) => Ok(None),
            Err(RecvError::Lagged(count)) => Err(EventsLost { count }),
        }
    }
}

/// Where events come from.
#[derive(Debug)]
pub(crate) struct EventSource(broadcast::Sender<SandboxEvent>);

impl Default for EventSource {
    fn default() -> Self {
        Self(broadcast::Sender::new(KEPT))
    }
}

impl EventSource {
    pub(crate) fn listen(&self) -> Events {
        Events(self.0.subscribe())
    }

    pub(crate) fn tell(&self, sandbox: &SandboxId, kind: EventKind) {
        tracing::debug!(%sandbox, ?kind, "event");
        // That nobody listens is no error.
        let _ = self.0.send(SandboxEvent { sandbox: sandbox.clone(), at: SystemTime::now(), kind });
    }
}

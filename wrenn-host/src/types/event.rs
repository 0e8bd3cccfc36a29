//! What happens to sandboxes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wrenn_base::SandboxId;

use super::{Malformed, OnTimeout, name};
use crate::pb;

/// Something that happened to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SandboxEvent {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// When, by the host's clock, in whole milliseconds.
    pub at: SystemTime,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// It is being booted, resumed or made from a snapshot.
    Starting,
    /// It runs, and its agent has answered.
    Running,
    /// It is being paused.
    Pausing,
    /// It is at rest, and can be resumed.
    Paused,
    /// What it has on the machine is being removed.
    Stopping,
    /// It is no more.
    Destroyed,
    /// It was idle for its timeout, and what was asked for begins.
    Expired {
        /// What was asked for.
        then: OnTimeout,
    },
    /// What was to become of it at its timeout failed. One that was to be paused runs on, and is tried again.
    ExpiryFailed {
        /// Why.
        error: String,
    },
    /// Its guest, or its monitor, ended by itself.
    GuestEnded {
        /// The exit status.
        status: String,
    },
}

impl SandboxEvent {
    pub(crate) fn into_wire(self) -> pb::SandboxEvent {
        use pb::EventKind as Wire;
        let mut wire = pb::SandboxEvent {
            sandbox: self.sandbox.as_str().into(),
            at_ms: since_epoch(self.at),
            ..pb::SandboxEvent::default()
        };
        wire.kind = match self.kind {
            EventKind::Starting => Wire::EVENT_KIND_STARTING,
            EventKind::Running => Wire::EVENT_KIND_RUNNING,
            EventKind::Pausing => Wire::EVENT_KIND_PAUSING,
            EventKind::Paused => Wire::EVENT_KIND_PAUSED,
            EventKind::Stopping => Wire::EVENT_KIND_STOPPING,
            EventKind::Destroyed => Wire::EVENT_KIND_DESTROYED,
            EventKind::Expired { then } => {
                wire.on_timeout = then.to_wire().into();
                Wire::EVENT_KIND_EXPIRED
            }
            EventKind::ExpiryFailed { error } => {
                wire.detail = error;
                Wire::EVENT_KIND_EXPIRY_FAILED
            }
            EventKind::GuestEnded { status } => {
                wire.detail = status;
                Wire::EVENT_KIND_GUEST_ENDED
            }
        }
        .into();
        wire
    }

    /// Nothing for a kind that only a newer host knows.
    pub(crate) fn of_wire(wire: pb::SandboxEvent) -> Result<Option<Self>, Malformed> {
        use pb::EventKind as Wire;
        let kind = match wire.kind.as_known() {
            Some(Wire::EVENT_KIND_STARTING) => EventKind::Starting,
            Some(Wire::EVENT_KIND_RUNNING) => EventKind::Running,
            Some(Wire::EVENT_KIND_PAUSING) => EventKind::Pausing,
            Some(Wire::EVENT_KIND_PAUSED) => EventKind::Paused,
            Some(Wire::EVENT_KIND_STOPPING) => EventKind::Stopping,
            Some(Wire::EVENT_KIND_DESTROYED) => EventKind::Destroyed,
            Some(Wire::EVENT_KIND_EXPIRED) => {
                EventKind::Expired { then: OnTimeout::of_wire(wire.on_timeout)? }
            }
            Some(Wire::EVENT_KIND_EXPIRY_FAILED) => EventKind::ExpiryFailed { error: wire.detail },
            Some(Wire::EVENT_KIND_GUEST_ENDED) => EventKind::GuestEnded { status: wire.detail },
            Some(Wire::EVENT_KIND_UNSPECIFIED) | None => return Ok(None),
        };
        Ok(Some(Self { sandbox: name("sandbox", &wire.sandbox)?, at: at_millis(wire.at_ms), kind }))
    }
}

pub(crate) fn since_epoch(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A time that a clock cannot say is taken for its beginning.
pub(crate) fn at_millis(millis: i64) -> SystemTime {
    let since = Duration::from_millis(u64::try_from(millis).unwrap_or(0));
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_wire() {
        let kinds = [
            EventKind::Starting,
            EventKind::Running,
            EventKind::Pausing,
            EventKind::Paused,
            EventKind::Stopping,
            EventKind::Destroyed,
            EventKind::Expired { then: OnTimeout::Pause },
            EventKind::ExpiryFailed { error: "e".into() },
            EventKind::GuestEnded { status: "s".into() },
        ];
        for kind in kinds {
            let at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
            let event = SandboxEvent { sandbox: SandboxId::random(), at, kind };
            assert_eq!(SandboxEvent::of_wire(event.clone().into_wire()), Ok(Some(event)));
        }
    }

    #[test]
    fn strange_events_are_harmless() {
        assert_eq!(SandboxEvent::of_wire(pb::SandboxEvent::default()), Ok(None));
        let nameless =
            pb::SandboxEvent { kind: pb::EventKind::EVENT_KIND_PAUSED.into(), ..Default::default() };
        assert_eq!(SandboxEvent::of_wire(nameless).unwrap_err().what, "sandbox");
        for millis in [i64::MIN, -1, 0, i64::MAX] {
            let _ = at_millis(millis);
        }
    }
}

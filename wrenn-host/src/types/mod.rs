//! What is said about sandboxes, as values; and how each is written on the wire.
//!
//! What arrives is checked here: a peer of another version, or a hostile one, is answered with [`Malformed`].

mod egress;
mod event;
mod record;
mod request;

use std::time::Duration;

pub use egress::{Egress, EgressRule, Protocol};
pub use event::{EventKind, SandboxEvent};
pub use record::{Description, Paused, SandboxRecord, SandboxState, Stats, TakenSnapshot, TemplateRecord};
pub use request::{Branch, CreateSandbox, Source};

use crate::pb;

/// A message that says something that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
#[non_exhaustive]
pub struct Malformed {
    /// The field.
    pub what: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl Malformed {
    pub(crate) fn new(what: &'static str, why: impl ToString) -> Self {
        Self { what, why: why.to_string() }
    }
}

/// Reads an id or a name.
pub(crate) fn name<T: std::str::FromStr<Err: ToString>>(
    what: &'static str,
    text: &str,
) -> Result<T, Malformed> {
    text.parse().map_err(|why: T::Err| Malformed::new(what, why))
}

/// What becomes of a sandbox that has been idle for its timeout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OnTimeout {
    /// It is destroyed, with all that is kept of it.
    #[default]
    Destroy,
    /// It is paused to disk.
    Pause,
}

impl OnTimeout {
    pub(crate) fn to_wire(self) -> pb::OnTimeout {
        match self {
            Self::Destroy => pb::OnTimeout::ON_TIMEOUT_DESTROY,
            Self::Pause => pb::OnTimeout::ON_TIMEOUT_PAUSE,
        }
    }

    pub(crate) fn of_wire(wire: buffa::EnumValue<pb::OnTimeout>) -> Result<Self, Malformed> {
        match wire.as_known() {
            Some(pb::OnTimeout::ON_TIMEOUT_DESTROY | pb::OnTimeout::ON_TIMEOUT_UNSPECIFIED) => {
                Ok(Self::Destroy)
            }
            Some(pb::OnTimeout::ON_TIMEOUT_PAUSE) => Ok(Self::Pause),
            None => Err(Malformed::new("on_timeout", "it is none that this version knows")),
        }
    }
}

/// How long a sandbox may be idle, and what becomes of it then.
///
/// It is idle while no connection is open that carries something to it: see the crate's text on tunnels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Timeout {
    /// How long; `None` is for ever. Told in milliseconds.
    pub after: Option<Duration>,
    /// What then.
    pub then: OnTimeout,
}

impl Timeout {
    /// To be destroyed after so long.
    pub fn destroy(after: Duration) -> Self {
        Self { after: Some(after), then: OnTimeout::Destroy }
    }

    /// To be paused after so long.
    pub fn pause(after: Duration) -> Self {
        Self { after: Some(after), then: OnTimeout::Pause }
    }

    pub(crate) fn to_wire(self) -> pb::Timeout {
        pb::Timeout { after_ms: self.after.map(millis), on_timeout: self.then.to_wire().into() }
    }

    pub(crate) fn of_wire(wire: pb::Timeout) -> Result<Self, Malformed> {
        if wire.after_ms == Some(0) {
            return Err(Malformed::new("timeout", "zero leaves no time to do anything"));
        }
        Ok(Self {
            after: wire.after_ms.map(Duration::from_millis),
            then: OnTimeout::of_wire(wire.on_timeout)?,
        })
    }
}

/// Whole milliseconds, but never zero for what is not.
pub(crate) fn millis(time: Duration) -> u64 {
    let whole = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if time.is_zero() { 0 } else { whole.max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_survive_the_wire() {
        for timeout in [
            Timeout::default(),
            Timeout::pause(Duration::from_millis(1)),
            Timeout::destroy(Duration::from_secs(86_400)),
        ] {
            assert_eq!(Timeout::of_wire(timeout.to_wire()), Ok(timeout));
        }
        let short = Timeout::pause(Duration::from_nanos(1)).to_wire();
        assert_eq!(short.after_ms, Some(1), "none is rounded to for ever, or to never");
        let zero = pb::Timeout { after_ms: Some(0), ..pb::Timeout::default() };
        assert_eq!(Timeout::of_wire(zero).unwrap_err().what, "timeout");
        let strange = pb::Timeout { after_ms: None, on_timeout: buffa::EnumValue::from(77) };
        assert_eq!(Timeout::of_wire(strange).unwrap_err().what, "on_timeout");
    }
}

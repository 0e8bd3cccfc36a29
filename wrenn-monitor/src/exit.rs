//! Why a monitor ends, and what it tells its parent. The one place where exit codes are listed.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | the guest shut down or rebooted by itself |
//! | 1 | the monitor failed: its log has the reason |
//! | 2 | bad arguments |
//! | 10 | the guest's kernel panicked (it said so through pvpanic) |
//! | 11 | triple fault: the guest crashed without a word, or reset itself that way |
//! | 12 | KVM could not go on running the guest |
//! | 13 | the fault server that serves the guest's memory hung up |

use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The exit code of a monitor that failed on its own account.
pub(crate) const FAILURE: u8 = 1;
/// The exit code of a monitor that did not understand its arguments.
pub(crate) const BAD_ARGUMENTS: u8 = 2;

/// What ended a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExitReason {
    #[error("the guest shut down")]
    GuestShutdown,
    #[error("the guest rebooted")]
    GuestReset,
    #[error("the guest's kernel panicked")]
    GuestPanic,
    #[error("vCPU {vcpu} of the guest met a triple fault")]
    TripleFault { vcpu: u8 },
    #[error("KVM could not go on running vCPU {vcpu}: {what}")]
    VcpuFailed { vcpu: u8, what: String },
    #[error("the fault server hung up: pages of guest memory can no longer be served")]
    FaultServerGone,
    #[error("the API cannot be served: {what}")]
    ApiFailed { what: String },
}

impl ExitReason {
    /// The exit code that tells this reason.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::GuestShutdown | Self::GuestReset => 0,
            Self::GuestPanic => 10,
            Self::TripleFault { .. } => 11,
            Self::VcpuFailed { .. } => 12,
            Self::FaultServerGone => 13,
            Self::ApiFailed { .. } => FAILURE,
        }
    }
}

/// How devices and vCPUs tell the main loop that it is over; clones share one reason.
#[derive(Debug, Clone)]
pub(crate) struct ExitSignal {
    shared: Arc<(EventFd, Mutex<Option<ExitReason>>)>,
}

impl ExitSignal {
    /// A signal that nobody has raised.
    pub(crate) fn new() -> std::io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { shared: Arc::new((event, Mutex::new(None))) })
    }

    /// Ends the machine for `reason`, unless it has been ended before: the first reason counts, because what
    /// follows it (the reset after a panic) is only its consequence.
    pub(crate) fn raise(&self, reason: ExitReason) {
        let (event, slot) = &*self.shared;
        slot.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        // It cannot fail: an eventfd's counter is full only after 2^64 - 2 writes.
        let _ = event.write(1);
    }

    /// The reason, once there is one.
    pub(crate) fn reason(&self) -> Option<ExitReason> {
        self.shared.1.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The descriptor that becomes readable, and stays so, when the signal is raised.
    pub(crate) fn event(&self) -> &EventFd {
        &self.shared.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts() {
        let signal = ExitSignal::new().unwrap();
        assert_eq!(signal.reason(), None);
        signal.clone().raise(ExitReason::GuestPanic);
        signal.raise(ExitReason::GuestReset);
        assert_eq!(signal.reason(), Some(ExitReason::GuestPanic));
        assert_eq!(signal.event().read().unwrap(), 2);
    }
}

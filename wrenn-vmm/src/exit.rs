//! How a monitor ended.

use std::fmt;

use rustix::process::Signal;

/// The code that `wrenn-monitor` exits with when its guest's kernel panicked.
///
/// Firecracker has no such code: a guest that panics and reboots looks like a shutdown there.
pub const GUEST_PANIC_EXIT_CODE: i32 = 10;

/// The code that Firecracker exits with after a system call that its seccomp filter forbids.
const BAD_SYSCALL_EXIT_CODE: i32 = 148;

/// How a monitor's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitStatus {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
    /// It is gone, but somebody else in this process collected its status (a `wait` for any child, or an
    /// ignored SIGCHLD).
    Unknown,
}

/// What the end of a monitor means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitCause {
    /// The guest shut down or rebooted.
    GuestShutdown,
    /// The guest's kernel panicked; only `wrenn-monitor` tells.
    GuestPanic,
    /// The monitor made a system call that its seccomp filter forbids: a bug, or a guest that broke in.
    SeccompViolation,
    /// The process was killed by SIGTERM or SIGKILL: by its driver, by hand, or for want of memory.
    Killed,
    /// Anything else: the monitor's own failure.
    Failure,
}

impl ExitStatus {
    /// What this end means.
    pub fn cause(self) -> ExitCause {
        let is = |signal: Signal, raw: i32| signal.as_raw() == raw;
        match self {
            Self::Exited(0) => ExitCause::GuestShutdown,
            Self::Exited(GUEST_PANIC_EXIT_CODE) => ExitCause::GuestPanic,
            Self::Exited(BAD_SYSCALL_EXIT_CODE) => ExitCause::SeccompViolation,
            Self::Signaled(raw) if is(Signal::SYS, raw) => ExitCause::SeccompViolation,
            Self::Signaled(raw) if is(Signal::TERM, raw) || is(Signal::KILL, raw) => ExitCause::Killed,
            _ => ExitCause::Failure,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}")?,
            Self::Signaled(signal) => write!(f, "signal {signal}")?,
            Self::Unknown => return f.write_str("ended, its status was collected by somebody else"),
        }
        match self.cause() {
            ExitCause::GuestShutdown => f.write_str(", the guest shut down"),
            ExitCause::GuestPanic => f.write_str(", the guest's kernel panicked"),
            ExitCause::SeccompViolation => f.write_str(", a forbidden system call"),
            ExitCause::Killed => f.write_str(", killed"),
            ExitCause::Failure => Ok(()),
        }
    }
}

/// How a monitor ended, and the last it had to say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExitReport {
    /// The process's status.
    pub status: ExitStatus,
    /// The last 4 KiB of the monitor's and the guest's output, without control characters.
    pub console_tail: String,
}

impl ExitReport {
    /// What this end means.
    pub fn cause(&self) -> ExitCause {
        self.status.cause()
    }
}

impl fmt::Display for ExitReport {
    /// The status and the last line of the console.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.status.fmt(f)?;
        match self.console_tail.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => write!(f, "; its last output: {}", crate::text::clip_line(line.trim(), 300)),
            None => f.write_str("; it printed nothing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_tell_their_causes() {
        for (status, cause, text) in [
            (ExitStatus::Exited(0), ExitCause::GuestShutdown, "exit code 0, the guest shut down"),
            (ExitStatus::Exited(1), ExitCause::Failure, "exit code 1"),
            (ExitStatus::Exited(10), ExitCause::GuestPanic, "exit code 10, the guest's kernel panicked"),
            (ExitStatus::Exited(148), ExitCause::SeccompViolation, "exit code 148, a forbidden system call"),
            (ExitStatus::Signaled(31), ExitCause::SeccompViolation, "signal 31, a forbidden system call"),
            (ExitStatus::Signaled(9), ExitCause::Killed, "signal 9, killed"),
            (ExitStatus::Signaled(11), ExitCause::Failure, "signal 11"),
        ] {
            assert_eq!(status.cause(), cause);
            assert_eq!(status.to_string(), text);
        }
    }

    #[test]
    fn a_report_shows_the_last_line_that_says_something() {
        let report =
            ExitReport { status: ExitStatus::Exited(1), console_tail: "first\n  the reason\n \n\n".into() };
        assert_eq!(report.to_string(), "exit code 1; its last output: the reason");
        let silent = ExitReport { status: ExitStatus::Exited(1), console_tail: String::new() };
        assert_eq!(silent.to_string(), "exit code 1; it printed nothing");
    }
}

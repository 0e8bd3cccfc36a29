//! What a child process does between fork and exec.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};

/// Ties a child to this program: however this program ends, the child does not outlive it.
pub(crate) fn end_with_us(command: &mut Command) {
    // SAFETY: after fork only async-signal-safe code may run; this is one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}

//! What a child process does between fork and exec.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Ties a child to this program: it is asked to end when this program dies without having ended it.
pub(crate) fn end_with_us(command: &mut Command) {
    // SAFETY: after fork only async-signal-safe code may run; this is one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
    }
}

/// Gives a child a mount namespace of its own: whatever it mounts is gone with it, however it ends, and nothing that
/// removes its files from here can reach through its mounts.
pub(crate) fn keep_mounts_private(command: &mut Command) {
    fn separate() -> io::Result<()> {
        // SAFETY: a new mount namespace changes nothing in memory and closes no descriptor.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        Ok(mount_change(c"/", private)?)
    }
    // SAFETY: after fork only async-signal-safe code may run; these are two system calls on constants that allocate
    // nothing.
    unsafe {
        command.pre_exec(separate);
    }
}

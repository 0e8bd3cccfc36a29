//! The fork that freezes guest memory.

use std::io;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Forks; the child holds this process's memory until its connection to `address` ends.
///
/// The child's end is collected by the kernel, as [`ignore_children`] has asked for.
pub(super) fn fork_to(address: &SocketAddrUnix) -> io::Result<()> {
    ignore_children()?;
    let parent = rustix::process::getpid();
    // SAFETY: the child runs `hold` and nothing else, which makes system calls on what was prepared before the fork:
    // it neither allocates nor takes a lock, and it never returns.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            hold(address, parent);
            // SAFETY: ends the process without running anything that belongs to the parent.
            unsafe { libc::_exit(0) }
        }
        _ => Ok(()),
    }
}

/// What the child does. Whatever fails ends it, which the other end notices.
fn hold(address: &SocketAddrUnix, parent: rustix::process::Pid) {
    // SAFETY: a system call without memory arguments. Nothing in the child uses a descriptor that it had.
    unsafe { libc::syscall(libc::SYS_close_range, 0 as libc::c_uint, libc::c_uint::MAX, 0 as libc::c_uint) };
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() || getppid() != Some(parent) {
        return;
    }
    let Ok(socket) = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None) else {
        return;
    };
    if connect(&socket, address).is_ok() {
        let mut byte = [0];
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&socket, &mut byte));
    }
}

/// Has the kernel collect children, of which nobody wants to know how they ended.
fn ignore_children() -> io::Result<()> {
    // SAFETY: no handler of ours is replaced: this process has no other children and waits for none.
    match unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

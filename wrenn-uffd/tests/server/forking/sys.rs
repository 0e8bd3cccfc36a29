//! A fork, a userfaultfd that is not set up, and a copy by the process itself, which no safe interface offers.

use std::os::fd::{FromRawFd, OwnedFd};

use userfaultfd::Uffd;

use super::sys::Mapping;

/// Forks a child that exits at once, and reaps it.
pub(crate) fn fork_and_exit() {
    // SAFETY: the child does nothing but `_exit`, which is safe after a fork of a process with threads.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: it ends the process without running anything of its parent's.
        unsafe { libc::_exit(0) };
    }
    assert!(child > 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the status is not wanted.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
}

/// A userfaultfd that never went through `UFFDIO_API`.
pub(crate) fn raw_userfaultfd() -> OwnedFd {
    // SAFETY: the system call takes flags and nothing else.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Fills missing pages of a mapping.
pub(crate) fn copy(uffd: &Uffd, memory: &Mapping, offset: usize, content: &[u8]) {
    assert!(offset + content.len() <= memory.len());
    // SAFETY: the target lies within the mapping, which nobody has references into.
    unsafe {
        let target = memory.pointer().byte_add(offset);
        uffd.copy(content.as_ptr().cast(), target, content.len(), true).unwrap();
    }
}

//! Filling another process's memory through its userfaultfd.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use userfaultfd::Uffd;

/// Takes the userfaultfd.
pub(super) fn take_uffd(fd: OwnedFd) -> Uffd {
    // SAFETY: the descriptor is owned, and is given away here.
    unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) }
}

/// Puts `bytes` at `address` of the other process, and wakes whoever waits for them.
pub(super) fn copy(uffd: &Uffd, address: u64, bytes: &[u8]) -> Result<usize, userfaultfd::Error> {
    // SAFETY: the kernel reads `bytes` here, and checks `address` against what the other process registered.
    unsafe { uffd.copy(bytes.as_ptr().cast(), address as *mut _, bytes.len(), true) }
}

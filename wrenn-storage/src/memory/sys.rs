//! The one system call that no safe wrapper has.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Has the kernel begin to write a part of `file` to the disk, so that the fsync to come has less left to wait for.
///
/// It promises nothing and reports nothing: whatever fails fails again at that fsync.
pub(super) fn start_writeback(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: the call takes plain numbers and touches no memory of the process; the descriptor is open throughout.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}

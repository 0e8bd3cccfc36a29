//! The loop device's ioctls (the kernel's include/uapi/linux/loop.h).
//!
//! The `loopdev` crates attach a file in two steps, LOOP_SET_FD and LOOP_SET_STATUS64: a process killed between them
//! leaves a device that nothing clears. LOOP_CONFIGURE (Linux 5.8) is one step, so it is called here.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use linux_raw_sys::loop_device::{
    LOOP_CONFIGURE, LOOP_CTL_GET_FREE, LOOP_GET_STATUS64, loop_config, loop_info64,
};

/// The number of a loop device that is free at this moment; it is created if need be.
pub(super) fn free_loop_number(control: &File) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument, and the descriptor is open for the call's duration.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), libc::c_ulong::from(LOOP_CTL_GET_FREE)) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Attaches `backing` to the free loop device `device`, in one step.
pub(super) fn configure_loop(device: &File, backing: &File, flags: u32) -> io::Result<()> {
    // SAFETY: loop_config is plain integers, for which zero is a value (and the interface's default).
    let mut config: loop_config = unsafe { mem::zeroed() };
    config.fd = backing.as_raw_fd().cast_unsigned();
    config.info.lo_flags = flags;
    // SAFETY: LOOP_CONFIGURE reads one loop_config, which outlives the call; both descriptors are open.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::c_ulong::from(LOOP_CONFIGURE), &config) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What a loop device is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoopStatus {
    /// The backing file's device and inode numbers.
    pub(super) backing: (u64, u64),
    /// Which part of the file is shown: offset and limit, both 0 for the whole file.
    pub(super) window: (u64, u64),
    pub(super) flags: u32,
}

/// What `device` is attached to; `None` for a free one.
pub(super) fn loop_status(device: &File) -> io::Result<Option<LoopStatus>> {
    // SAFETY: loop_info64 is plain integers, for which zero is a value.
    let mut info: loop_info64 = unsafe { mem::zeroed() };
    // SAFETY: LOOP_GET_STATUS64 writes one loop_info64, which outlives the call; the descriptor is open.
    let result =
        unsafe { libc::ioctl(device.as_raw_fd(), libc::c_ulong::from(LOOP_GET_STATUS64), &mut info) };
    if result == 0 {
        return Ok(Some(LoopStatus {
            backing: (info.lo_device, info.lo_inode),
            window: (info.lo_offset, info.lo_sizelimit),
            flags: info.lo_flags,
        }));
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        e => Err(e),
    }
}

//! The system calls of the devices that have no safe wrapper: scattered I/O on guest memory, and the TAP ioctls.
//!
//! Guest memory cannot be lent to the kernel as Rust slices, as the guest writes it at the same time. So the
//! kernel gets raw pointers, each from a [`GuestSlice`] that is known to lie inside guest memory.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_uint, c_void, iovec, off_t};
use vm_memory::bitmap::Bitmap;

use super::virtio::{Buffers, GuestSlice};

/// The most pieces that one call takes (`IOV_MAX`).
const MAX_PIECES: usize = 1024;

/// Reads from `file` at `offset` into guest memory; returns how many bytes, which may be fewer than there is
/// room for. All of the room is marked as written, as a failing read may have begun to fill it.
pub(super) fn read_at(file: BorrowedFd<'_>, into: &Buffers<'_>, offset: u64) -> io::Result<usize> {
    let pieces = pieces(into.slices());
    // SAFETY: `pieces` points to `len` valid descriptions of memory that stays mapped while `into` lives. The
    // memory is guest memory, which nothing in this process holds Rust references into.
    let read =
        unsafe { libc::preadv(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as c_int, to_off(offset)?) };
    for slice in into.slices() {
        slice.bitmap().mark_dirty(0, slice.len());
    }
    count(read)
}

/// Writes guest memory to `file` at `offset`; returns how many bytes, which may be fewer than there are.
pub(super) fn write_at(file: BorrowedFd<'_>, from: &Buffers<'_>, offset: u64) -> io::Result<usize> {
    let pieces = pieces(from.slices());
    // SAFETY: as in `read_at`; the kernel only reads the memory.
    let written =
        unsafe { libc::pwritev(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as c_int, to_off(offset)?) };
    count(written)
}

/// Writes guest memory to `file` as one packet.
pub(super) fn write_packet(file: BorrowedFd<'_>, from: &Buffers<'_>) -> io::Result<usize> {
    let pieces = pieces(from.slices());
    // SAFETY: as in `write_at`.
    let written = unsafe { libc::writev(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as c_int) };
    count(written)
}

fn pieces(slices: &[GuestSlice<'_>]) -> Vec<iovec> {
    let piece = |slice: &GuestSlice<'_>| iovec {
        // Guest memory is one mapping for good, so the pointer outlives its guard.
        iov_base: slice.ptr_guard_mut().as_ptr().cast::<c_void>(),
        iov_len: slice.len(),
    };
    slices.iter().take(MAX_PIECES).map(piece).collect()
}

fn to_off(offset: u64) -> io::Result<off_t> {
    off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Makes `tun` (an open `/dev/net/tun`) the TAP interface `name`, whose frames begin with a virtio-net header
/// of `header` bytes.
pub(super) fn attach_tap(tun: BorrowedFd<'_>, name: &str, header: c_int) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF takes a pointer to an `ifreq`, which it reads and writes during the call only.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: TUNSETVNETHDRSZ takes a pointer to an `int`, which it reads during the call only.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })
}

/// Tells the kernel which unfinished work (`TUN_F_…`: checksums, segmentation) may be left to the guest.
pub(super) fn set_tap_offload(tap: BorrowedFd<'_>, offload: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload)) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

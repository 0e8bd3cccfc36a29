//! The two system calls without a safe wrapper: a fresh network namespace, and TUNSETIFF.

use std::fs::File;
use std::io;

use rustix::ioctl;
use rustix::thread::UnshareFlags;

// linux/if_tun.h
const TUNSETIFF: ioctl::Opcode = ioctl::opcode::write::<libc::c_int>(b'T', 202);
const TUNSETPERSIST: ioctl::Opcode = ioctl::opcode::write::<libc::c_int>(b'T', 203);

/// Moves the calling thread, and it alone, into a new network namespace.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET shares nothing that Rust relies on (it is CLONE_FILES that would separate this thread's
    // descriptors from those of the others).
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Makes the TAP device `name` in the namespace in which `tun` was opened; it outlives `tun`.
pub(crate) fn make_persistent_tap(tun: &File, name: &str) -> io::Result<()> {
    // SAFETY: all zeroes are a valid ifreq: an empty name, and a union of plain integers and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // The flags are those with which a monitor opens it; multi-queue stays off.
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which is what the pointer points to; the opcode's size field
    // says int for historical reasons.
    unsafe { ioctl::ioctl(tun, ioctl::Updater::<TUNSETIFF, libc::ifreq>::new(&mut request)) }?;
    // SAFETY: TUNSETPERSIST takes its argument by value.
    unsafe { ioctl::ioctl(tun, ioctl::IntegerSetter::<TUNSETPERSIST>::new_usize(1)) }?;
    Ok(())
}

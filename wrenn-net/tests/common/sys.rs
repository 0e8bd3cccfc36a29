//! What the tests need from the kernel without a safe wrapper.

use std::fs::File;
use std::io;

use rustix::ioctl;
use rustix::thread::UnshareFlags;

pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(
        !flags.contains(UnshareFlags::FILES),
        "would separate this thread's descriptors from the others'"
    );
    // SAFETY: it is CLONE_FILES that Rust's descriptors rely on.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Attaches to the TAP `tap0` in the namespace in which `tun` was opened, as a monitor does.
pub(crate) fn attach_tap(tun: &File) -> io::Result<()> {
    const TUNSETIFF: ioctl::Opcode = ioctl::opcode::write::<libc::c_int>(b'T', 202);
    // SAFETY: all zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"tap0") {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    Ok(unsafe { ioctl::ioctl(tun, ioctl::Updater::<TUNSETIFF, libc::ifreq>::new(&mut request)) }?)
}

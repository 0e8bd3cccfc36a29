//! Devices that sandboxes cannot do without.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use crate::error::Cause;

/// KVM, for every sandbox.
pub(crate) fn kvm() -> Result<(), Cause> {
    open_device(
        "/dev/kvm",
        "load the kvm_intel or kvm_amd module, or switch virtualisation on in the firmware",
    )
}

/// userfaultfd, for a lazy resume.
///
/// The monitor opens it, as `/dev/userfaultfd` or by the system call. Here the device alone is tried, and its
/// absence is no fault: kernels before 6.1 have only the call.
pub(crate) fn userfaultfd() -> Result<(), Cause> {
    let device = "/dev/userfaultfd";
    if !Path::new(device).exists() {
        return Ok(());
    }
    open_device(device, "the kernel needs CONFIG_USERFAULTFD")
}

/// TAP devices, for every sandbox.
pub(crate) fn tun() -> Result<(), Cause> {
    open_device("/dev/net/tun", "load the tun module, and make the node: mknod /dev/net/tun c 10 200")
}

fn open_device(path: &'static str, absent_remedy: &'static str) -> Result<(), Cause> {
    OpenOptions::new().read(true).write(true).open(path).map(drop).map_err(|source| {
        let remedy = match source.kind() {
            io::ErrorKind::NotFound => absent_remedy,
            io::ErrorKind::PermissionDenied => "run as root, or give this user access to the device",
            _ => "see the cause",
        };
        Cause::Device { path, remedy, source }
    })
}

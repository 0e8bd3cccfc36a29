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
/// The monitor opens it, as `/dev/userfaultfd` or by the system call. Here the device alone is tried; kernels before
/// 6.1 have only the call, which must then be allowed to everybody.
pub(crate) fn userfaultfd() -> Result<(), Cause> {
    let device = "/dev/userfaultfd";
    if !Path::new(device).exists() {
        return allowed_to_all();
    }
    open_device(device, "the kernel needs CONFIG_USERFAULTFD")
}

/// A contained monitor has no right to make a userfaultfd for the kernel's accesses but by the device or this setting.
fn allowed_to_all() -> Result<(), Cause> {
    let path = "/proc/sys/vm/unprivileged_userfaultfd";
    match std::fs::read_to_string(path) {
        // Kernels before 5.2 have no such setting, and let everybody.
        Ok(allowed) if allowed.trim() == "0" => Err(Cause::Device {
            path: "/dev/userfaultfd",
            remedy: "use Linux 6.1 or later, or set the sysctl vm.unprivileged_userfaultfd to 1",
            source: io::ErrorKind::NotFound.into(),
        }),
        _ => Ok(()),
    }
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

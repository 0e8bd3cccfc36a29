//! The one KVM call that hands host memory to a guest.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;

pub(super) fn set_memory_region(fd: &VmFd, region: kvm_userspace_memory_region) -> Result<(), errno::Error> {
    // SAFETY: the guest can reach nothing but `userspace_addr..+memory_size`. The one caller takes both from a
    // `GuestRegionMmap`, a mapping made for this guest alone that holds no Rust object, and that lives as long as
    // the machine. Once it is unmapped the kernel itself drops it from the guest.
    unsafe { fd.set_user_memory_region(region) }
}

//! What of a vCPU takes unsafe code: its extended state, whose size KVM decides, and the flag that makes
//! `KVM_RUN` return.

use std::cell::Cell;
use std::ptr;

use kvm_bindings::Xsave;
use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The `immediate_exit` flag of the vCPU that this thread runs; null in every other thread. Without a
    /// destructor and constant at the start, so that a signal handler may read it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that kicks a vCPU thread out of the guest.
pub(super) fn kick_signal() -> c_int {
    SIGRTMIN()
}

/// Installs the handler of [`kick_signal`], for the whole process.
pub(super) fn install_kick_handler() -> Result<(), errno::Error> {
    register_signal_handler(kick_signal(), handle_kick)
}

/// Setting the flag, rather than only interrupting, closes the gap between a look at the orders and `KVM_RUN`:
/// a kick that arrives in it makes `KVM_RUN` return at once.
extern "C" fn handle_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: a flag that is not null points into the `kvm_run` page of the vCPU that this thread runs, which
        // is mapped until after `KickTarget` has set it back to null. The kernel reads it concurrently, as it
        // is meant to: hence a volatile write.
        unsafe { flag.write_volatile(1) };
    }
}

/// While it lives, kicks of this thread make the vCPU leave the guest.
#[derive(Debug)]
pub(super) struct KickTarget<'a> {
    vcpu: &'a mut VcpuFd,
}

impl<'a> KickTarget<'a> {
    /// Makes `vcpu` the one that this thread runs.
    pub(super) fn new(vcpu: &'a mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self { vcpu }
    }

    /// The vCPU, to be run.
    pub(super) fn vcpu(&mut self) -> &mut VcpuFd {
        self.vcpu
    }
}

impl Drop for KickTarget<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

/// Reads the extended state into `xsave`, which must have been made for [`crate::vm::Vm::xsave_size`] bytes.
pub(super) fn get_xsave(vcpu: &VcpuFd, xsave: &mut Xsave, size: usize) -> Result<(), errno::Error> {
    assert!(xsave_len(xsave) >= size, "the buffer was made for this size");
    // SAFETY: KVM writes `size` bytes, what KVM_CAP_XSAVE2 told, and the buffer holds as many.
    unsafe { vcpu.get_xsave2(xsave) }
}

/// Loads the extended state from `xsave`, which must hold `size` bytes ([`crate::vm::Vm::xsave_size`]).
pub(super) fn set_xsave(vcpu: &VcpuFd, xsave: &Xsave, size: usize) -> Result<(), errno::Error> {
    assert!(xsave_len(xsave) >= size, "the buffer was made for this size");
    // SAFETY: KVM reads `size` bytes, what KVM_CAP_XSAVE2 told (4096 without it), and the buffer holds as many.
    unsafe { vcpu.set_xsave2(xsave) }
}

/// The bytes of state that `xsave` holds.
fn xsave_len(xsave: &Xsave) -> usize {
    size_of::<kvm_bindings::kvm_xsave>() + size_of_val(xsave.as_slice())
}

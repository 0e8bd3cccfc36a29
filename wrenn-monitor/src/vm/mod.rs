//! The virtual machine as KVM knows it: memory slots, interrupt controllers, clock.
//!
//! Order of construction, which KVM wants: the VM, its interrupt controllers, then vCPUs. Memory may come at any
//! time before the vCPUs run. [`Vm::create`] takes tens of milliseconds where the kernel waits for a grace
//! period (`KVM_CREATE_VM`), which is why it is done while the first request is still on its way.

use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;

mod state;
#[allow(unsafe_code)]
mod sys;

pub(crate) use state::{VmState, VmStateError};

/// What this monitor cannot do without, with the names that `KVM_CHECK_EXTENSION` knows.
const NEEDED: [(Cap, &str); 10] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Where KVM keeps a task state segment for real mode on Intel hosts: three pages in the hole for devices.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    #[error("/dev/kvm could not be opened: the machine must have KVM, and this user the right to use it")]
    Open(#[source] errno::Error),
    #[error("this kernel's KVM speaks version {found} of its API, not {KVM_API_VERSION}")]
    Version { found: i32 },
    #[error("this kernel's KVM lacks {capability}")]
    Lacks { capability: &'static str },
    #[error("{step} failed")]
    Step { step: &'static str, source: errno::Error },
}

/// Names the step that an error belongs to.
pub(crate) fn at(step: &'static str) -> impl Fn(errno::Error) -> VmError {
    move |source| VmError::Step { step, source }
}

/// A KVM virtual machine with its interrupt controllers.
#[derive(Debug)]
pub(crate) struct Vm {
    kvm: Kvm,
    fd: VmFd,
}

impl Vm {
    /// Makes a machine without memory and vCPUs.
    pub(crate) fn create() -> Result<Self, VmError> {
        let kvm = Kvm::new().map_err(VmError::Open)?;
        let found = kvm.get_api_version();
        if found != KVM_API_VERSION as i32 {
            return Err(VmError::Version { found });
        }
        if let Some((_, capability)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(VmError::Lacks { capability });
        }
        let fd = kvm.create_vm().map_err(at("KVM_CREATE_VM"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(at("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(at("KVM_CREATE_IRQCHIP"))?;
        Ok(Self { kvm, fd })
    }

    /// The system's KVM, for what does not depend on this machine.
    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Makes the vCPU numbered `index`.
    pub(crate) fn create_vcpu(&self, index: u8) -> Result<VcpuFd, VmError> {
        self.fd.create_vcpu(u64::from(index)).map_err(at("KVM_CREATE_VCPU"))
    }

    /// Gives the guest its memory, region `n` in slot `n`; with `log_writes` KVM notes which pages it writes.
    ///
    /// The memory must outlive the machine, which [`crate::machine::Machine`] sees to.
    pub(crate) fn map_memory(&self, guest: &GuestMemory, log_writes: bool) -> Result<(), VmError> {
        let flags = if log_writes { kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        for (slot, region) in (0..).zip(guest.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            sys::set_memory_region(&self.fd, slot).map_err(at("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Empties KVM's log of the pages that the guest wrote in the region `slot` of `size` bytes.
    pub(crate) fn take_dirty_log(&self, slot: u32, size: usize) -> Result<Vec<u64>, VmError> {
        self.fd.get_dirty_log(slot, size).map_err(at("KVM_GET_DIRTY_LOG"))
    }

    /// Has each write to `interrupt` pulse the guest's interrupt line `gsi`.
    pub(crate) fn connect_interrupt(&self, interrupt: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd.register_irqfd(interrupt, gsi).map_err(at("KVM_IRQFD"))
    }

    /// Has each write of `value` to `address` wake `event`, without leaving the kernel.
    pub(crate) fn connect_doorbell(&self, event: &EventFd, address: u64, value: u32) -> Result<(), VmError> {
        let address = IoEventAddress::Mmio(address);
        self.fd.register_ioevent(event, &address, value).map_err(at("KVM_IOEVENTFD"))
    }

    /// The bytes of a vCPU's extended state: more than 4096 where the processor has that much.
    pub(crate) fn xsave_size(&self) -> usize {
        let size = self.fd.check_extension_int(Cap::Xsave2);
        usize::try_from(size).unwrap_or(0).max(size_of::<kvm_bindings::kvm_xsave>())
    }

    /// Whether a vCPU's clock can be made to run at another rate than the host's.
    pub(crate) fn scales_tsc(&self) -> bool {
        self.fd.check_extension(Cap::TscControl)
    }
}

/// The bytes of memory that this host has; asked of the kernel, as a contained monitor has no `/proc` to read.
pub(crate) fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_memory_is_what_meminfo_says() {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
        let kib: u64 = line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap();
        assert_eq!(host_memory(), kib * 1024);
    }
}

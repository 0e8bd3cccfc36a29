//! The vCPUs of a machine: made, started, paused, and carried through snapshots.
//!
//! - [`cpuid`], [`entry`], [`msr`]: what a new vCPU is given.
//! - [`thread`], [`gate`]: running and parking.
//! - [`state`], [`xsave`], [`compat`]: saving, restoring, and whether this host can.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::signal::Killable;

use crate::boot::Entry;
use crate::vm::{Vm, VmError};

mod compat;
mod cpuid;
pub(crate) mod entry;
mod gate;
mod msr;
mod state;
#[allow(unsafe_code)]
mod sys;
mod thread;
mod xsave;

pub(crate) use cpuid::{HostCpuid, Topology};
pub(crate) use gate::{Gate, Order};
pub(crate) use state::{VcpuState, VcpuStateError};
pub(crate) use thread::Shared;

/// How long vCPUs may take to leave the guest: they do within milliseconds, unless the host is drowning in work or
/// one of them waits for a page that its fault server does not bring.
const PARK_LIMIT: Duration = Duration::from_secs(30);
/// How long vCPU threads may take to end before they are left to the end of the process.
const END_LIMIT: Duration = Duration::from_secs(1);

/// The vCPUs could not be made, started or stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VcpuError {
    #[error("vCPU {index} could not be made")]
    Create { index: u8, source: VmError },
    #[error("what KVM offers to guests could not be asked")]
    HostCpuid(#[source] errno::Error),
    #[error("vCPU {index} could not be set up")]
    SetUp { index: u8, source: VcpuStateError },
    #[error("vCPU {index} could not be pointed at the kernel")]
    Entry { index: u8, source: errno::Error },
    #[error("the signal that stops vCPUs could not be claimed")]
    Signal(#[source] errno::Error),
    #[error("the thread of vCPU {index} could not be started")]
    Thread { index: u8, source: std::io::Error },
    #[error("the vCPUs did not stop within {PARK_LIMIT:?}: is the fault server serving?")]
    Stuck,
    #[error("the state of vCPU {index} could not be read")]
    Save { index: u8, source: VcpuStateError },
    #[error("the state of vCPU {index} could not be loaded")]
    Load { index: u8, source: VcpuStateError },
}

/// A vCPU that has no thread yet.
#[derive(Debug)]
pub(crate) struct NewVcpu {
    index: u8,
    fd: VcpuFd,
    cpuid: Vec<kvm_cpuid_entry2>,
}

/// Makes the vCPUs of a new machine, the first about to enter the kernel, the others waiting to be woken by it.
pub(crate) fn create(vm: &Vm, topology: Topology, entry: Entry) -> Result<Vec<NewVcpu>, VcpuError> {
    let host = HostCpuid::read(vm.kvm()).map_err(VcpuError::HostCpuid)?;
    let make = |index: u8| {
        let fd = vm.create_vcpu(index).map_err(|source| VcpuError::Create { index, source })?;
        let cpuid = host.for_vcpu(index, topology);
        state::give_cpuid(&fd, &cpuid)
            .and_then(|()| state::give_initial_msrs(&fd))
            .map_err(|source| VcpuError::SetUp { index, source })?;
        if index == 0 {
            entry::set(&fd, entry).map_err(|source| VcpuError::Entry { index, source })?;
        }
        Ok(NewVcpu { index, fd, cpuid })
    };
    (0..topology.vcpus).map(make).collect()
}

/// Makes the vCPUs of a snapshot; guest memory must be there, and served, already.
pub(crate) fn restore(vm: &Vm, states: &[VcpuState]) -> Result<Vec<NewVcpu>, VcpuError> {
    let host = HostCpuid::read(vm.kvm()).map_err(VcpuError::HostCpuid)?;
    let make = |(index, state): (u8, &VcpuState)| {
        let load = |source| VcpuError::Load { index, source };
        compat::check(state.cpuid(), &host.entries).map_err(|error| load(error.into()))?;
        let fd = vm.create_vcpu(index).map_err(|source| VcpuError::Create { index, source })?;
        state.load(vm, &fd).map_err(load)?;
        Ok(NewVcpu { index, fd, cpuid: state.cpuid().to_vec() })
    };
    (0..).zip(states).map(make).collect()
}

/// A vCPU with its thread.
#[derive(Debug)]
struct Vcpu {
    fd: Arc<Mutex<VcpuFd>>,
    cpuid: Vec<kvm_cpuid_entry2>,
    thread: JoinHandle<()>,
}

/// The running or parked vCPUs of a machine. Dropping them ends their threads.
#[derive(Debug)]
pub(crate) struct Vcpus {
    vcpus: Vec<Vcpu>,
    shared: Shared,
}

impl Vcpus {
    /// Gives each vCPU a thread, which runs `prepare` and parks.
    pub(crate) fn start(
        new: Vec<NewVcpu>,
        shared: Shared,
        prepare: impl Fn() -> Result<(), String> + Clone + Send + 'static,
    ) -> Result<Self, VcpuError> {
        sys::install_kick_handler().map_err(VcpuError::Signal)?;
        // Filled step by step: if a later thread is refused, dropping this ends the earlier ones.
        let mut vcpus = Self { vcpus: Vec::with_capacity(new.len()), shared };
        for NewVcpu { index, fd, cpuid } in new {
            let fd = Arc::new(Mutex::new(fd));
            let thread = thread::start(index, fd.clone(), vcpus.shared.clone(), prepare.clone())
                .map_err(|source| VcpuError::Thread { index, source })?;
            vcpus.vcpus.push(Vcpu { fd, cpuid, thread });
        }
        Ok(vcpus)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.vcpus.len()
    }

    /// Lets the guest run.
    pub(crate) fn resume(&self) {
        self.shared.gate.give(Order::Run);
    }

    /// Stops the guest, and waits until it has.
    ///
    /// # Errors
    /// [`VcpuError::Stuck`]: the guest stops as soon as it can; it has not been told to run on.
    pub(crate) fn pause(&self) -> Result<(), VcpuError> {
        self.order(Order::Park);
        if self.shared.gate.wait_parked(self.count(), PARK_LIMIT) { Ok(()) } else { Err(VcpuError::Stuck) }
    }

    /// Reads the state of all vCPUs, which are paused.
    pub(crate) fn save(&self, vm: &Vm) -> Result<Vec<VcpuState>, VcpuError> {
        let indices = msr::indices(vm.kvm()).map_err(|source| VcpuError::Save {
            index: 0,
            source: VcpuStateError::Step { step: "KVM_GET_MSR_INDEX_LIST", source },
        })?;
        let read = |(index, vcpu): (u8, &Vcpu)| {
            let fd = vcpu.fd.lock().unwrap_or_else(PoisonError::into_inner);
            VcpuState::read(vm, &fd, &vcpu.cpuid, &indices)
                .map_err(|source| VcpuError::Save { index, source })
        };
        (0..).zip(&self.vcpus).map(read).collect()
    }

    fn order(&self, order: Order) {
        self.shared.gate.give(order);
        for vcpu in &self.vcpus {
            // It fails for a thread that has ended, which needs no kick.
            let _ = vcpu.thread.kill(sys::kick_signal());
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.order(Order::End);
        if !self.shared.gate.wait_parked(self.count(), END_LIMIT) {
            // One waits in the kernel for a page that never comes; only the end of the process ends that.
            return;
        }
        for vcpu in self.vcpus.drain(..) {
            let _ = vcpu.thread.join();
        }
    }
}

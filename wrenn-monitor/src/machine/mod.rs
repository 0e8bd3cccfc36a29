//! A machine with its vCPUs, memory and devices, running or paused.
//!
//! ```text
//!   boot ─────► running ◄──resume── paused ◄───── restore
//!                  └──────pause──────►│ snapshot: save, save_state (freeze)
//! ```
//!
//! [`boot`] and [`restore`] make one or fail without a trace. [`save`] takes a snapshot. Whoever owns a
//! [`Machine`] runs its [`subscribers`](Machine::subscribers) on the same thread, so nothing is under way in a
//! device while a machine is saved.

use std::sync::{Arc, Mutex};

use event_manager::MutEventSubscriber;
use wrenn_vmm::api::MachineConfig;

mod boot;
mod devices;
mod faults;
mod freeze;
mod restore;
mod save;
#[allow(unsafe_code)]
mod sys;

pub(crate) use boot::{StartError, StartPlan};
pub(crate) use restore::{LoadError, MemorySource, Origin};
pub(crate) use save::SaveError;

use crate::exit::ExitSignal;
use crate::memory::{DirtyPages, FaultLink, Memory};
use crate::seccomp::{self, Thread};
use crate::vcpu::{Gate, NewVcpu, Shared, VcpuError, Vcpus};
use crate::vm::Vm;
use devices::Devices;
use faults::FaultWatch;

/// What the main loop runs.
pub(crate) type Subscriber = Arc<Mutex<dyn MutEventSubscriber>>;

/// How the process treats its machine, whichever way that comes about.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Where the machine's end is told.
    pub(crate) exit: ExitSignal,
    /// Whether the system calls of its threads are restricted.
    pub(crate) seccomp: bool,
}

/// A machine. Fields drop in this order: no vCPU may be in the guest when the rest goes, so none sees zeros where the
/// fault server's pages were to be; nobody waits for such a page any more when KVM goes, which waits for whoever does; and
/// KVM lets go of the memory before it is unmapped.
pub(crate) struct Machine {
    vcpus: Vcpus,
    devices: Devices,
    link: Option<FaultLink>,
    vm: Vm,
    memory: Memory,
    /// What changed since the last snapshot, if that is tracked.
    dirty: Option<DirtyPages>,
    config: MachineConfig,
    paused: bool,
    host: Host,
}

impl Machine {
    /// Brings the parts together; the vCPUs have threads now, and are parked.
    fn assemble(
        (vm, mut memory, devices): (Vm, Memory, Devices),
        vcpus: Vec<NewVcpu>,
        config: MachineConfig,
        host: &Host,
    ) -> Result<Self, VcpuError> {
        let shared = Shared {
            gate: Arc::new(Gate::new()),
            ports: devices.ports(),
            mmio: devices.mmio(),
            exit: host.exit.clone(),
        };
        let restricted = host.seccomp;
        let prepare = move || match restricted {
            true => seccomp::apply(Thread::Vcpu).map_err(|error| error.to_string()),
            false => Ok(()),
        };
        let vcpus = Vcpus::start(vcpus, shared, prepare)?;
        let dirty = config.track_dirty_pages.then(|| DirtyPages::none(memory.guest()));
        let link = memory.take_fault_link();
        Ok(Self { vcpus, devices, link, vm, memory, dirty, config, paused: true, host: host.clone() })
    }

    /// What the main loop has to run for as long as the machine exists.
    pub(crate) fn subscribers(&self) -> std::io::Result<Vec<Subscriber>> {
        let mut all: Vec<Subscriber> = self.devices.workers().map(|worker| worker as Subscriber).collect();
        if let Some(link) = &self.link {
            all.push(Arc::new(Mutex::new(FaultWatch::new(link, self.host.exit.clone())?)));
        }
        Ok(all)
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Whether its vCPUs are parked.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Parks the vCPUs and the devices. Pausing a paused machine does nothing.
    ///
    /// # Errors
    /// If a vCPU does not stop; the machine then runs on.
    pub(crate) fn pause(&mut self) -> Result<(), VcpuError> {
        if self.paused {
            return Ok(());
        }
        if let Err(stuck) = self.vcpus.pause() {
            self.vcpus.resume();
            return Err(stuck);
        }
        self.devices.suspend();
        self.paused = true;
        Ok(())
    }

    /// Lets vCPUs and devices go on. Resuming a running machine does nothing.
    pub(crate) fn resume(&mut self) {
        if self.paused {
            self.devices.resume();
            self.vcpus.resume();
            self.paused = false;
        }
    }
}

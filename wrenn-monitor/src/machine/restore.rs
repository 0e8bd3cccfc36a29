//! Bringing a machine back from a snapshot.
//!
//! Order: the state is read and checked whole before anything is made. Memory comes next, and with it the fault
//! server, since loading a vCPU's state writes to memory. The devices are there, but idle, before the interrupt
//! controllers get their state; they go on when the machine is resumed.

use std::path::Path;

use wrenn_vmm::api::{MachineConfig, NetworkOverride};

use super::devices::{DeviceError, Devices, Machinery};
use super::{Host, Machine};
use crate::memory::{MapError, Memory, RegionSpec, regions_of};
use crate::snapshot::{MachineState, StateFileError};
use crate::vcpu::{self, VcpuError};
use crate::vm::{Vm, VmError};

/// A snapshot could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("the snapshot's state could not be read")]
    State(#[from] StateFileError),
    #[error("the snapshot's memory could not be loaded")]
    Memory(#[from] MapError),
    #[error("the snapshot has no network interface {iface:?} to be overridden")]
    NoSuchInterface { iface: String },
    #[error(
        "the snapshot does not tell when it was taken, so the guest's clock cannot be advanced: load it without clock_realtime"
    )]
    NoTime,
    #[error("the virtual machine could not be made")]
    Vm(#[from] VmError),
    #[error("a device of the snapshot could not be restored")]
    Device(#[from] DeviceError),
    #[error("the snapshot's processors could not be restored")]
    Vcpu(#[from] VcpuError),
}

/// What a machine is rebuilt from, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// The state file.
    pub(crate) state: &'a Path,
    pub(crate) memory: MemorySource<'a>,
    /// Whether writes to its memory are logged from here on.
    pub(crate) track_dirty_pages: bool,
    pub(crate) network_overrides: &'a [NetworkOverride],
    /// Whether the guest's kvmclock is advanced by the time that passed.
    pub(crate) clock_realtime: bool,
}

/// Where guest memory comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MemorySource<'a> {
    /// A memory file.
    File(&'a Path),
    /// The socket of a fault server.
    FaultServer(&'a Path),
    /// The socket of a fault server with a cache.
    Cache(&'a Path),
}

impl Machine {
    /// Rebuilds the machine of a snapshot in the empty machine that `vm` makes, paused.
    ///
    /// `vm` is called once the snapshot's state has proved sound.
    pub(crate) fn restore(
        vm: impl FnOnce() -> Result<Vm, VmError>,
        origin: &Origin<'_>,
        host: &Host,
    ) -> Result<Self, LoadError> {
        let state = MachineState::read(origin.state)?;
        check_overrides(origin.network_overrides, &state)?;
        if origin.clock_realtime && !state.vm.knows_time() {
            return Err(LoadError::NoTime);
        }
        let config = MachineConfig {
            vcpu_count: state.vcpus.len() as u8,
            mem_size_mib: state.mem_size_mib,
            smt: state.smt,
            track_dirty_pages: origin.track_dirty_pages,
            ..MachineConfig::default()
        };
        let memory = load_memory(&regions_of((state.mem_size_mib as u64) << 20), origin.memory)?;
        let vm = vm()?;
        vm.map_memory(memory.guest(), config.track_dirty_pages)?;
        let machinery = Machinery { vm: &vm, guest: memory.guest(), exit: &host.exit };
        let devices = Devices::restore(&machinery, &state.serial, state.virtio, origin.network_overrides)?;
        let vcpus = vcpu::restore(&vm, &state.vcpus)?;
        vm.restore(&state.vm, origin.clock_realtime)?;
        Ok(Self::assemble((vm, memory, devices), vcpus, config, host)?)
    }
}

fn load_memory(regions: &[RegionSpec], source: MemorySource<'_>) -> Result<Memory, MapError> {
    match source {
        MemorySource::File(path) => Memory::from_file(regions, path),
        MemorySource::FaultServer(socket) => Memory::from_fault_server(regions, socket),
        MemorySource::Cache(socket) => Memory::from_cache(regions, socket),
    }
}

/// An override that hits nothing is a mistake, and would leave the guest on the snapshot's TAP.
fn check_overrides(overrides: &[NetworkOverride], state: &MachineState) -> Result<(), LoadError> {
    for new in overrides {
        if !state.virtio.iter().any(|device| device.interface() == Some(&new.iface_id)) {
            return Err(LoadError::NoSuchInterface { iface: new.iface_id.clone() });
        }
    }
    Ok(())
}

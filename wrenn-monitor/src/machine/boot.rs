//! Booting a new machine.

use std::path::Path;

use wrenn_vmm::api::MachineConfig;

use super::devices::{DeviceError, Devices, Machinery};
use super::{Host, Machine};
use crate::boot::{self, BootError, BootPlan, Kernel};
use crate::devices::VirtioDevice;
use crate::memory::{MapError, Memory, regions_of};
use crate::vcpu::{self, Topology, VcpuError};
use crate::vm::{Vm, VmError};

/// A machine could not be booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("the virtual machine could not be made")]
    Vm(#[from] VmError),
    #[error("the guest's memory could not be made")]
    Memory(#[from] MapError),
    #[error("a device could not be made")]
    Device(#[from] DeviceError),
    #[error("the guest could not be loaded")]
    Boot(#[from] BootError),
    #[error("the guest's processors could not be started")]
    Vcpu(#[from] VcpuError),
}

/// What is to be booted, checked already.
pub(crate) struct StartPlan<'a> {
    pub(crate) config: MachineConfig,
    pub(crate) kernel: &'a Kernel,
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) cmdline: &'a str,
    /// In the order of their windows.
    pub(crate) virtio: Vec<Box<dyn VirtioDevice>>,
}

impl Machine {
    /// Builds the machine in the empty `vm`, paused at the entry of its kernel.
    pub(crate) fn boot(vm: Vm, plan: StartPlan<'_>, host: &Host) -> Result<Self, StartError> {
        let StartPlan { config, kernel, initrd, cmdline, virtio } = plan;
        let memory = Memory::fresh(&regions_of((config.mem_size_mib as u64) << 20))?;
        let vcpus = config.vcpu_count;
        let to_boot = BootPlan { kernel, initrd, cmdline, vcpus, virtio_devices: virtio.len() };
        let entry = boot::load(memory.guest(), &to_boot)?;
        vm.map_memory(memory.guest(), config.track_dirty_pages)?;
        let machinery = Machinery { vm: &vm, guest: memory.guest(), exit: &host.exit };
        let devices = Devices::attach(&machinery, virtio)?;
        let topology = Topology { vcpus, smt: config.smt };
        let vcpus = vcpu::create(&vm, topology, entry)?;
        Ok(Self::assemble((vm, memory, devices), vcpus, config, host)?)
    }
}

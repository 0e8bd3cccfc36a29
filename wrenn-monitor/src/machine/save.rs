//! Taking a snapshot of a paused machine.

use wrenn_vmm::api::{SavedMemory, SnapshotCreate, SnapshotType, StateSave};

use super::Machine;
use super::devices::DeviceError;
use super::freeze::{self, FreezeError};
use crate::memory::{DumpError, DumpKind};
use crate::snapshot::{MachineState, TargetError, Targets, write_state};
use crate::vcpu::VcpuError;
use crate::vm::VmError;

/// A snapshot could not be taken. The machine is still paused, whole, and can be resumed or saved again; what was
/// written is worth nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    #[error("the microVM runs: pause it first")]
    Running,
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("the guest's memory could not be saved")]
    Memory(#[from] DumpError),
    #[error("a device could not be saved")]
    Device(#[from] DeviceError),
    #[error("the guest's processors could not be saved")]
    Vcpu(#[from] VcpuError),
    #[error("the virtual machine could not be saved")]
    Vm(#[from] VmError),
    #[error("guest memory could not be frozen")]
    Freeze(#[from] FreezeError),
}

impl Machine {
    /// Writes a snapshot to the files that `request` names, and brings it to disk.
    ///
    /// A diff holds the pages that changed since the last snapshot, or since the machine was made if there was
    /// none. Without `track_dirty_pages` it holds all that may differ from what the machine's memory was made from.
    pub(crate) fn save(&mut self, request: &SnapshotCreate) -> Result<(), SaveError> {
        if !self.paused {
            return Err(SaveError::Running);
        }
        let targets = Targets::open(request, self.memory.source_file())?;
        // The state first: reading it writes to no guest memory, and its failures are the cheaper ones.
        let state = self.state()?;
        let guest = self.memory.guest();
        if let Some(dirty) = &mut self.dirty {
            dirty.collect(guest, |slot, size| self.vm.take_dirty_log(slot, size))?;
        }
        let kind = match (request.snapshot_type, &self.dirty) {
            (SnapshotType::Full, _) => DumpKind::Full,
            (SnapshotType::Diff, Some(dirty)) => DumpKind::Changed(dirty.pages()),
            (SnapshotType::Diff, None) => DumpKind::Touched,
        };
        let written = self.memory.dump(&targets.memory, kind)?;
        targets.write_state(&state)?;
        if let Some(dirty) = &mut self.dirty {
            dirty.forget(guest);
        }
        log::info!("a {:?} snapshot was taken, with {written} bytes of memory", request.snapshot_type);
        Ok(())
    }

    /// Writes everything but memory to the file that `request` names, and says where memory is.
    ///
    /// With a `freeze_socket` a copy of the process holds the memory as it is now.
    pub(crate) fn save_state(&self, request: &StateSave) -> Result<SavedMemory, SaveError> {
        if !self.paused {
            return Err(SaveError::Running);
        }
        write_state(&request.snapshot_path, &self.state()?, self.memory.source_file())?;
        if let Some(socket) = &request.freeze_socket {
            freeze::freeze(socket)?;
        }
        Ok(SavedMemory { regions: self.memory.layout() })
    }

    fn state(&self) -> Result<MachineState, SaveError> {
        let (serial, virtio) = self.devices.save()?;
        Ok(MachineState {
            mem_size_mib: self.config.mem_size_mib,
            smt: self.config.smt,
            vm: self.vm.save()?,
            vcpus: self.vcpus.save(&self.vm)?,
            serial,
            virtio,
        })
    }
}

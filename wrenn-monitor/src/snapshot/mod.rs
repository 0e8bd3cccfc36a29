//! Snapshots on disk: the state file, and the two files of a snapshot that is being taken.
//!
//! A snapshot is a state file ([`container`], [`MachineState`]) and a memory file ([`crate::memory`]). Both are
//! written in place, where the request says, and brought to disk; staging and renaming are the caller's. A
//! snapshot that fails half way leaves files that are worth nothing; the machine they were taken of is unharmed,
//! which is why a file that it still reads its memory from is refused as a target.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wrenn_vmm::api::SnapshotCreate;

mod container;

pub(crate) use container::ContainerError;

use crate::devices::{SerialState, VirtioMmioState};
use crate::file::{FileError, open_to_read, open_to_write};
use crate::limits::{self, LimitError};
use crate::memory::FileId;
use crate::vcpu::VcpuState;
use crate::vm::{VmState, VmStateError};

/// The largest state file that is looked at: a machine of 32 vCPUs needs about half a MiB.
const MAX_STATE: u64 = 16 << 20;

/// A state file could not be had, or is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateFileError {
    #[error("there is no state file")]
    File(#[from] FileError),
    #[error("the state file {path:?} could not be read")]
    Read { path: PathBuf, source: io::Error },
    #[error("the state file {path:?} has {size} bytes, which no state takes")]
    TooLarge { path: PathBuf, size: u64 },
    #[error("the state file {path:?} cannot be used")]
    Container { path: PathBuf, source: ContainerError },
    #[error("the state file {path:?} does not hold the state of a machine")]
    Encoding { path: PathBuf, source: postcard::Error },
    #[error("the state file {path:?} describes a machine that cannot be")]
    Invalid { path: PathBuf, source: InvalidState },
}

/// A state that no machine of this monitor can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidState {
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error(transparent)]
    Vm(#[from] VmStateError),
}

/// What is wrong with the body of a state file.
enum BodyFault {
    Encoding(postcard::Error),
    Invalid(InvalidState),
}

/// For fuzzers: takes or refuses `file` as a state file, and its bytes behind a header as the body of one, so that
/// the checksum does not keep them from what lies behind it. What is taken is written the same again.
pub(crate) fn fuzz(file: &[u8]) {
    let mut bodies = vec![file];
    bodies.extend(container::unwrap(file));
    for body in bodies {
        let Ok(state) = MachineState::decode(body) else { continue };
        let written = state.to_bytes().expect("what was read can be written");
        let body = container::unwrap(&written).expect("what was wrapped can be unwrapped");
        let again = MachineState::decode(body).unwrap_or_else(|_| panic!("what was written can be read"));
        assert_eq!(again.to_bytes().expect("it can be written again"), written);
    }
}

/// Everything about a machine but its memory's contents.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MachineState {
    /// The guest's memory in MiB; [`crate::memory::regions_of`] says where it is.
    pub(crate) mem_size_mib: usize,
    /// Whether pairs of vCPUs are threads of a core; their CPUID says so in detail.
    pub(crate) smt: bool,
    pub(crate) vm: VmState,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) serial: SerialState,
    /// In the order of their windows and interrupt lines.
    pub(crate) virtio: Vec<VirtioMmioState>,
}

impl MachineState {
    /// Reads and checks a state file. What the virtio devices' states say is checked when they are restored.
    pub(crate) fn read(path: &Path) -> Result<Self, StateFileError> {
        let (file, metadata) = open_to_read(path)?;
        let path = || path.to_owned();
        if metadata.len() > MAX_STATE {
            return Err(StateFileError::TooLarge { path: path(), size: metadata.len() });
        }
        let mut bytes = Vec::new();
        // Bounded again: the file may be growing.
        file.take(MAX_STATE)
            .read_to_end(&mut bytes)
            .map_err(|source| StateFileError::Read { path: path(), source })?;
        let body =
            container::unwrap(&bytes).map_err(|source| StateFileError::Container { path: path(), source })?;
        Self::decode(body).map_err(|fault| match fault {
            BodyFault::Encoding(source) => StateFileError::Encoding { path: path(), source },
            BodyFault::Invalid(source) => StateFileError::Invalid { path: path(), source },
        })
    }

    /// Reads and checks what a state file's container holds.
    fn decode(body: &[u8]) -> Result<Self, BodyFault> {
        let state: Self = postcard::from_bytes(body).map_err(BodyFault::Encoding)?;
        state.check().map_err(BodyFault::Invalid)?;
        Ok(state)
    }

    fn check(&self) -> Result<(), InvalidState> {
        limits::check_vcpus(self.vcpus.len(), false)?;
        limits::check_memory(self.mem_size_mib)?;
        limits::check_virtio_devices(self.virtio.len())?;
        self.vm.check()?;
        Ok(())
    }

    /// The bytes of the state file.
    fn to_bytes(&self) -> Result<Vec<u8>, postcard::Error> {
        Ok(container::wrap(&postcard::to_allocvec(self)?))
    }
}

/// The files of a snapshot could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("the snapshot's file cannot be written")]
    File(#[from] FileError),
    #[error("{path:?} is to hold the snapshot's state and its memory: give each a file of its own")]
    OneFile { path: PathBuf },
    #[error(
        "{path:?} is the memory file that this machine was restored from and still reads: choose another"
    )]
    StillRead { path: PathBuf },
    #[error("the state does not fit its encoding")]
    Encode(#[source] postcard::Error),
    #[error("the state file {path:?} could not be written")]
    Write { path: PathBuf, source: io::Error },
}

/// The two files that a snapshot is written to.
#[derive(Debug)]
pub(crate) struct Targets {
    state: File,
    state_path: PathBuf,
    /// The memory file; its contents are still what they were.
    pub(crate) memory: File,
}

impl Targets {
    /// Opens the files that `request` names, and changes nothing in them; `source` is the memory file that the
    /// machine still reads.
    pub(crate) fn open(request: &SnapshotCreate, source: Option<FileId>) -> Result<Self, TargetError> {
        let (state, state_metadata) = open_to_write(&request.snapshot_path)?;
        let (memory, memory_metadata) = open_to_write(&request.mem_file_path)?;
        let (state_id, memory_id) = (FileId::of(&state_metadata), FileId::of(&memory_metadata));
        if state_id == memory_id {
            return Err(TargetError::OneFile { path: request.snapshot_path.clone() });
        }
        for (id, path) in [(memory_id, &request.mem_file_path), (state_id, &request.snapshot_path)] {
            if source == Some(id) {
                return Err(TargetError::StillRead { path: path.clone() });
            }
        }
        Ok(Self { state, state_path: request.snapshot_path.clone(), memory })
    }

    /// Writes the state file and brings it to disk.
    pub(crate) fn write_state(&self, state: &MachineState) -> Result<(), TargetError> {
        put(&self.state, &self.state_path, state)?;
        self.state.sync_all().map_err(|source| TargetError::Write { path: self.state_path.clone(), source })
    }
}

/// Writes a state file without a memory file beside it, and leaves it to the caller to bring it to disk; `source` is
/// the memory file that the machine still reads.
pub(crate) fn write_state(
    path: &Path,
    state: &MachineState,
    source: Option<FileId>,
) -> Result<(), TargetError> {
    let (file, metadata) = open_to_write(path)?;
    if source == Some(FileId::of(&metadata)) {
        return Err(TargetError::StillRead { path: path.to_owned() });
    }
    put(&file, path, state)
}

/// Replaces what is in `file`.
fn put(file: &File, path: &Path, state: &MachineState) -> Result<(), TargetError> {
    let bytes = state.to_bytes().map_err(TargetError::Encode)?;
    let written = file.set_len(0).and_then(|()| file.write_all_at(&bytes, 0));
    written.map_err(|source| TargetError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;

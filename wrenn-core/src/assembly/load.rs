//! What a monitor is told to load.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use wrenn_vmm::api::{MemBackend, MemBackendType, SnapshotLoad};

use crate::error::Cause;
use crate::restore::RestoreMode;
use crate::stored::Stored;

/// The one file that holds all of the memory.
pub(super) fn flat_layer(from: &Stored) -> Result<PathBuf, Cause> {
    let layers = from.memory.layers_in_use().len();
    from.memory.flat_layer().ok_or_else(|| Cause::NotOneLayer { id: from.record.id.clone(), layers })
}

/// That file, readable for the user of any monitor: sandboxes share it. Its directory is closed to everybody.
pub(super) fn show_layer(from: &Stored) -> Result<PathBuf, Cause> {
    let layer = flat_layer(from)?;
    fs::set_permissions(&layer, Permissions::from_mode(0o444))
        .map_err(|source| Cause::io("open up", &layer, source))?;
    Ok(layer)
}

/// Firecracker's own way of loading a snapshot.
pub(super) fn snapshot_load(
    state: PathBuf,
    mode: RestoreMode,
    backend_path: PathBuf,
    reads_memory: bool,
) -> SnapshotLoad {
    let backend_type = match mode {
        RestoreMode::Uffd => MemBackendType::Uffd,
        RestoreMode::File => MemBackendType::File,
    };
    SnapshotLoad {
        snapshot_path: state,
        mem_backend: Some(MemBackend { backend_type, backend_path }),
        // Without it a diff of such a monitor would hold everything resident.
        track_dirty_pages: !reads_memory,
        resume_vm: true,
        ..SnapshotLoad::default()
    }
}

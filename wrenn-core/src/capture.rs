//! Capturing a paused guest: machine state, memory and disk, committed as one snapshot.
//!
//! The order keeps two promises. Until the snapshot is committed nothing is lost that the guest needs to run on,
//! so every failure ends with the guest running. And once it is committed, the guest never runs again on this
//! disk, so the snapshot's three parts belong to one instant.
//!
//! ```text
//! stop the vCPUs -> state and memory dump -> memory image -> disk synced and linked -> commit
//!       \_______________ any failure: remove what was staged, start the vCPUs _________/
//! ```

use std::fs::{self, File};
use std::path::Path;

use serde::{Deserialize, Serialize};
use wrenn_agent_api::AccessToken;
use wrenn_base::{Bytes, SandboxId};
use wrenn_storage::{Digest, Imported, MemoryImage, Snapshot, StagedSnapshot};
use wrenn_vmm::api::{SnapshotCreate, SnapshotType};

use crate::error::Cause;
use crate::layout::SandboxDirs;
use crate::machine::Live;
use crate::spec::SandboxSpec;
use crate::step::blocking;

pub(crate) const STATE: &str = "vmstate";
pub(crate) const MEMORY: &str = "memory.manifest";
pub(crate) const DISK: &str = "disk.cow";
const DUMP: &str = "memory.dump";

/// Whether a snapshot wrote the whole of the guest's memory or what changed since the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SnapshotKind {
    /// The whole memory, zero pages left out.
    Full,
    /// The pages written since the snapshot that the guest was resumed from.
    Diff,
}

/// What a snapshot remembers beside its files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: SandboxId,
    pub(crate) spec: SandboxSpec,
    /// The root image: the disk's changes fit no other.
    pub(crate) image: Digest,
    pub(crate) token: AccessToken,
    pub(crate) kind: SnapshotKind,
    pub(crate) memory_written: Bytes,
}

/// A committed snapshot with its memory image.
pub(crate) struct Captured {
    pub(crate) snapshot: Snapshot,
    pub(crate) memory: MemoryImage,
    pub(crate) record: Record,
}

/// Captures the guest as generation `generation`: a diff on `base`, or everything where there is none.
///
/// On success the guest is stopped for good. On failure its vCPUs run again, if they still can; what was staged is
/// gone; and the next capture must be a full one, because the monitor may have forgotten which pages are dirty.
pub(crate) async fn capture(
    live: &Live,
    base: Option<&MemoryImage>,
    generation: u64,
) -> Result<Captured, Cause> {
    let store = live.identity.dirs.snapshots();
    let staged = blocking(move || store.stage(generation)).await?;
    let result = match live.while_alive(async { Ok(live.monitor.client().pause().await?) }).await {
        Ok(()) => write(live, base, staged).await,
        Err(cause) => Err(cause),
    };
    if result.is_err() {
        let resumed = live.while_alive(async { Ok(live.monitor.client().resume().await?) }).await;
        if let Err(e) = resumed {
            tracing::warn!(sandbox = %live.identity.id, error = %e, "the guest does not run on after a failed pause");
        }
    }
    result
}

async fn write(live: &Live, base: Option<&MemoryImage>, staged: StagedSnapshot) -> Result<Captured, Cause> {
    let kind = if base.is_some() { SnapshotKind::Diff } else { SnapshotKind::Full };
    let request = SnapshotCreate {
        snapshot_type: match kind {
            SnapshotKind::Full => SnapshotType::Full,
            SnapshotKind::Diff => SnapshotType::Diff,
        },
        snapshot_path: staged.file(STATE),
        mem_file_path: staged.file(DUMP),
    };
    live.while_alive(async { Ok(live.monitor.client().create_snapshot(&request).await?) }).await?;
    let (identity, image) = (live.identity.clone(), live.image.clone());
    let (base, device, cow) = (base.cloned(), live.disk.device().to_owned(), live.disk.cow().to_owned());
    blocking(move || {
        let imported = import(&identity.dirs, base.as_ref(), &staged, identity.spec.memory.bytes())?;
        link_disk(&device, &cow, &staged.file(DISK))?;
        let record = Record {
            id: identity.id,
            spec: identity.spec,
            image,
            token: identity.token,
            kind,
            memory_written: imported.written,
        };
        let snapshot = staged.commit(&[STATE, MEMORY, DISK], &record)?;
        Ok(Captured { snapshot, memory: imported.image, record })
    })
    .await
}

/// Turns the monitor's dump into a layer and writes the manifest; no layer without a manifest stays behind.
fn import(
    dirs: &SandboxDirs,
    base: Option<&MemoryImage>,
    staged: &StagedSnapshot,
    guest_size: Bytes,
) -> Result<Imported, Cause> {
    let layers = dirs.open_layers()?;
    let dump = staged.file(DUMP);
    let imported = match base {
        None => MemoryImage::import_full(&dump, guest_size, &layers)?,
        Some(base) => {
            let imported = base.import_diff(&dump)?;
            fs::remove_file(&dump).map_err(|source| Cause::io("remove", &dump, source))?;
            imported
        }
    };
    imported.image.save(&staged.file(MEMORY))?;
    Ok(imported)
}

/// Makes the disk's changes part of the snapshot.
///
/// The link shares the file with the running disk, which is safe only because the guest is stopped by now and, once
/// the snapshot is committed, never runs on this file again.
fn link_disk(device: &Path, cow: &Path, link: &Path) -> Result<(), Cause> {
    for path in [device, cow] {
        let synced = File::open(path).and_then(|file| file.sync_all());
        synced.map_err(|source| Cause::io("sync", path, source))?;
    }
    fs::hard_link(cow, link).map_err(|source| Cause::io("link", link, source))
}

/// Removes the snapshots that `keep` replaced, and the layers that only they referred to.
pub(crate) fn prune(dirs: &SandboxDirs, keep: &Snapshot, memory: &MemoryImage) -> Result<(), Cause> {
    dirs.snapshots().prune(keep.generation())?;
    drop_orphaned_layers(dirs, Some(memory))
}

/// Removes every layer that `kept` does not refer to.
pub(crate) fn drop_orphaned_layers(dirs: &SandboxDirs, kept: Option<&MemoryImage>) -> Result<(), Cause> {
    let in_use = kept.map(MemoryImage::layers_in_use).unwrap_or_default();
    dirs.open_layers()?.retain(&in_use)?;
    Ok(())
}

//! Capturing a paused guest for good: machine state, memory and disk, committed as one snapshot.
//!
//! The order keeps two promises. Until the snapshot is committed nothing is lost that the guest needs to run on,
//! so every failure ends with the guest running. And once it is committed, the guest never runs again on this
//! disk, so the snapshot's three parts belong to one instant.
//!
//! ```text
//! stop the vCPUs -> state and memory -> memory image -> disk synced and linked -> commit
//!       \_______________ any failure: remove what was staged, start the vCPUs _________/
//! ```
//!
//! [`running`](crate::running) captures a guest that then goes on.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use wrenn_base::Bytes;
use wrenn_storage::{MemoryImage, StagedSnapshot};

use crate::containment;
use crate::error::Cause;
use crate::layout::StoreDir;
use crate::machine::Live;
use crate::memory::{self, Saved};
use crate::metrics;
use crate::step::{blocking, checkpoint, unless_missing};
use crate::stored::{DISK, MEMORY, Record, STATE, SnapshotKind, Stored, WORKING_SET};

/// Captures the guest as generation `generation`: a diff on `base`, or everything where there is none.
///
/// On success the guest is stopped for good. On failure its vCPUs run again, if they still can, and what was staged is
/// gone; a monitor that logs which pages are dirty may have forgotten some of them.
pub(crate) async fn capture(
    live: &Arc<Live>,
    base: Option<&Stored>,
    memory: Option<MemoryImage>,
    generation: u64,
) -> Result<Stored, Cause> {
    let store = live.identity.dirs.store.snapshots();
    let staged = blocking(move || store.stage(generation)).await?;
    checkpoint("pause.staged")?;
    let result = match live.while_alive(async { Ok(live.monitor.client().pause().await?) }).await {
        Ok(()) => write(live, base, memory, staged).await,
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

async fn write(
    live: &Arc<Live>,
    base: Option<&Stored>,
    memory: Option<MemoryImage>,
    staged: StagedSnapshot,
) -> Result<Stored, Cause> {
    checkpoint("pause.stopped")?;
    let saved = memory::save(live, &staged, memory.is_some()).await?;
    checkpoint("pause.state-saved")?;
    let (live, working_set) = (Arc::clone(live), base.map(|base| base.file(WORKING_SET)));
    blocking(move || {
        let disk = staged.file(DISK);
        link_disk(live.disk.device(), live.disk.cow(), &disk)?;
        checkpoint("pause.disk-linked")?;
        if let Some(known) = working_set {
            // It may not be there, and is only a hint.
            let _ = fs::hard_link(known, staged.file(WORKING_SET));
        }
        commit(&live, saved, memory, &live.identity.dirs.store, staged)
    })
    .await
}

/// Writes the memory image and commits the snapshot, whose state and disk are there already.
pub(crate) fn commit(
    live: &Live,
    saved: Saved,
    base: Option<MemoryImage>,
    store: &StoreDir,
    staged: StagedSnapshot,
) -> Result<Stored, Cause> {
    let kind = if base.is_some() { SnapshotKind::Diff } else { SnapshotKind::Full };
    let layers = store.open_layers()?;
    let imported = memory::import(saved, base, live.identity.spec.memory.bytes(), &layers)?;
    checkpoint("snapshot.memory-written")?;
    imported.image.save(&staged.file(MEMORY))?;
    checkpoint("snapshot.manifest-saved")?;
    metrics::memory_written(kind, imported.written);
    let record = record(live, kind, imported.written);
    let generation = staged.generation();
    let snapshot = match staged.commit(&[STATE, DISK], &record) {
        Ok(snapshot) => snapshot,
        // It has its name and keeps it, though the file system said no: the guest must not run on over its disk.
        Err(e) if store.snapshots().latest()? == Some(generation) => {
            tracing::error!(sandbox = %record.id, error = %e, "a snapshot is complete, but may not survive a power loss");
            store.snapshots().open::<Record>(generation)?.0
        }
        Err(e) => return Err(e.into()),
    };
    checkpoint("snapshot.committed").unwrap_or_else(|e| {
        // It is there: what fails now is no failure of the snapshot.
        tracing::warn!(error = %e, "after a snapshot was committed");
    });
    let manifest = snapshot.file(MEMORY);
    Ok(Stored { snapshot, record, memory: imported.image, manifest })
}

fn record(live: &Live, kind: SnapshotKind, memory_written: Bytes) -> Record {
    Record {
        id: live.identity.id.clone(),
        spec: live.current_spec(),
        image: live.image.clone(),
        token: live.identity.token.clone(),
        kind,
        memory_written,
    }
}

/// Makes the disk's changes part of the snapshot.
///
/// The link shares the file with the running disk, which is safe only because the guest is stopped by now and, once
/// the snapshot is committed, never runs on this file again. Where there is no device-mapper it is the monitor's user's,
/// and becomes the host's here: a monitor whose guest runs on after all has it open.
fn link_disk(device: &Path, cow: &Path, link: &Path) -> Result<(), Cause> {
    sync_disk(device, cow)?;
    fs::hard_link(cow, link).map_err(|source| Cause::io("link", link, source))?;
    containment::take_over(link).map_err(|source| Cause::io("take over", link, source))
}

/// Brings what the guest wrote to the file that holds its changes.
pub(crate) fn sync_disk(device: &Path, cow: &Path) -> Result<(), Cause> {
    for path in [device, cow] {
        let synced: io::Result<()> = File::open(path).and_then(|file| file.sync_all());
        synced.map_err(|source| Cause::io("sync", path, source))?;
    }
    Ok(())
}

/// Removes the snapshots that `keep` replaced, and the layers that only they referred to.
pub(crate) fn prune(store: &StoreDir, keep: &Stored) -> Result<(), Cause> {
    store.snapshots().prune(keep.snapshot.generation())?;
    // What it began with, if that was another's, is in it.
    let origin = store.origin();
    unless_missing(fs::remove_file(&origin)).map_err(|source| Cause::io("remove", &origin, source))?;
    drop_orphaned_layers(store, Some(&keep.memory))
}

/// Removes every layer that `kept` does not refer to.
pub(crate) fn drop_orphaned_layers(store: &StoreDir, kept: Option<&MemoryImage>) -> Result<(), Cause> {
    let in_use = kept.map(MemoryImage::layers_in_use).unwrap_or_default();
    store.open_layers()?.retain(&in_use)?;
    Ok(())
}

//! Guest memory on its way into a memory image.
//!
//! A monitor that lets its memory be read ([`wrenn_vmm::GuestMemory`]) is read straight into the image, once: what the
//! guest has of its own is what it wrote since its boot or restore. Any other monitor dumps memory into a file, which
//! then becomes a layer, or is reduced to what differs from the base.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use wrenn_base::Bytes;
use wrenn_storage::{Imported, LayerDir, MemoryImage, StagedSnapshot};
use wrenn_vmm::GuestMemory;
use wrenn_vmm::api::{SavedMemory, SnapshotCreate, SnapshotType, StateSave};

use crate::containment::Outgoing;
use crate::error::Cause;
use crate::machine::Live;
use crate::step::blocking;
use crate::stored::STATE;

/// The monitor's dump, until it is imported.
const DUMP: &str = "memory.dump";
/// How much is read from the guest at a time: the image's writer takes such pieces without copying them.
const PIECE: u64 = 1 << 20;

/// A stopped guest's memory, wherever it is now.
pub(crate) enum Saved {
    /// In the address space of a process that stands still.
    Process(GuestMemory),
    /// In a file, with holes where nothing changed or, in a full dump, where it is zero.
    Dump(PathBuf),
}

/// Saves the state of the paused machine, and sees that its memory can be imported.
pub(crate) async fn save(live: &Arc<Live>, staged: &StagedSnapshot, diff: bool) -> Result<Saved, Cause> {
    match live.reads_memory {
        true => Ok(Saved::Process(live.monitor.guest_memory(save_state(live, staged, None).await?)?)),
        false => dump(live, staged, diff).await,
    }
}

/// Saves the state of the paused machine, whose monitor lets its memory be read, and answers where that is; with a
/// `freeze_socket`, in the copy of the monitor that connects to it.
pub(crate) async fn save_state(
    live: &Arc<Live>,
    staged: &StagedSnapshot,
    freeze_socket: Option<PathBuf>,
) -> Result<SavedMemory, Cause> {
    let state = outgoing(live, STATE).await?;
    let request = StateSave { snapshot_path: state.path().to_owned(), freeze_socket };
    let saved = live.while_alive(async { Ok(live.monitor.client().save_state(&request).await?) }).await?;
    let target = staged.file(STATE);
    blocking(move || state.take(&target)).await?;
    Ok(saved)
}

/// A file for the monitor to write.
async fn outgoing(live: &Arc<Live>, name: &'static str) -> Result<Outgoing, Cause> {
    let live = Arc::clone(live);
    blocking(move || Outgoing::new(&live.identity.dirs, &live.monitor, name)).await
}

/// Has the monitor write the state and the memory of the paused machine to files.
pub(crate) async fn dump(live: &Arc<Live>, staged: &StagedSnapshot, diff: bool) -> Result<Saved, Cause> {
    let (state, memory) = (outgoing(live, STATE).await?, outgoing(live, DUMP).await?);
    let request = SnapshotCreate {
        snapshot_type: if diff { SnapshotType::Diff } else { SnapshotType::Full },
        snapshot_path: state.path().to_owned(),
        mem_file_path: memory.path().to_owned(),
    };
    live.while_alive(async { Ok(live.monitor.client().create_snapshot(&request).await?) }).await?;
    let (saved, dump) = (staged.file(STATE), staged.file(DUMP));
    blocking(move || {
        state.take(&saved)?;
        memory.take(&dump)?;
        Ok(Saved::Dump(dump))
    })
    .await
}

/// Makes an image in `layers` of what was saved: the changes to `base`, whose layers are in the same directory, or
/// everything where there is none.
pub(crate) fn import(
    saved: Saved,
    base: Option<MemoryImage>,
    guest_size: Bytes,
    layers: &LayerDir,
) -> Result<Imported, Cause> {
    match (saved, base) {
        (Saved::Process(memory), base) => copy(&memory, base, guest_size, layers),
        (Saved::Dump(dump), None) => Ok(MemoryImage::import_full(&dump, guest_size, layers)?),
        (Saved::Dump(dump), Some(base)) => {
            let imported = base.import_diff(&dump)?;
            fs::remove_file(&dump).map_err(|source| Cause::io("remove", &dump, source))?;
            Ok(imported)
        }
    }
}

/// Copies all that `memory` has of its own.
fn copy(
    memory: &GuestMemory,
    base: Option<MemoryImage>,
    guest_size: Bytes,
    layers: &LayerDir,
) -> Result<Imported, Cause> {
    if memory.size() != guest_size.get() {
        return Err(Cause::GuestMemorySize { found: Bytes(memory.size()), expected: guest_size });
    }
    let mut writer = match base {
        None => MemoryImage::write_full(guest_size, layers)?,
        Some(base) => base.write_diff()?,
    };
    let mut buffer = vec![0; PIECE as usize];
    for run in memory.own_runs()? {
        for offset in run.range.clone().step_by(PIECE as usize) {
            let piece = &mut buffer[..(run.range.end - offset).min(PIECE) as usize];
            // Zeros that need not be read are still content: the base may have something else there.
            match run.zero {
                true => piece.fill(0),
                false => memory.read(offset, piece)?,
            }
            writer.put(offset, piece)?;
        }
    }
    Ok(writer.finish()?)
}

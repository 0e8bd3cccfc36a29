//! Capturing a guest that runs on: for a template, or for children that begin where it is.
//!
//! ```text
//! sync the disk -> stop the vCPUs -> state, frozen memory, copy of the disk's changes -> start the vCPUs
//!                                                                       -> memory image -> commit
//! ```
//!
//! The stop takes what it takes to save the state, to copy the process's page tables and to clone one file; the
//! memory is written while the guest runs. A monitor that cannot freeze its memory dumps it during the stop.
//!
//! Whatever fails, the guest runs again, and the store that was being filled is removed by whoever made it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wrenn_base::UndoList;
use wrenn_storage::{MemoryImage, StagedSnapshot, clone_file};
use wrenn_vmm::Freezer;

use crate::capture::{self, sync_disk};
use crate::error::Cause;
use crate::host::HostInner;
use crate::layout::StoreDir;
use crate::machine::Live;
use crate::memory::{self, Saved};
use crate::step::{blocking, building, checkpoint, undo_all};
use crate::stored::{DISK, Stored};

/// How long the frozen copy of a monitor may take to report.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// A guest that was captured and runs on.
pub(crate) struct Capture {
    pub(crate) stored: Stored,
    /// How long its vCPUs stood still.
    pub(crate) stopped: Duration,
}

/// Captures the guest into the empty `store`, its memory as a diff on `base` where there is one, and lets it go on.
pub(crate) async fn capture_running(
    host: &Arc<HostInner>,
    live: &Arc<Live>,
    base: Option<MemoryImage>,
    store: StoreDir,
) -> Result<Capture, Cause> {
    let captured = capture_and_go_on(host, live, base, store).await;
    let live = Arc::clone(live);
    blocking(move || {
        if let Err(error) = live.monitor.settle_memory(FREEZE_LIMIT) {
            tracing::warn!(sandbox = %live.identity.id, %error, "the monitor may still use more memory than it should");
        }
    })
    .await;
    captured
}

async fn capture_and_go_on(
    host: &Arc<HostInner>,
    live: &Arc<Live>,
    base: Option<MemoryImage>,
    store: StoreDir,
) -> Result<Capture, Cause> {
    // Most of what the disk has to write it writes before the guest is stopped.
    let disk = Arc::clone(live);
    blocking(move || sync_disk(disk.disk.device(), disk.disk.cow())).await?;
    let snapshots = store.snapshots();
    let staged = blocking(move || snapshots.stage(1)).await?;
    checkpoint("snapshot.staged")?;

    let stopped_at = Instant::now();
    live.while_alive(async { Ok(live.monitor.client().pause().await?) }).await?;
    let saved = stop(host, live, &staged).await;
    let resumed = live.while_alive(async { Ok(live.monitor.client().resume().await?) }).await;
    let stopped = stopped_at.elapsed();
    let saved = saved?;
    resumed?;
    checkpoint("snapshot.runs-on")?;

    let live = Arc::clone(live);
    // A dump made while the guest goes on is of everything: the monitor's log of dirty pages begins anew with it.
    let base = base.filter(|_| matches!(saved, Saved::Process(_)));
    let stored = blocking(move || {
        let base = base.map(|base| base.link_into(&store.open_layers()?).map_err(Cause::from)).transpose()?;
        capture::commit(&live, saved, base, &store, staged)
    })
    .await?;
    Ok(Capture { stored, stopped })
}

/// What is done while the guest stands still.
async fn stop(host: &Arc<HostInner>, live: &Arc<Live>, staged: &StagedSnapshot) -> Result<Saved, Cause> {
    checkpoint("snapshot.stopped")?;
    let (disk, copy) = (Arc::clone(live), staged.file(DISK));
    let disk = blocking(move || {
        sync_disk(disk.disk.device(), disk.disk.cow())?;
        let cow = disk.disk.cow();
        clone_file(cow, &copy).map(drop).map_err(|source| Cause::io("copy", cow, source))
    });
    let memory = async {
        match live.reads_memory {
            true => freeze(host, live, staged).await,
            false => memory::dump(live, staged, false).await,
        }
    };
    let (disk, memory) = tokio::join!(disk, memory);
    disk?;
    let memory = memory?;
    checkpoint("snapshot.saved")?;
    Ok(memory)
}

/// Saves the state and freezes the memory.
async fn freeze(host: &Arc<HostInner>, live: &Arc<Live>, staged: &StagedSnapshot) -> Result<Saved, Cause> {
    let mut undo = UndoList::new(&host.reaper);
    let socket = live.identity.dirs.freeze_socket();
    let freezer = building(&mut undo, &host.reaper, move |undo| Freezer::bind(&socket, undo)).await?;
    let frozen = async {
        live.monitor.give(freezer.socket())?;
        // At worst the guest writes to all of its memory before that has been read.
        live.monitor.extend_memory(live.identity.spec.memory.bytes())?;
        let saved = memory::save_state(live, staged, Some(freezer.socket().to_owned())).await?;
        Ok(blocking(move || freezer.accept(saved.regions, FREEZE_LIMIT)).await?)
    };
    let result: Result<_, Cause> = frozen.await;
    // Nothing but the socket's name, which is in nobody's way.
    drop(undo_all(undo, FREEZE_LIMIT).await);
    result.map(Saved::Process)
}

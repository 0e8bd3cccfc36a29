//! Capturing a guest that runs on: for a template, or for children that begin where it is.
//!
//! ```text
//! sync the disk -> stop the vCPUs -> state, copy of memory, copy of the disk's changes -> start the vCPUs
//!                                                                       -> memory image -> commit
//! ```
//!
//! The stop takes what it takes to save the state, to copy in memory what the guest has of its own, and to clone one
//! file; all is written while the guest runs. A monitor whose memory cannot be read dumps it during the stop.
//!
//! The monitor can also freeze its memory by a fork, which is quicker (a millisecond or so for each GiB). It is not used as
//! long as it is not known why guests that are branched sometimes meet triple faults in an emulated machine.
//!
//! Whatever fails, the guest runs again, and the store that was being filled is removed by whoever made it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wrenn_storage::{MemoryImage, StagedSnapshot, clone_file};

use crate::capture::{self, sync_disk};
use crate::error::Cause;
use crate::layout::StoreDir;
use crate::machine::Live;
use crate::memory::{self, Copied, Saved};
use crate::step::{blocking, checkpoint};
use crate::stored::{DISK, Stored};

/// A guest that was captured and runs on.
pub(crate) struct Capture {
    pub(crate) stored: Stored,
    /// How long its vCPUs stood still.
    pub(crate) stopped: Duration,
}

/// Captures the guest into the empty `store`, its memory as a diff on `base` where there is one, and lets it go on.
pub(crate) async fn capture_running(
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
    let saved = stop(live, &staged).await;
    let resumed = live.while_alive(async { Ok(live.monitor.client().resume().await?) }).await;
    let stopped = stopped_at.elapsed();
    let saved = saved?;
    resumed?;
    checkpoint("snapshot.runs-on")?;

    let live = Arc::clone(live);
    // A dump made while the guest goes on is of everything: the monitor's log of dirty pages begins anew with it.
    let base = base.filter(|_| !matches!(saved, Saved::Dump(_)));
    let stored = blocking(move || {
        let base = base.map(|base| base.link_into(&store.open_layers()?).map_err(Cause::from)).transpose()?;
        capture::commit(&live, saved, base, &store, staged)
    })
    .await?;
    Ok(Capture { stored, stopped })
}

/// What is done while the guest stands still.
async fn stop(live: &Arc<Live>, staged: &StagedSnapshot) -> Result<Saved, Cause> {
    checkpoint("snapshot.stopped")?;
    let (disk, copy) = (Arc::clone(live), staged.file(DISK));
    let disk = blocking(move || {
        sync_disk(disk.disk.device(), disk.disk.cow())?;
        let cow = disk.disk.cow();
        clone_file(cow, &copy).map(drop).map_err(|source| Cause::io("copy", cow, source))
    });
    let memory = async {
        match live.reads_memory {
            true => copy_memory(live, staged).await,
            false => memory::dump(live, staged, false).await,
        }
    };
    let (disk, memory) = tokio::join!(disk, memory);
    disk?;
    let memory = memory?;
    checkpoint("snapshot.saved")?;
    Ok(memory)
}

/// Saves the state and copies the memory.
async fn copy_memory(live: &Live, staged: &StagedSnapshot) -> Result<Saved, Cause> {
    let memory = memory::save_state(live, staged).await?;
    blocking(move || Ok(Saved::Copy(Copied::of(&memory)?))).await
}

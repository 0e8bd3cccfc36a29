//! Merging long chains of memory layers, in the background.
//!
//! After a pause whose memory image has more layers than the policy allows, the chain is merged from its files into one
//! layer that can also be mapped as it is. The sandbox stays as it is meanwhile: it can be resumed, from the old chain,
//! and the new manifest takes the old one's place by one rename. A process that is killed at any moment leaves the old
//! chain or the new one; the next open of the host removes the layers that nobody needs.
//!
//! A pause, or whatever else writes to the sandbox's store, first [stops](Compactions::stop) the merging: it is begun
//! anew after the pause. One chain at a time is merged on a host, and no faster than the policy says.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use wrenn_base::{Bytes, SandboxId};
use wrenn_storage::MemoryError;

use crate::capture;
use crate::error::Cause;
use crate::layout::StoreDir;
use crate::step::checkpoint;
use crate::stored::{MEMORY, Stored};

/// When and how fast chains of memory layers are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactionPolicy {
    /// The longest chain that is left alone; 10 by default.
    pub max_layers: usize,
    /// How many bytes a second are copied at most, for all sandboxes of the host together; 128 MiB by default.
    pub bytes_per_second: u64,
}

impl Default for CompactionPolicy {
    fn default() -> Self {
        Self { max_layers: 10, bytes_per_second: 128 << 20 }
    }
}

/// How long a compaction that waits looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// The compactions under way in a host.
#[derive(Debug)]
pub(crate) struct Compactions {
    policy: CompactionPolicy,
    running: Mutex<HashMap<SandboxId, Compaction>>,
    /// Held by the one that copies.
    turn: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct Compaction {
    unwanted: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Compactions {
    pub(crate) fn new(policy: CompactionPolicy) -> Self {
        Self { policy, running: Mutex::default(), turn: Arc::default() }
    }

    /// Begins merging the chain of `stored`, the latest snapshot of a sandbox in `store`, if it is too long.
    pub(crate) fn consider(&self, store: &StoreDir, stored: &Stored) {
        let mut running = self.running();
        let under_way =
            running.get(&stored.record.id).is_some_and(|compaction| !compaction.task.is_finished());
        if under_way || stored.memory.layers_in_use().len() <= self.policy.max_layers {
            return;
        }
        let unwanted = Arc::new(AtomicBool::new(false));
        let work = Work {
            store: store.clone(),
            unwanted: Arc::clone(&unwanted),
            bytes_per_second: self.policy.bytes_per_second.max(1),
        };
        let (turn, id) = (Arc::clone(&self.turn), stored.record.id.clone());
        let task = tokio::task::spawn_blocking(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            match work.run() {
                Ok(true) => tracing::debug!(sandbox = %id, "memory layers were merged"),
                Ok(false) => tracing::debug!(sandbox = %id, "merging memory layers was broken off"),
                Err(e) => tracing::warn!(sandbox = %id, error = %e, "memory layers could not be merged"),
            }
        });
        running.insert(stored.record.id.clone(), Compaction { unwanted, task });
    }

    /// Breaks off the merging of a sandbox's chain and returns once nothing of it goes on.
    pub(crate) async fn stop(&self, id: &SandboxId) {
        let compaction = self.running().remove(id);
        if let Some(Compaction { unwanted, task }) = compaction {
            unwanted.store(true, Ordering::Relaxed);
            let _ = task.await;
        }
    }

    /// Waits until the merging of a sandbox's chain has come to its end.
    pub(crate) async fn finish(&self, id: &SandboxId) {
        let compaction = self.running().remove(id);
        if let Some(compaction) = compaction {
            let _ = compaction.task.await;
        }
    }

    /// Breaks off all merging.
    pub(crate) async fn stop_all(&self) {
        let all: Vec<_> = self.running().drain().collect();
        for (_, compaction) in &all {
            compaction.unwanted.store(true, Ordering::Relaxed);
        }
        for (_, compaction) in all {
            let _ = compaction.task.await;
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<SandboxId, Compaction>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Compactions {
    fn drop(&mut self) {
        for compaction in self.running().values() {
            compaction.unwanted.store(true, Ordering::Relaxed);
        }
    }
}

struct Work {
    store: StoreDir,
    unwanted: Arc<AtomicBool>,
    bytes_per_second: u64,
}

impl Work {
    /// Merges the chain; false if that became unwanted.
    fn run(&self) -> Result<bool, Cause> {
        if self.is_unwanted() {
            return Ok(false);
        }
        let Some(stored) = Stored::open(&self.store)? else { return Ok(false) };
        checkpoint("compaction.begun")?;
        let mut due = Instant::now();
        let compacted = match stored.memory.compact(|copied| self.pace(&mut due, copied)) {
            Err(MemoryError::Cancelled) => return Ok(false),
            result => result?,
        };
        checkpoint("compaction.layer-written")?;
        compacted.image.save(&stored.file(MEMORY))?;
        checkpoint("compaction.switched")?;
        capture::drop_orphaned_layers(&self.store, Some(&compacted.image))?;
        Ok(true)
    }

    /// Sleeps as long as `copied` bytes are to take, or until the work is unwanted.
    fn pace(&self, due: &mut Instant, copied: Bytes) -> ControlFlow<()> {
        *due += Duration::from_secs_f64(copied.get() as f64 / self.bytes_per_second as f64);
        loop {
            if self.is_unwanted() {
                return ControlFlow::Break(());
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return ControlFlow::Continue(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Relaxed)
    }
}

//! The memory of restored machines, as this process sees it: what it asks of the [pager](wrenn_pager).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use wrenn_base::{SandboxId, UndoList};
use wrenn_pager::{
    FaultStats, ImageFiles, PagerClient, PagerError, PagerProgram, PagerSpec, PagingOptions, PagingStatus,
};
use wrenn_vmm::{CgroupTree, Killer};

use crate::error::Cause;
use crate::metrics;
use crate::recovery::Survivor;
use crate::restore::{Prefetch, RestoreOptions};
use crate::stored::{Stored, WORKING_SET};

/// The name of its cgroup: no sandbox has it.
pub(crate) const CGROUP: &str = "pager";

/// The host's pager: started by the first restore, or found, as an earlier process left it.
pub(crate) struct Pagers {
    spec: PagerSpec,
    /// Where it is put, so that nothing that ends this program's processes ends the pager too.
    cgroups: Option<CgroupTree>,
    current: Mutex<Option<Arc<PagerClient>>>,
}

impl Pagers {
    /// Looks whether there is one.
    pub(crate) fn open(
        program: PagerProgram,
        socket: PathBuf,
        log: PathBuf,
        cgroups: Option<CgroupTree>,
    ) -> Self {
        let current = PagerClient::find(&socket).map(Arc::new);
        Self { spec: PagerSpec { program, socket, log }, cgroups, current: Mutex::new(current) }
    }

    /// The pager that is there.
    pub(crate) fn found(&self) -> Option<Arc<PagerClient>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone().filter(|pager| !pager.is_lost())
    }

    /// Ends what an earlier process began for sandboxes that are no more. Blocks.
    pub(crate) fn forget_all_but(&self, survivors: &[Survivor]) {
        let Some(pager) = self.found() else { return };
        for id in pager.sandboxes().unwrap_or_default() {
            if !survivors.iter().any(|survivor| *survivor.id() == id)
                && let Err(error) = pager.end(&id)
            {
                tracing::warn!(sandbox = %id, %error, "the pager goes on with a sandbox that is no more");
            }
        }
    }

    /// The pager, started if there is none. Blocks.
    fn get(&self) -> Result<Arc<PagerClient>, Cause> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pager) = current.as_ref().filter(|pager| !pager.is_lost()) {
            return Ok(Arc::clone(pager));
        }
        let pager = Arc::new(PagerClient::start(&self.spec)?);
        if let (Some(cgroups), Some(pid)) = (&self.cgroups, pager.pid()) {
            // Where that cannot be, it is where this process is, and goes when all that is there is ended.
            if let Err(error) = cgroups.hold(CGROUP, pid) {
                tracing::warn!(%error, "the pager stays in this program's cgroup");
            }
        }
        Ok(Arc::clone(current.insert(pager)))
    }

    /// Lets go of it. Blocks until it has ended, unless it serves somebody still.
    pub(crate) fn close(&self) {
        let last = self.current.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(last);
    }
}

/// The service of one machine's memory.
pub(crate) struct Paging {
    id: SandboxId,
    pager: Arc<PagerClient>,
    answered: AtomicBool,
}

/// The place of a machine's paging in an undo list: it has to stop after the monitor is gone, so its undo is registered
/// before the monitor's, while it begins beside everything else.
pub(crate) struct Reserved {
    id: SandboxId,
    place: Arc<Mutex<Option<Arc<PagerClient>>>>,
}

impl Reserved {
    pub(crate) fn new(id: &SandboxId, undo: &mut UndoList) -> Self {
        let place = Arc::<Mutex<Option<Arc<PagerClient>>>>::default();
        let (id, found) = (id.clone(), Arc::clone(&place));
        let ended = id.clone();
        undo.push("the paging of its memory", move |_| {
            let pager = found.lock().unwrap_or_else(PoisonError::into_inner).take();
            match pager.map(|pager| pager.end(&ended)) {
                Some(Ok(Some(PagingStatus { stats, .. }))) => metrics::faulted(&stats),
                // One that is gone serves nobody.
                None | Some(Ok(None) | Err(PagerError::Unreachable { .. })) => {}
                Some(Err(error)) => return Err(error.into()),
            }
            Ok(())
        });
        Self { id, place }
    }

    /// Opens the memory of `from` and begins to read what will be needed first. Blocks for opening files, and for the
    /// start of the pager if there is none.
    pub(crate) fn begin(
        self,
        pagers: &Pagers,
        from: &Stored,
        options: RestoreOptions,
    ) -> Result<Paging, Cause> {
        let pager = pagers.get()?;
        let paging = self.of(pager);
        let image = ImageFiles {
            manifest: from.manifest.clone(),
            layers: from.memory.layer_dir().path().to_owned(),
            working_set: from.file(WORKING_SET),
        };
        paging.pager.begin(&paging.id, image, options.into())?;
        Ok(paging)
    }

    /// The paging that `pager` has been at since before this process.
    pub(crate) fn taken_over(self, pager: Arc<PagerClient>) -> Paging {
        let paging = self.of(pager);
        paging.answered.store(true, Ordering::Relaxed);
        paging
    }

    fn of(self, pager: Arc<PagerClient>) -> Paging {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&pager));
        Paging { id: self.id, pager, answered: AtomicBool::new(false) }
    }
}

impl Paging {
    /// Serves the monitor that connects to `socket`; with `cached`, from a page cache that it maps. Blocks.
    ///
    /// What ends the service early ends the guest too.
    pub(crate) fn serve(&self, socket: &Path, cached: bool, killer: Killer) -> Result<(), Cause> {
        Ok(self.pager.serve(&self.id, socket, cached, move || killer.kill())?)
    }

    /// Ends the guest of a service that was taken over, should the pager die.
    pub(crate) fn watch_over(&self, killer: Killer) -> Result<(), Cause> {
        Ok(self.pager.watch_over(&self.id, move || killer.kill())?)
    }

    /// What was served so far; nothing where nobody can tell. Blocks.
    pub(crate) fn stats(&self) -> Option<FaultStats> {
        Some(self.pager.status(&self.id).ok()??.stats)
    }

    /// Why the pager ended the guest, if it did. Blocks.
    pub(crate) fn failure(&self) -> Option<String> {
        match self.pager.status(&self.id) {
            Ok(status) => status?.failure,
            Err(_) => Some("the pager has died".to_owned()),
        }
    }

    /// To be called when a command was answered: after the first one the pages that were touched until then are kept,
    /// in the background, for the next resume.
    pub(crate) fn answered(self: &Arc<Self>) {
        if self.answered.swap(true, Ordering::Relaxed) {
            return;
        }
        let paging = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = paging.pager.answered(&paging.id) {
                tracing::debug!(%error, "the working set was not kept");
            }
        });
    }
}

impl From<RestoreOptions> for PagingOptions {
    fn from(options: RestoreOptions) -> Self {
        Self {
            share: options.share_memory,
            prefetch: match options.prefetch {
                Prefetch::WorkingSet => wrenn_pager::Prefetch::WorkingSet,
                Prefetch::None => wrenn_pager::Prefetch::None,
                Prefetch::All => wrenn_pager::Prefetch::All,
            },
            prefetch_limit: options.prefetch_limit,
        }
    }
}

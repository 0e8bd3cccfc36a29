//! The fault server of a restored machine.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};

use wrenn_base::{Bytes, UndoList};
use wrenn_storage::{PageRun, WorkingSet};
use wrenn_uffd::{Backing, FaultServer, FaultServerOptions, FaultStats, PageCache, UffdError};
use wrenn_vmm::Killer;

use crate::error::Cause;
use crate::host::HostInner;
use crate::restore::{Prefetch, RestoreOptions};
use crate::source::ImagePages;
use crate::stored::{Stored, WORKING_SET};

/// A working set that has grown beyond this part of the guest's memory says nothing any more.
const WORKING_SET_SHARE: u64 = 2;

/// The fault server of a restored machine, and the error that ended it, if one did.
pub(crate) struct Paging {
    server: Arc<FaultServer>,
    failure: Arc<OnceLock<Arc<UffdError>>>,
    recorder: Recorder,
}

/// What is needed to keep the pages that were touched until the first command was answered.
struct Recorder {
    path: PathBuf,
    guest_size: Bytes,
    known: Option<WorkingSet>,
    done: AtomicBool,
}

/// A resume's memory before there is a monitor: its cache, into which the first pages are being read already. That ends
/// when this is dropped, or with the pages; the fault server then goes on from there.
pub(crate) struct Begun {
    known: Option<WorkingSet>,
    cache: Arc<PageCache>,
    /// What the reading thread looks at.
    _wanted: Arc<()>,
}

/// The place of the reading thread in an undo list, which waits for its end: it is told to end when [`Begun`] goes, and
/// that is earlier, but may be in the midst of a read.
pub(crate) struct ReadAhead(mpsc::Sender<()>);

impl ReadAhead {
    pub(crate) fn new(undo: &mut UndoList) -> Self {
        let (reading, ended) = mpsc::channel();
        undo.push("the memory that is read ahead", move |deadline| {
            match ended.recv_timeout(deadline.remaining()) {
                Err(RecvTimeoutError::Disconnected) => Ok(()),
                _ => Err("it is still being read".into()),
            }
        });
        Self(reading)
    }

    /// Begins to fill the cache of `from`'s memory, which other machines share if the options let them. Blocks for
    /// opening a file.
    pub(crate) fn begin(
        self,
        host: &HostInner,
        from: &Stored,
        options: RestoreOptions,
    ) -> Result<Begun, Cause> {
        let cache = match options.share_memory {
            true => host.caches.of(&from.memory)?,
            false => PageCache::new(Arc::new(ImagePages(from.memory.reader())))?,
        };
        let known = from.working_set();
        let wanted = Arc::new(());
        let (ahead, still_wanted) = (Arc::clone(&cache), Arc::downgrade(&wanted));
        let first = prefetch(options.prefetch, known.as_ref());
        host.runtime.spawn_blocking(move || {
            // Dropped last: who waits for the end finds the cache let go of.
            let (_reading, cache) = (self.0, ahead);
            let limit = Bytes(options.prefetch_limit);
            if let Err(e) = cache.warm(first, limit, || still_wanted.strong_count() > 0) {
                // The fault server meets it again, if the guest needs what could not be read.
                tracing::debug!(error = %e, "memory could not be read ahead");
            }
        });
        Ok(Begun { known, cache, _wanted: wanted })
    }
}

/// The place of a fault server in an undo list: it has to stop after the monitor is gone, so its undo is registered
/// before the monitor's, while it can be made only when the monitor has said what it offers.
pub(crate) struct Reserved(Arc<OnceLock<Arc<FaultServer>>>);

impl Reserved {
    pub(crate) fn new(undo: &mut UndoList) -> Self {
        let place = Arc::new(OnceLock::<Arc<FaultServer>>::new());
        let server = Arc::clone(&place);
        undo.push("the fault server", move |_| {
            if let Some(server) = server.get() {
                // How it ended was told when it ended.
                let _ = server.stop();
            }
            Ok(())
        });
        Self(place)
    }

    /// Starts the server of `from`'s memory; what ends it early ends the guest too, by `killer`. Blocks.
    ///
    /// With `cached` the monitor maps the cache that was begun.
    pub(crate) fn start(
        self,
        from: &Stored,
        options: RestoreOptions,
        begun: Begun,
        cached: bool,
        (socket, killer): (PathBuf, Killer),
    ) -> Result<Paging, Cause> {
        let Begun { known, cache, .. } = begun;
        let backing: Backing = match cached {
            true => cache.into(),
            false => Arc::new(ImagePages(from.memory.reader())).into(),
        };
        let failure = Arc::new(OnceLock::new());
        let report = Arc::clone(&failure);
        let on_failure = move |error| {
            let _ = report.set(error);
            killer.kill();
        };
        let server = FaultServer::listen(
            &socket,
            backing,
            FaultServerOptions {
                record: true,
                prefetch: prefetch(options.prefetch, known.as_ref()),
                prefetch_limit: options.prefetch_limit,
                on_failure: Some(Box::new(on_failure)),
                ..FaultServerOptions::default()
            },
        )?;
        let server = Arc::clone(self.0.get_or_init(|| Arc::new(server)));
        let recorder = Recorder {
            path: from.file(WORKING_SET),
            guest_size: from.memory.guest_size(),
            known,
            done: AtomicBool::new(false),
        };
        Ok(Paging { server, failure, recorder })
    }
}

fn prefetch(wanted: Prefetch, known: Option<&WorkingSet>) -> wrenn_uffd::Prefetch {
    match (wanted, known) {
        (Prefetch::All, _) => wrenn_uffd::Prefetch::All,
        (Prefetch::WorkingSet, Some(set)) => {
            let run =
                |run: &PageRun| wrenn_uffd::PageRun { first: run.first.into(), pages: run.pages.into() };
            wrenn_uffd::Prefetch::Runs(set.runs().iter().map(run).collect())
        }
        (Prefetch::WorkingSet | Prefetch::None, _) => wrenn_uffd::Prefetch::None,
    }
}

impl Paging {
    pub(crate) fn stats(&self) -> FaultStats {
        self.server.stats()
    }

    /// Why the server ended the guest, if it did.
    pub(crate) fn failure(&self) -> Option<&Arc<UffdError>> {
        self.failure.get()
    }

    /// To be called when a command was answered: after the first one the pages that were touched until then are kept,
    /// in the background, for the next resume.
    pub(crate) fn answered(&self) {
        if self.recorder.done.swap(true, Ordering::Relaxed) {
            return;
        }
        let touched = self.server.recording();
        if let Some((path, set)) = self.recorder.merged(&touched) {
            tokio::task::spawn_blocking(move || {
                if let Err(e) = set.save(&path) {
                    tracing::debug!(error = %e, "the working set was not kept");
                }
            });
        }
    }
}

impl Recorder {
    /// The known working set with what was touched beyond it, if that is news.
    fn merged(&self, touched: &[wrenn_uffd::PageRun]) -> Option<(PathBuf, WorkingSet)> {
        let run = |run: &wrenn_uffd::PageRun| {
            Some(PageRun { first: run.first.try_into().ok()?, pages: run.pages.try_into().ok()? })
        };
        let known = self.known.iter().flat_map(|set| set.runs().iter().copied());
        let merged = WorkingSet::new(self.guest_size, known.chain(touched.iter().filter_map(run))).ok()?;
        let sensible = merged.size().get() <= self.guest_size.get() / WORKING_SET_SHARE;
        let news = self.known.as_ref() != Some(&merged);
        (sensible && news).then(|| (self.path.clone(), merged))
    }
}

//! The memory of one restored sandbox: opened, read ahead, served, recorded.
//!
//! ```text
//! begin ──> reading ahead ── serve ──> a fault server of its own ── end ──> gone
//!               └─────────────────────── end ───────────────────────────────┘
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use wrenn_base::{BoxError, Bytes, in_one_line};
use wrenn_storage::{LayerDir, MemoryImage, PAGE_SIZE, PageRun, WorkingSet};
use wrenn_uffd::{Backing, FaultServer, FaultServerOptions, FaultStats, PageCache};

use crate::caches::PageCaches;
use crate::protocol::{ImageFiles, PagingOptions, PagingStatus, Prefetch};
use crate::source::ImagePages;

/// A working set that has grown beyond this part of the guest's memory says nothing any more.
const WORKING_SET_SHARE: u64 = 2;

/// See above.
pub(crate) struct Session {
    options: PagingOptions,
    memory: MemoryImage,
    cache: Arc<PageCache>,
    known: Option<WorkingSet>,
    working_set: PathBuf,
    ahead: ReadAhead,
    server: OnceLock<FaultServer>,
    /// Its first command was answered.
    answered: AtomicBool,
}

/// The thread that reads what will be needed first, until there is a server that goes on from there.
struct ReadAhead {
    wanted: Arc<AtomicBool>,
    /// How many pages it read, once it has ended.
    read: Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Session {
    /// Opens the image and begins to read ahead.
    pub(crate) fn begin(
        files: ImageFiles,
        options: PagingOptions,
        caches: &PageCaches,
    ) -> Result<Self, BoxError> {
        let memory = MemoryImage::open(&files.manifest, &LayerDir::open(&files.layers)?)?;
        let cache = match options.share {
            true => caches.of(&memory)?,
            false => PageCache::new(Arc::new(ImagePages(memory.reader())))?,
        };
        let known = working_set(&files.working_set, memory.guest_size());
        let ahead =
            ReadAhead::start(&cache, wanted(options.prefetch, known.as_ref()), options.prefetch_limit)?;
        Ok(Self {
            options,
            memory,
            cache,
            known,
            working_set: files.working_set,
            ahead,
            server: OnceLock::new(),
            answered: AtomicBool::new(false),
        })
    }

    /// Serves the process that connects to `socket`; what ends the service early ends that process too.
    pub(crate) fn serve(&self, socket: &Path, cached: bool) -> Result<(), BoxError> {
        if self.server.get().is_some() {
            return Err("it is being served already".into());
        }
        let backing: Backing = match cached {
            true => Arc::clone(&self.cache).into(),
            false => Arc::new(ImagePages(self.memory.reader())).into(),
        };
        let options = FaultServerOptions {
            record: true,
            prefetch: wanted(self.options.prefetch, self.known.as_ref()),
            prefetch_limit: self.options.prefetch_limit,
            kill_on_failure: true,
            ..FaultServerOptions::default()
        };
        let server = FaultServer::listen(socket, backing, options)?;
        // It goes on from where that is.
        self.ahead.stop();
        self.server.set(server).map_err(|_second| "it is being served already".into())
    }

    /// Keeps what was touched until now, after the first answered command.
    pub(crate) fn answered(&self) -> Result<(), BoxError> {
        let Some(server) = self.server.get() else { return Ok(()) };
        if self.answered.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        match self.merged(&server.recording()) {
            Some(set) => Ok(set.save(&self.working_set)?),
            None => Ok(()),
        }
    }

    /// The known working set with what was touched beyond it, if that is news.
    fn merged(&self, touched: &[wrenn_uffd::PageRun]) -> Option<WorkingSet> {
        let run = |run: &wrenn_uffd::PageRun| {
            Some(PageRun { first: run.first.try_into().ok()?, pages: run.pages.try_into().ok()? })
        };
        let guest_size = self.memory.guest_size();
        let known = self.known.iter().flat_map(|set| set.runs().iter().copied());
        let merged = WorkingSet::new(guest_size, known.chain(touched.iter().filter_map(run))).ok()?;
        let sensible = merged.size().get() <= guest_size.get() / WORKING_SET_SHARE;
        (sensible && self.known.as_ref() != Some(&merged)).then_some(merged)
    }

    pub(crate) fn status(&self) -> PagingStatus {
        let Some(server) = self.server.get() else {
            return PagingStatus { stats: FaultStats::default(), failure: None };
        };
        let failure = server.outcome().and_then(Result::err).map(|error| in_one_line(&*error));
        let (mut stats, ahead) = (server.stats(), self.ahead.read.load(Ordering::Relaxed));
        stats.pages += ahead;
        stats.prefetched += ahead;
        stats.bytes_copied += ahead * PAGE_SIZE;
        PagingStatus { stats, failure }
    }

    /// Whether somebody would miss it.
    pub(crate) fn serves(&self) -> bool {
        self.server.get().is_some_and(|server| server.outcome().is_none())
    }

    /// Stops, and waits for that; what was served.
    pub(crate) fn end(&self) -> PagingStatus {
        self.ahead.stop();
        if let Some(server) = self.server.get() {
            // How it ended is part of the status.
            let _ = server.stop();
        }
        self.status()
    }
}

impl ReadAhead {
    fn start(cache: &Arc<PageCache>, first: wrenn_uffd::Prefetch, limit: u64) -> Result<Self, BoxError> {
        let wanted = Arc::new(AtomicBool::new(true));
        let read = Arc::new(AtomicU64::new(0));
        let (cache, still_wanted, pages) = (Arc::clone(cache), Arc::clone(&wanted), Arc::clone(&read));
        let work = move || match cache.warm(first, Bytes(limit), || still_wanted.load(Ordering::Relaxed)) {
            Ok(read) => pages.store(read, Ordering::Relaxed),
            // The fault server meets it again, if the guest needs what could not be read.
            Err(e) => tracing::debug!(error = %e, "memory could not be read ahead"),
        };
        let thread = std::thread::Builder::new().name("read-ahead".into()).spawn(work)?;
        Ok(Self { wanted, read, thread: Mutex::new(Some(thread)) })
    }

    fn stop(&self) {
        self.wanted.store(false, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that reads ahead panicked");
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.stop();
    }
}

fn wanted(wanted: Prefetch, known: Option<&WorkingSet>) -> wrenn_uffd::Prefetch {
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

/// The pages that a restore needs first, if that is known. A file that cannot be used is only worth a warning.
fn working_set(path: &Path, guest_size: Bytes) -> Option<WorkingSet> {
    let found = WorkingSet::load(path).unwrap_or_else(|e| {
        tracing::warn!(path = %path.display(), error = %e, "the working set cannot be used");
        None
    });
    found.filter(|set| set.guest_size() == guest_size)
}

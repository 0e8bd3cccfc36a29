//! One memory image's pages, kept once for all the processes that run on it.
//!
//! The cache is a memfd. Each process maps it `MAP_PRIVATE`: a page that is in the cache is read from there
//! without any fault, and a write makes a copy of the process's own, both by the kernel alone. The server
//! fills the cache by `UFFDIO_COPY` through a mapping of its own, which puts a page there whole or not at all;
//! bytes written to a mapping would be seen half done. Zero pages are never put there, they would cost memory.
//!
//! Invariant: a page is there if and only if its bit is set, but within a fill, which holds the lock. What is
//! there without a bit was made by somebody who touched the memfd where no userfaultfd watches: a page of
//! zeros in place of content. The cache is of no use to anybody from then on.

use std::fmt;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use wrenn_base::Bytes;

use crate::bitmap::Bitmap;
use crate::error::UffdError;
use crate::shared::lock;
use crate::source::{PAGE_SIZE, PageSource};

#[allow(unsafe_code)]
mod sys;

/// The page cache of one memory image, shared by all processes that are served from it.
///
/// Give it to one [`FaultServer`](crate::FaultServer) per process. It is filled as they touch pages, and freed
/// when the last server and the last process's mapping are gone. The crate's documentation says what a process
/// has to do to be served from one.
///
/// ```no_run
/// # fn of(image: std::sync::Arc<dyn wrenn_uffd::PageSource>) -> Result<(), wrenn_uffd::UffdError> {
/// use wrenn_uffd::{FaultServer, FaultServerOptions, PageCache};
/// let cache = PageCache::new(image)?;
/// let first = FaultServer::listen("/run/a.sock".as_ref(), cache.clone(), FaultServerOptions::default())?;
/// let second = FaultServer::listen("/run/b.sock".as_ref(), cache.clone(), FaultServerOptions::default())?;
/// # Ok(()) }
/// ```
pub struct PageCache {
    source: Arc<dyn PageSource>,
    memory: sys::CacheMemory,
    /// The pages that are there.
    filled: Bitmap,
    /// Pages that some server's prefetch reads or has read: one of them is enough. Only a hint.
    claimed: Bitmap,
    filled_pages: AtomicU64,
    filling: Mutex<()>,
}

impl PageCache {
    /// Makes an empty cache of a source's size, which takes no memory yet.
    ///
    /// # Errors
    /// [`UffdError::System`] where the source is empty or not made of whole pages of 4 KiB, or the kernel has
    /// no userfaultfd (it needs no privilege, but Linux 5.11) or no descriptors left.
    pub fn new(source: Arc<dyn PageSource>) -> Result<Arc<Self>, UffdError> {
        let len = source.len();
        if len == 0 || !len.is_multiple_of(PAGE_SIZE) {
            let action = "make a page cache of an image that is not made of pages";
            return Err(UffdError::System { action, source: Errno::INVAL.into() });
        }
        let memory = sys::CacheMemory::new(len).map_err(UffdError::system("make a page cache"))?;
        let pages = len / PAGE_SIZE;
        Ok(Arc::new(Self {
            source,
            memory,
            filled: Bitmap::new(pages),
            claimed: Bitmap::new(pages),
            filled_pages: AtomicU64::new(0),
            filling: Mutex::new(()),
        }))
    }

    /// How much of the image is in the cache, which is the memory that it takes.
    pub fn filled(&self) -> Bytes {
        Bytes(self.filled_pages.load(Relaxed) * PAGE_SIZE)
    }

    pub(crate) fn source(&self) -> &Arc<dyn PageSource> {
        &self.source
    }

    /// The memfd, open for reading only.
    pub(crate) fn shown(&self) -> BorrowedFd<'_> {
        self.memory.shown()
    }

    /// Whether a page of the image is there.
    pub(crate) fn has(&self, page: u64) -> bool {
        self.filled.get(page)
    }

    /// The pages around `page` that are not there, within `range`.
    pub(crate) fn missing_around(&self, page: u64, range: Range<u64>) -> Range<u64> {
        self.filled.clear_around(page, range)
    }

    /// The first pages of a range that are not there and that no prefetch has taken on.
    pub(crate) fn next_unclaimed(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut next = range.start;
        loop {
            let missing = self.filled.next_clear(next..range.end)?;
            match self.claimed.next_clear(missing.clone()) {
                Some(found) => return Some(found),
                None => next = missing.end,
            }
        }
    }

    /// Takes on pages for a prefetch.
    pub(crate) fn claim(&self, pages: Range<u64>) {
        self.claimed.set(pages);
    }

    /// Gives claimed pages back.
    pub(crate) fn unclaim(&self, pages: Range<u64>) {
        self.claimed.clear(pages);
    }

    /// Puts the content of pages from `first` on there, where it is not yet, and returns how many were not.
    pub(crate) fn fill(&self, first: u64, content: &[u8]) -> Result<u64, UffdError> {
        let end = first + content.len() as u64 / PAGE_SIZE;
        let _filling = lock(&self.filling);
        let (mut next, mut new) = (first, 0);
        while let Some(missing) = self.filled.next_clear(next..end) {
            let at = |page: u64| ((page - first) * PAGE_SIZE) as usize;
            let offset = missing.start * PAGE_SIZE;
            let filled = self.memory.copy(offset, &content[at(missing.start)..at(missing.end)]);
            let done = filled.bytes / PAGE_SIZE;
            new += self.filled.set(missing.start..missing.start + done);
            self.filled_pages.fetch_add(done, Relaxed);
            next = missing.start + done;
            match filled.stopped {
                None => {}
                Some(Errno::AGAIN | Errno::INTR) if done > 0 => {}
                Some(Errno::EXIST) => return Err(UffdError::Tainted { offset: next * PAGE_SIZE }),
                Some(errno) => {
                    return Err(UffdError::Cache { offset: next * PAGE_SIZE, source: errno.into() });
                }
            }
        }
        Ok(new)
    }

    /// Checks that nothing is there but what was put there: before it is handed to one more process.
    pub(crate) fn check(&self) -> Result<(), UffdError> {
        let _filling = lock(&self.filling);
        let allocated = self.memory.allocated().map_err(UffdError::system("look at a page cache"))?;
        if allocated > self.filled().0 {
            // Where, nobody has seen yet.
            return Err(UffdError::Tainted { offset: 0 });
        }
        Ok(())
    }
}

impl fmt::Debug for PageCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = Bytes(self.source.len());
        f.debug_struct("PageCache").field("len", &len).field("filled", &self.filled()).finish_non_exhaustive()
    }
}

/// What a server takes pages from: see [`FaultServer::listen`](crate::FaultServer::listen).
#[derive(Clone)]
pub enum Backing {
    /// A source of its own: every page is the process's alone.
    Source(Arc<dyn PageSource>),
    /// A cache that it shares with others.
    Cache(Arc<PageCache>),
}

impl Backing {
    /// Where the content is read from.
    pub(crate) fn source(&self) -> &dyn PageSource {
        match self {
            Self::Source(source) => &**source,
            Self::Cache(cache) => &**cache.source(),
        }
    }

    pub(crate) fn cache(&self) -> Option<&PageCache> {
        match self {
            Self::Source(_) => None,
            Self::Cache(cache) => Some(cache),
        }
    }
}

impl From<Arc<dyn PageSource>> for Backing {
    fn from(source: Arc<dyn PageSource>) -> Self {
        Self::Source(source)
    }
}

impl<S: PageSource> From<Arc<S>> for Backing {
    fn from(source: Arc<S>) -> Self {
        Self::Source(source)
    }
}

impl From<Arc<PageCache>> for Backing {
    fn from(cache: Arc<PageCache>) -> Self {
        Self::Cache(cache)
    }
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(source) => f.debug_tuple("Source").field(&Bytes(source.len())).finish(),
            Self::Cache(cache) => f.debug_tuple("Cache").field(cache).finish(),
        }
    }
}

//! What the threads that serve one process have in common.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use crate::cache::Backing;
use crate::prefetch::Cursor;
use crate::regions::Regions;
use crate::shared::{Shared, raise, signal};
use crate::stats::Counters;
use crate::sys::Uffd;

/// The service of one process.
///
/// Invariant: content of the image is put into the process's memory only under [`order`](Self::order), into
/// pages that are not spent.
pub(crate) struct Service {
    pub(crate) uffd: Uffd,
    /// Readable once the process is gone.
    pub(crate) process: OwnedFd,
    pub(crate) regions: Regions,
    pub(crate) backing: Backing,
    pub(crate) shared: Arc<Shared>,
    pub(crate) run_bytes: u64,
    /// Held from reading events until removals among them are noted, and from looking at which pages are
    /// spent until those that were filled are noted as spent.
    ///
    /// A process that gives pages up goes on as soon as its event was read. A thread that is about to copy a
    /// page then must not do so any more, which it learns here.
    pub(crate) order: Mutex<()>,
    /// Held by the thread that prefetches, for a piece.
    pub(crate) cursor: Mutex<Cursor>,
    /// Userfaultfds of processes that were forked off. Closing them would let those run on with zeros.
    pub(crate) forks: Mutex<Vec<OwnedFd>>,
    /// Readable once one of the threads has come to an end.
    pub(crate) halted: OwnedFd,
}

impl Service {
    pub(crate) fn new(
        uffd: Uffd,
        process: OwnedFd,
        regions: Regions,
        backing: Backing,
        shared: Arc<Shared>,
        run_bytes: u64,
        cursor: Cursor,
    ) -> rustix::io::Result<Self> {
        Counters::add(&shared.counters.pages_total, regions.pages());
        let (order, forks, halted) = (Mutex::default(), Mutex::default(), signal()?);
        let cursor = Mutex::new(cursor);
        Ok(Self { uffd, process, regions, backing, shared, run_bytes, order, cursor, forks, halted })
    }

    /// Ends the other threads.
    pub(crate) fn halt(&self) {
        raise(&self.halted);
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}

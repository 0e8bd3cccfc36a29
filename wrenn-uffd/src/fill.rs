//! Putting content into pages.

use std::ops::Range;

use rustix::io::Errno;

use crate::error::UffdError;
use crate::regions::Region;
use crate::source::{PAGE_SIZE, PageSource, RunKind};
use crate::stats::Counters;
use crate::sys::Uffd;

/// How an attempt to fill pages ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    /// Every page of the range has content now, and who waited for one is awake.
    All,
    /// The process is changing its memory just now: read events, then try again.
    Again,
    /// The process has no memory any more.
    Gone,
}

/// Neighbouring pages of a region that the image has in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) pages: Range<u64>,
    pub(crate) kind: RunKind,
}

/// Fills pages of a process from a source.
pub(crate) struct Filler<'a> {
    pub(crate) uffd: Uffd,
    pub(crate) source: &'a dyn PageSource,
    pub(crate) counters: &'a Counters,
    /// The content of `loaded`.
    buffer: Vec<u8>,
    loaded: Range<u64>,
    /// A page of zeros for mappings that the kernel cannot zero itself (hugetlbfs); empty where there is
    /// none.
    zeros: Vec<u8>,
}

impl<'a> Filler<'a> {
    pub(crate) fn new(uffd: Uffd, source: &'a dyn PageSource, counters: &'a Counters) -> Self {
        Self { uffd, source, counters, buffer: Vec::new(), loaded: 0..0, zeros: Vec::new() }
    }

    /// The piece that `page` begins, up to page `end` at most.
    fn piece(&self, region: &Region, page: u64, end: u64) -> Piece {
        let max = (end - page) * region.page_size;
        let run = self.source.lookup(region.image_offset(page), max);
        let len = run.len.min(max);
        // A large page is zero only as a whole, and a source that answers less than a page is asked for one
        // anyway.
        let pages = len / region.page_size;
        let kind = if pages == 0 { RunKind::Data } else { run.kind };
        Piece { pages: page..page + pages.max(1), kind }
    }

    /// The pieces that a range of pages consists of.
    pub(crate) fn pieces<'s>(
        &'s self,
        region: &'s Region,
        range: Range<u64>,
    ) -> impl Iterator<Item = Piece> + 's {
        let mut next = range.start;
        std::iter::from_fn(move || {
            let piece = (next < range.end).then(|| self.piece(region, next, range.end))?;
            next = piece.pages.end;
            Some(piece)
        })
    }

    /// Reads a piece's content, which [`put`](Self::put) then takes pages of.
    pub(crate) fn load(&mut self, region: &Region, pages: &Range<u64>) -> Result<(), UffdError> {
        let len = ((pages.end - pages.start) * region.page_size) as usize;
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        self.loaded = 0..0;
        let offset = region.image_offset(pages.start);
        self.source
            .read(offset, &mut self.buffer[..len])
            .map_err(|source| UffdError::Source { offset, source })?;
        self.loaded = pages.clone();
        Ok(())
    }

    /// Whether all of these pages were loaded.
    pub(crate) fn is_loaded(&self, pages: &Range<u64>) -> bool {
        self.loaded == *pages
    }

    /// Fills pages of a piece; those with data must be loaded.
    pub(crate) fn put(
        &mut self,
        region: &mut Region,
        kind: RunKind,
        pages: Range<u64>,
    ) -> Result<Placed, UffdError> {
        if kind == RunKind::Zero && region.page_size != PAGE_SIZE && self.zeros.is_empty() {
            self.zeros = vec![0; region.page_size as usize];
        }
        let mut page = pages.start;
        while page < pages.end {
            let filled = self.fill(region, kind, page..pages.end);
            let done = filled.bytes / region.page_size;
            self.count(kind, filled.bytes);
            Counters::add(&self.counters.pages, region.spend(page..page + done));
            page += done;
            match filled.stopped {
                None => {}
                // Filled meanwhile, as another fault's neighbour or by the process itself.
                Some(Errno::EXIST) => {
                    region.spend(page..page + 1);
                    self.wake(region, page)?;
                    page += 1;
                }
                Some(Errno::AGAIN) if done > 0 => {}
                Some(Errno::AGAIN) => return Ok(Placed::Again),
                Some(Errno::SRCH) => return Ok(Placed::Gone),
                Some(errno) => {
                    return Err(UffdError::Fill { address: region.address(page), source: errno.into() });
                }
            }
        }
        Ok(Placed::All)
    }

    fn fill(&self, region: &Region, kind: RunKind, pages: Range<u64>) -> crate::sys::Filled {
        let (address, size) = (region.address(pages.start), region.page_size);
        match kind {
            RunKind::Zero if size == PAGE_SIZE => self.uffd.zero(address, (pages.end - pages.start) * size),
            // One after the other: the caller goes on where this stops.
            RunKind::Zero => self.uffd.copy(address, &self.zeros),
            RunKind::Data => {
                let at = |page: u64| ((page - self.loaded.start) * size) as usize;
                self.uffd.copy(address, &self.buffer[at(pages.start)..at(pages.end)])
            }
        }
    }

    fn count(&self, kind: RunKind, bytes: u64) {
        let counter = match kind {
            RunKind::Zero => &self.counters.bytes_zeroed,
            RunKind::Data => &self.counters.bytes_copied,
        };
        Counters::add(counter, bytes);
    }

    fn wake(&self, region: &Region, page: u64) -> Result<(), UffdError> {
        let address = region.address(page);
        self.uffd.wake(address, region.page_size).map_err(|source| UffdError::Fill { address, source })
    }
}

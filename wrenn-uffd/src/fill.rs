//! Putting content into pages.

use std::ops::Range;

use rustix::io::Errno;

use crate::cache::PageCache;
use crate::error::UffdError;
use crate::prefetch::CHUNK_PAGES;
use crate::regions::Region;
use crate::service::Service;
use crate::shared::lock;
use crate::source::{PAGE_SIZE, RunKind};
use crate::stats::Counters;
use crate::sys::Filled;

/// How an attempt to fill pages ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    /// Every page of the range has content now, and who waited for one is awake. So many had none before.
    All(u64),
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

/// Fills pages of a process: what one thread needs for that.
pub(crate) struct Filler<'a> {
    service: &'a Service,
    /// Where content is read to.
    buffer: Vec<u8>,
    /// The content of the pages that were loaded last where it lies with the source, and not in the buffer.
    resident: Option<&'a [u8]>,
    /// A page of zeros for mappings that the kernel cannot zero itself (hugetlbfs); empty where there is
    /// none.
    zeros: Vec<u8>,
}

impl<'a> Filler<'a> {
    pub(crate) fn new(service: &'a Service) -> Self {
        Self { service, buffer: Vec::new(), resident: None, zeros: Vec::new() }
    }

    /// The piece that `page` begins, up to page `end` at most.
    pub(crate) fn piece(&self, region: &Region, page: u64, end: u64) -> Piece {
        let max = (end - page) * region.page_size;
        let run = self.service.backing.source().lookup(region.image_offset(page), max);
        let len = run.len.min(max);
        // A large page is zero only as a whole, and a source that answers less than a page is asked for one
        // anyway.
        let pages = len / region.page_size;
        let kind = if pages == 0 { RunKind::Data } else { run.kind };
        Piece { pages: page..page + pages.max(1), kind }
    }

    /// The piece around a page that was touched, of pages that have no content yet: of data as much as the
    /// source has at hand within the aligned run, of zeros, which cost next to nothing, more.
    pub(crate) fn piece_around(&self, region: &Region, page: u64) -> Piece {
        let near = region.unspent_around(page, self.service.run_bytes);
        let mut end = near.end;
        if self.piece(region, page, page + 1).kind == RunKind::Zero {
            let wide = region.unspent_around(page, CHUNK_PAGES * PAGE_SIZE);
            let first = self.piece(region, wide.start, wide.end);
            if first.kind == RunKind::Zero && first.pages.contains(&page) {
                return first;
            }
            end = end.max(wide.end);
        }
        let mut piece = self.piece(region, near.start, end);
        while !piece.pages.contains(&page) {
            piece = self.piece(region, piece.pages.end, end);
        }
        if piece.kind == RunKind::Zero {
            return piece;
        }
        if let Some(cache) = self.service.backing.cache() {
            let first = region.image_pages(&(0..1)).start;
            let Range { start, end } = piece.pages;
            let missing = cache.missing_around(first + page, first + start..first + end);
            piece.pages = missing.start - first..missing.end - first;
        }
        piece
    }

    /// Reads pages' content, which [`put`](Self::put) then takes.
    pub(crate) fn load(&mut self, region: &Region, pages: &Range<u64>) -> Result<(), UffdError> {
        let (offset, len) = (region.image_offset(pages.start), (pages.end - pages.start) * region.page_size);
        let (source, len) = (self.service.backing.source(), len as usize);
        self.resident = source.resident(offset, len).filter(|content| content.len() == len);
        if self.resident.is_some() {
            return Ok(());
        }
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        source.read(offset, &mut self.buffer[..len]).map_err(|source| UffdError::Source { offset, source })
    }

    /// What was loaded last, from the first of the pages on; there may be more behind it.
    fn loaded(&self) -> &[u8] {
        self.resident.unwrap_or(&self.buffer)
    }

    /// Fills a piece, whose content must be loaded if it is data; `wanted` is one of its pages that somebody
    /// waits for.
    pub(crate) fn put(
        &mut self,
        region: &Region,
        piece: &Piece,
        wanted: Option<u64>,
    ) -> Result<Placed, UffdError> {
        if piece.kind == RunKind::Data
            && let Some(cache) = self.service.backing.cache()
        {
            return self.put_into(cache, region, piece);
        }
        let order = lock(&self.service.order);
        // Another thread was faster, or the page was given up since.
        let late = wanted.filter(|page| region.is_spent(*page));
        let (mut next, mut new) = (piece.pages.start, 0);
        while let Some(pages) = region.next_unspent(next..piece.pages.end) {
            let filled = match piece.kind {
                RunKind::Zero => self.fill_zero(region, &pages),
                RunKind::Data => {
                    let at = |page: u64| ((page - piece.pages.start) * region.page_size) as usize;
                    let content = &self.loaded()[at(pages.start)..at(pages.end)];
                    self.service.uffd.copy(region.address(pages.start), content)
                }
            };
            let done = filled.bytes / region.page_size;
            self.count(piece.kind, filled.bytes);
            let fresh = region.spend(pages.start..pages.start + done);
            Counters::add(&self.service.counters().pages, fresh);
            new += fresh;
            next = pages.start + done;
            match self.judge(region, next, done, &filled)? {
                Judged::GoOn => {}
                Judged::Present => {
                    region.spend(next..next + 1);
                    next += 1;
                }
                Judged::Stop(placed) => return Ok(placed),
            }
        }
        drop(order);
        match late {
            Some(page) => self.put_zero(region, page),
            None => Ok(Placed::All(new)),
        }
    }

    /// Fills a page that is spent: that it is missing again means that it is empty.
    pub(crate) fn put_zero(&mut self, region: &Region, page: u64) -> Result<Placed, UffdError> {
        let filled = self.fill_zero(region, &(page..page + 1));
        self.count(RunKind::Zero, filled.bytes);
        match self.judge(region, page, filled.bytes / region.page_size, &filled)? {
            Judged::GoOn | Judged::Present => Ok(Placed::All(0)),
            Judged::Stop(placed) => Ok(placed),
        }
    }

    /// Wakes who waits for pages that are there.
    pub(crate) fn wake(&self, region: &Region, pages: &Range<u64>) -> Result<(), UffdError> {
        let (address, len) = (region.address(pages.start), (pages.end - pages.start) * region.page_size);
        self.service.uffd.wake(address, len).map_err(|source| UffdError::Fill { address, source })
    }

    fn put_into(&self, cache: &PageCache, region: &Region, piece: &Piece) -> Result<Placed, UffdError> {
        let pages = region.image_pages(&piece.pages);
        let len = ((pages.end - pages.start) * PAGE_SIZE) as usize;
        let new = cache.fill(pages.start, &self.loaded()[..len])?;
        self.count(RunKind::Data, new * PAGE_SIZE);
        Counters::add(&self.service.counters().pages, new);
        self.wake(region, &piece.pages)?;
        Ok(Placed::All(new))
    }

    /// Zeros pages, or the first of them: the caller goes on where this stops.
    fn fill_zero(&mut self, region: &Region, pages: &Range<u64>) -> Filled {
        let (address, size) = (region.address(pages.start), region.page_size);
        if size == PAGE_SIZE {
            return self.service.uffd.zero(address, (pages.end - pages.start) * size);
        }
        self.zeros.resize(size as usize, 0);
        self.service.uffd.copy(address, &self.zeros)
    }

    /// What to make of a call that filled `done` pages and stopped before `page`.
    fn judge(&self, region: &Region, page: u64, done: u64, filled: &Filled) -> Result<Judged, UffdError> {
        match filled.stopped {
            None => Ok(Judged::GoOn),
            // Filled meanwhile, as another fault's neighbour or by the process itself.
            Some(Errno::EXIST) => {
                self.wake(region, &(page..page + 1))?;
                Ok(Judged::Present)
            }
            Some(Errno::AGAIN) if done > 0 => Ok(Judged::GoOn),
            Some(Errno::AGAIN) => Ok(Judged::Stop(Placed::Again)),
            Some(Errno::SRCH) => Ok(Judged::Stop(Placed::Gone)),
            Some(errno) => Err(UffdError::Fill { address: region.address(page), source: errno.into() }),
        }
    }

    fn count(&self, kind: RunKind, bytes: u64) {
        let counter = match kind {
            RunKind::Zero => &self.service.counters().bytes_zeroed,
            RunKind::Data => &self.service.counters().bytes_copied,
        };
        Counters::add(counter, bytes);
    }
}

/// How to go on after a call that fills pages.
enum Judged {
    GoOn,
    /// The next page has content by now.
    Present,
    Stop(Placed),
}

//! Answering one process's faults until it ends, is let go of, or cannot be served: what each thread does.
//!
//! Order within a batch of events: what was given up comes before every fault that was read with it. The
//! kernel hands out faults first, but a fault's neighbours may be among the pages that were given up, and the
//! process goes on as soon as its removal was read: a neighbour copied after that would be old content in a
//! page that was just emptied. While a removal is announced and not yet read, the kernel itself refuses to
//! fill pages (`EAGAIN`).
//!
//! With several threads each reads one event at a time, so that none lies in wait behind another's slow read
//! of the source, and [`Service::order`] keeps removals and copies apart.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::accept::timespec;
use crate::error::UffdError;
use crate::fill::{Filler, Piece, Placed};
use crate::prefetch::Cursor;
use crate::regions::Region;
use crate::server::End;
use crate::service::Service;
use crate::shared::lock;
use crate::source::{PAGE_SIZE, RunKind};
use crate::stats::Counters;
use crate::sys::{Event, MESSAGE};

/// How often the kernel's "try again" is followed at once before the thread sleeps in between.
const HASTY_RETRIES: u32 = 50;
/// How long it sleeps then.
const RETRY_PAUSE: Duration = Duration::from_millis(1);
/// How many events one read takes at most, where one thread reads them all.
const BATCH: usize = 64;

const STOP: u64 = 0;
const PROCESS: u64 = 1;
const FAULTS: u64 = 2;

/// A fault that waits for its answer.
#[derive(Debug)]
struct Fault {
    address: u64,
    seen: Instant,
}

/// How far a thread came with what there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nothing is left to do.
    Idle,
    /// There is more to prefetch.
    Busy,
    Stalled,
    ProcessGone,
}

/// One thread's part in the service of a process.
pub(crate) struct Session<'a> {
    service: &'a Service,
    filler: Filler<'a>,
    /// Where events are read to.
    space: Vec<u8>,
    events: Vec<Event>,
    queue: VecDeque<Fault>,
}

impl<'a> Session<'a> {
    /// `one_of_many` tells whether there are other threads.
    pub(crate) fn new(service: &'a Service, one_of_many: bool) -> Self {
        let batch = if one_of_many { 1 } else { BATCH };
        let (events, queue) = (Vec::new(), VecDeque::new());
        Self { service, filler: Filler::new(service), space: vec![0; MESSAGE * batch], events, queue }
    }

    /// Serves until it is stopped, the process is gone, another thread ended, or an error.
    pub(crate) fn run(&mut self) -> Result<End, UffdError> {
        let epoll = self.epoll().map_err(UffdError::system("set up epoll"))?;
        let mut turn = Turn::Busy;
        let mut stalls = 0;
        loop {
            let pause = match (turn, stalls) {
                (Turn::Idle, _) => None,
                (Turn::Stalled, HASTY_RETRIES..) => Some(RETRY_PAUSE),
                _ => Some(Duration::ZERO),
            };
            match wait(&epoll, pause.map(timespec))? {
                Woken { stop: true, .. } => return Ok(End::Stopped),
                Woken { process: true, .. } => return Ok(End::ProcessExited),
                _ => {}
            }
            self.read_events()?;
            turn = match self.take_turn() {
                // A process on its way out has lost its mappings before its pidfd tells.
                Err(UffdError::Fill { .. }) if has_exited(self.service.process.as_fd()) => Turn::ProcessGone,
                result => result?,
            };
            match turn {
                Turn::Idle | Turn::Busy => stalls = 0,
                Turn::Stalled => stalls += 1,
                Turn::ProcessGone => return Ok(End::ProcessExited),
            }
        }
    }

    fn epoll(&self) -> rustix::io::Result<OwnedFd> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let Service { uffd, process, halted, shared, .. } = self.service;
        for (fd, token) in [(&shared.stop, STOP), (halted, STOP), (process, PROCESS)] {
            epoll::add(&epoll, fd, EventData::new_u64(token), EventFlags::IN)?;
        }
        // A thread that is alone reads all there is each time, so it need only be told of what is new, which
        // spares the kernel a second look per fault. Of many, one is enough to be woken for one fault.
        let how = if self.space.len() == MESSAGE { EventFlags::EXCLUSIVE } else { EventFlags::ET };
        epoll::add(&epoll, uffd, EventData::new_u64(FAULTS), EventFlags::IN | how)?;
        Ok(epoll)
    }

    /// Reads the events that wait. Removals take effect here, before any fault is answered.
    fn read_events(&mut self) -> Result<(), UffdError> {
        let service = self.service;
        let _order = lock(&service.order);
        loop {
            let more = service.uffd.read(&mut self.space, &mut self.events);
            if !more.map_err(UffdError::system("read the userfaultfd"))? || self.space.len() == MESSAGE {
                break;
            }
        }
        let seen = Instant::now();
        for event in self.events.drain(..) {
            match event {
                Event::Missing { address } => self.queue.push_back(Fault { address, seen }),
                Event::Removed { start, end } | Event::Unmapped { start, end } => {
                    let pages = service.regions.give_up(start, end);
                    Counters::add(&service.counters().pages_removed, pages);
                    let removed = matches!(event, Event::Removed { .. }) && pages > 0;
                    if removed && service.backing.cache().is_some() {
                        return Err(UffdError::Removed { address: start });
                    }
                }
                Event::OtherFault { kind } => return Err(UffdError::Unsupported { event: kind }),
                Event::Forked(child) => {
                    lock(&service.forks).push(child);
                    return Err(UffdError::Unsupported { event: "a fork" });
                }
                Event::Unsupported { event } => return Err(UffdError::Unsupported { event }),
            }
        }
        Ok(())
    }

    /// Answers the faults that were read, and then fills one piece ahead.
    fn take_turn(&mut self) -> Result<Turn, UffdError> {
        while let Some(fault) = self.queue.pop_front() {
            match self.answer(&fault)? {
                Placed::All(_) => {}
                Placed::Again => {
                    Counters::add(&self.service.counters().retries, 1);
                    self.queue.push_front(fault);
                    return Ok(Turn::Stalled);
                }
                Placed::Gone => return Ok(Turn::ProcessGone),
            }
        }
        self.prefetch()
    }

    fn answer(&mut self, fault: &Fault) -> Result<Placed, UffdError> {
        let (service, address) = (self.service, fault.address);
        let region = service.regions.at(address).ok_or(UffdError::Stray { address })?;
        let page = region.page_of(address);
        let alone = page..page + 1;
        let cached = service.backing.cache().is_some_and(|cache| cache.has(region.image_pages(&alone).start));
        let placed = if region.is_spent(page) {
            self.filler.put_zero(region, page)?
        } else if cached {
            self.filler.wake(region, &alone)?;
            Placed::All(0)
        } else {
            self.fill_around(region, page)?
        };
        if matches!(placed, Placed::All(_)) {
            service.counters().answered(fault.seen.elapsed());
        }
        Ok(placed)
    }

    /// Fills the page of a fault together with the piece it is in.
    fn fill_around(&mut self, region: &Region, page: u64) -> Result<Placed, UffdError> {
        let mut piece = self.filler.piece_around(region, page);
        if piece.kind == RunKind::Data && self.filler.load(region, &piece.pages).is_err() {
            // If some neighbour cannot be read this page still may.
            piece.pages = page..page + 1;
            self.filler.load(region, &piece.pages)?;
        }
        let placed = self.filler.put(region, &piece, Some(page))?;
        if piece.kind == RunKind::Data
            && matches!(placed, Placed::All(_))
            && let Some(recorder) = &self.service.shared.recorder
        {
            // Faults get here in the order in which pages are first touched.
            recorder.add(region.image_pages(&piece.pages));
        }
        Ok(placed)
    }

    /// Fills the next piece that is to be prefetched, unless another thread is at it.
    fn prefetch(&mut self) -> Result<Turn, UffdError> {
        let Ok(mut cursor) = self.service.cursor.try_lock() else { return Ok(Turn::Idle) };
        let Some(pages) = cursor.next() else { return Ok(Turn::Idle) };
        match self.prefetch_piece(&mut cursor, pages)? {
            Placed::All(new) => {
                Counters::add(&self.service.counters().prefetched, new);
                Ok(if cursor.is_done() { Turn::Idle } else { Turn::Busy })
            }
            Placed::Again => Ok(Turn::Stalled),
            Placed::Gone => Ok(Turn::ProcessGone),
        }
    }

    /// Fills the first piece of `wanted`, pages of the image, that has no content yet.
    fn prefetch_piece(&mut self, cursor: &mut Cursor, wanted: Range<u64>) -> Result<Placed, UffdError> {
        let Some(region) = self.service.regions.showing(wanted.start * PAGE_SIZE) else {
            cursor.finish();
            return Ok(Placed::All(0));
        };
        let Some(piece) = self.next_piece(region, cursor, &wanted) else {
            cursor.advance(wanted.end.min(region.image_pages(&(0..region.pages())).end), 0);
            return Ok(Placed::All(0));
        };
        let pages = region.image_pages(&piece.pages);
        let cache = self.service.backing.cache().filter(|_| piece.kind == RunKind::Data);
        if let Some(cache) = cache {
            cache.claim(pages.clone());
        }
        let placed = match piece.kind {
            RunKind::Data if self.filler.load(region, &piece.pages).is_err() => None,
            _ => Some(self.filler.put(region, &piece, None)?),
        };
        match placed {
            Some(Placed::All(_)) => {
                let copied = if piece.kind == RunKind::Data { pages.end - pages.start } else { 0 };
                cursor.advance(pages.end.min(wanted.end), copied);
            }
            Some(Placed::Again | Placed::Gone) => {}
            None => {
                tracing::warn!(page = pages.start, "prefetch ends: the page source failed");
                cursor.finish();
            }
        }
        if let Some(cache) = cache.filter(|_| placed.is_none()) {
            cache.unclaim(pages);
        }
        Ok(placed.unwrap_or(Placed::All(0)))
    }

    /// The first piece of what is wanted that has no content yet.
    fn next_piece(&self, region: &Region, cursor: &Cursor, wanted: &Range<u64>) -> Option<Piece> {
        let first = region.image_pages(&(0..1)).start;
        let scale = region.page_size / PAGE_SIZE;
        // Large pages are filled whole.
        let begin = (wanted.start - first) / scale;
        let end = (wanted.end - first).div_ceil(scale).min(region.pages());
        let mut piece = self.first_missing(region, begin..end)?;
        if piece.kind == RunKind::Zero {
            return Some(piece);
        }
        let most = (cursor.budget() / scale).max(1);
        piece.pages.end = piece.pages.end.min(piece.pages.start + most);
        Some(piece)
    }

    /// The first piece of a range that has no content, here or in the cache.
    fn first_missing(&self, region: &Region, mut range: Range<u64>) -> Option<Piece> {
        loop {
            let unspent = region.next_unspent(range.clone())?;
            let mut piece = self.filler.piece(region, unspent.start, unspent.end);
            let cache = self.service.backing.cache().filter(|_| piece.kind == RunKind::Data);
            let Some(cache) = cache else { return Some(piece) };
            let pages = region.image_pages(&piece.pages);
            if let Some(missing) = cache.next_unclaimed(pages.clone()) {
                let skipped = missing.start - pages.start;
                piece.pages.start += skipped;
                piece.pages.end = piece.pages.start + (missing.end - missing.start);
                return Some(piece);
            }
            range.start = piece.pages.end;
        }
    }
}

/// Whether the process of a pidfd is gone.
fn has_exited(process: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    poll(&mut fds, Some(&timespec(Duration::ZERO))).is_ok_and(|ready| ready > 0)
}

/// What a wait ended for.
#[derive(Debug, Default)]
struct Woken {
    stop: bool,
    process: bool,
}

fn wait(epoll: &OwnedFd, timeout: Option<Timespec>) -> Result<Woken, UffdError> {
    let mut space = [MaybeUninit::<epoll::Event>::uninit(); 3];
    let ready = match epoll::wait(epoll, &mut space, timeout.as_ref()) {
        Err(Errno::INTR) => return Ok(Woken::default()),
        result => result.map_err(UffdError::system("wait for faults"))?.0,
    };
    let mut woken = Woken::default();
    for event in ready.iter() {
        match event.data.u64() {
            STOP => woken.stop = true,
            PROCESS => woken.process = true,
            _ => {}
        }
    }
    Ok(woken)
}

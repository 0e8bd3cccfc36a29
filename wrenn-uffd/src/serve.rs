//! Answering one process's faults until it ends, is let go of, or cannot be served.
//!
//! Order within a batch of events: what was given up comes before every fault that was read with it. The
//! kernel hands out faults first, but a fault's neighbours may be among the pages that were given up, and the
//! process goes on as soon as its removal was read: a neighbour copied after that would be old content in a
//! page that was just emptied. While a removal is announced and not yet read, the kernel itself refuses to
//! fill pages (`EAGAIN`).

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
use crate::regions::{Region, Regions};
use crate::server::End;
use crate::source::{PageSource, RunKind};
use crate::stats::Counters;
use crate::sys::{Event, Uffd};

/// How often the kernel's "try again" is followed at once before the thread sleeps in between.
const HASTY_RETRIES: u32 = 50;
/// How long it sleeps then.
const RETRY_PAUSE: Duration = Duration::from_millis(1);

const STOP: u64 = 0;
const PROCESS: u64 = 1;
const FAULTS: u64 = 2;

/// A fault that waits for its answer.
#[derive(Debug)]
struct Fault {
    address: u64,
    seen: Instant,
}

/// How far the faults that were read have been answered.
#[derive(Debug)]
enum Queue {
    Empty,
    Stalled,
    ProcessGone,
}

/// The service of one process.
pub(crate) struct Session<'a> {
    regions: Regions,
    filler: Filler<'a>,
    run_bytes: u64,
    events: Vec<Event>,
    queue: VecDeque<Fault>,
    /// Userfaultfds of processes that were forked off. Closing them would let those run on with zeros.
    forks: Vec<OwnedFd>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        uffd: Uffd,
        regions: Regions,
        run_bytes: u64,
        source: &'a dyn PageSource,
        counters: &'a Counters,
    ) -> Self {
        Counters::add(&counters.pages_total, regions.pages());
        let filler = Filler::new(uffd, source, counters);
        let (events, queue, forks) = (Vec::new(), VecDeque::new(), Vec::new());
        Self { regions, filler, run_bytes, events, queue, forks }
    }

    /// Serves until `stop` is readable, the process of the pidfd `process` is gone, or an error.
    pub(crate) fn run(&mut self, stop: BorrowedFd<'_>, process: BorrowedFd<'_>) -> Result<End, UffdError> {
        let epoll = self.epoll(stop, process).map_err(UffdError::system("set up epoll"))?;
        let mut stalls = 0;
        loop {
            let pause = match stalls {
                0 => None,
                1..=HASTY_RETRIES => Some(Duration::ZERO),
                _ => Some(RETRY_PAUSE),
            };
            match wait(&epoll, pause.map(timespec))? {
                Woken { stop: true, .. } => return Ok(End::Stopped),
                Woken { process: true, .. } => return Ok(End::ProcessExited),
                _ => {}
            }
            self.read_events()?;
            match self.answer_queue() {
                Ok(Queue::Empty) => stalls = 0,
                Ok(Queue::Stalled) => stalls += 1,
                Ok(Queue::ProcessGone) => return Ok(End::ProcessExited),
                // A process on its way out has lost its mappings before its pidfd tells.
                Err(UffdError::Fill { .. }) if has_exited(process) => return Ok(End::ProcessExited),
                Err(e) => return Err(e),
            }
        }
    }

    fn epoll(&self, stop: BorrowedFd<'_>, process: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (fd, token) in [(stop, STOP), (process, PROCESS), (self.filler.uffd.as_fd(), FAULTS)] {
            epoll::add(&epoll, fd, EventData::new_u64(token), EventFlags::IN)?;
        }
        Ok(epoll)
    }

    /// Reads every event that waits. Removals take effect here, before any fault is answered.
    fn read_events(&mut self) -> Result<(), UffdError> {
        while self.filler.uffd.read(&mut self.events).map_err(UffdError::system("read the userfaultfd"))? {}
        let seen = Instant::now();
        for event in self.events.drain(..) {
            match event {
                Event::Missing { address } => self.queue.push_back(Fault { address, seen }),
                Event::Gone { start, end } => {
                    let pages = self.regions.give_up(start, end);
                    Counters::add(&self.filler.counters.pages_removed, pages);
                }
                Event::OtherFault { kind } => return Err(UffdError::Unsupported { event: kind }),
                Event::Forked(child) => {
                    self.forks.push(child);
                    return Err(UffdError::Unsupported { event: "a fork" });
                }
                Event::Unsupported { event } => return Err(UffdError::Unsupported { event }),
            }
        }
        Ok(())
    }

    fn answer_queue(&mut self) -> Result<Queue, UffdError> {
        while let Some(fault) = self.queue.pop_front() {
            match self.answer(&fault)? {
                Placed::All => {}
                Placed::Again => {
                    Counters::add(&self.filler.counters.retries, 1);
                    self.queue.push_front(fault);
                    return Ok(Queue::Stalled);
                }
                Placed::Gone => return Ok(Queue::ProcessGone),
            }
        }
        Ok(Queue::Empty)
    }

    /// Fills the page of a fault, which wakes the thread, and then the rest of the run it is in.
    fn answer(&mut self, fault: &Fault) -> Result<Placed, UffdError> {
        let address = fault.address;
        let region = self.regions.at(address).ok_or(UffdError::Stray { address })?;
        let page = region.page_of(address);
        let around = if region.is_spent(page) {
            // It had its content, or was given up; that it is missing again means that it is empty.
            page..page + 1
        } else {
            region.unspent_around(page, self.run_bytes)
        };
        let piece = if region.is_spent(page) {
            Piece { pages: around.clone(), kind: RunKind::Zero }
        } else {
            let mut pieces = self.filler.pieces(region, around.clone());
            pieces.find(|piece| piece.pages.contains(&page)).expect("pieces cover their range")
        };
        let placed = fill_first(&mut self.filler, region, &piece, page)?;
        if placed != Placed::All {
            return Ok(placed);
        }
        // Faults get here in the order in which pages are first touched.
        self.filler.counters.answered(fault.seen.elapsed());
        fill_rest(&mut self.filler, region, around, &piece, page);
        Ok(Placed::All)
    }
}

/// Fills `page`, and with it its whole piece if that is zero, which costs no more.
fn fill_first(
    filler: &mut Filler<'_>,
    region: &mut Region,
    piece: &Piece,
    page: u64,
) -> Result<Placed, UffdError> {
    let alone = page..page + 1;
    if piece.kind == RunKind::Zero {
        return filler.put(region, RunKind::Zero, piece.pages.clone());
    }
    // If some neighbour cannot be read this page still may.
    filler.load(region, &piece.pages).or_else(|_| filler.load(region, &alone))?;
    filler.put(region, RunKind::Data, alone)
}

/// Fills the other pages of a run, as long as that is without trouble: nobody waits for them yet.
fn fill_rest(filler: &mut Filler<'_>, region: &mut Region, around: Range<u64>, first: &Piece, page: u64) {
    let mut put = |filler: &mut Filler<'_>, kind, pages: Range<u64>| {
        pages.is_empty() || matches!(filler.put(region, kind, pages), Ok(Placed::All))
    };
    if first.kind == RunKind::Data && filler.is_loaded(&first.pages) {
        let (before, after) = (first.pages.start..page, page + 1..first.pages.end);
        if !put(filler, RunKind::Data, before) || !put(filler, RunKind::Data, after) {
            return;
        }
    }
    for piece in filler.pieces(region, around).filter(|piece| piece != first).collect::<Vec<_>>() {
        if piece.kind == RunKind::Data && filler.load(region, &piece.pages).is_err() {
            return;
        }
        if !matches!(filler.put(region, piece.kind, piece.pages), Ok(Placed::All)) {
            return;
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

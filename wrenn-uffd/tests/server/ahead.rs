//! Prefetch, and the record that it is made from.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use wrenn_base::{BoxError, Bytes};
use wrenn_uffd::{
    Backing, End, FaultServer, FaultServerOptions, PageCache, PageRun, PageSource, Prefetch, Run, UffdError,
};

use super::guest::{Guest, all_data};
use super::peer::{Image, LONG, PAGE, eventually, shuffled};

/// An image that notes what is read of it, and lets a test into each read.
struct Watched {
    image: Arc<Image>,
    read: Mutex<Vec<(u64, u64)>>,
    during: Box<dyn Fn(u64) -> Result<(), BoxError> + Send + Sync>,
}

impl Watched {
    fn new(
        image: Arc<Image>,
        during: impl Fn(u64) -> Result<(), BoxError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { image, read: Mutex::default(), during: Box::new(during) })
    }

    /// First pages and numbers of pages, in the order in which they were read.
    fn reads(&self) -> Vec<(u64, u64)> {
        self.read.lock().unwrap().clone()
    }
}

impl PageSource for Watched {
    fn len(&self) -> u64 {
        self.image.len()
    }

    fn lookup(&self, offset: u64, max: u64) -> Run {
        self.image.lookup(offset, max)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError> {
        let page = offset / PAGE as u64;
        self.read.lock().unwrap().push((page, (buf.len() / PAGE) as u64));
        (self.during)(page)?;
        self.image.read(offset, buf)
    }
}

fn ahead(prefetch: Prefetch) -> FaultServerOptions {
    FaultServerOptions { prefetch, run_pages: 16, ..FaultServerOptions::default() }
}

fn run(first: u64, pages: u64) -> PageRun {
    PageRun { first, pages }
}

#[test]
fn an_image_that_was_prefetched_takes_no_faults() {
    const PAGES: usize = 3000;
    for threads in [1, 3] {
        let image = Image::new(PAGES);
        let options = FaultServerOptions { threads, ..ahead(Prefetch::All) };
        let Some(guest) = Guest::start(image.clone(), PAGES, options) else { return };
        guest.wait_for_prefetched(PAGES as u64);
        guest.check(&image, shuffled(PAGES, 1));
        guest.server.stop().unwrap();
        let stats = guest.server.stats();
        assert_eq!((stats.faults, stats.pages, stats.prefetched), (0, PAGES as u64, PAGES as u64));
        let zeros = (0..PAGES).filter(|page| image.is_zero(*page)).count();
        assert_eq!(stats.bytes_zeroed, (zeros * PAGE) as u64);
    }
}

#[test]
fn prefetching_beside_readers_and_in_several_clones_is_right() {
    const PAGES: usize = 3000;
    let image = Image::new(PAGES);
    let source = Watched::new(image.clone(), |_| Ok(()));
    let Ok(cache) = PageCache::new(source.clone()) else { return };
    let guests: Option<Vec<_>> =
        (0..3).map(|_| Guest::start(cache.clone(), PAGES, ahead(Prefetch::All))).collect();
    let Some(guests) = guests else { return };
    std::thread::scope(|scope| {
        for (seed, guest) in guests.iter().enumerate() {
            let image = &image;
            scope.spawn(move || guest.check(image, shuffled(PAGES, seed as u64)));
        }
    });
    let data = (0..PAGES).filter(|page| !image.is_zero(*page)).count() as u64;
    eventually("the cache is full", || cache.filled().0 == data * PAGE as u64);
    let late = Guest::start(cache.clone(), PAGES, ahead(Prefetch::All)).unwrap();
    late.wait_for_prefetched(PAGES as u64 - data);
    late.check(&image, shuffled(PAGES, 9));
    late.server.stop().unwrap();
    assert_eq!((late.server.stats().faults, late.server.stats().bytes_copied), (0, 0));
}

#[test]
fn what_one_clone_prefetches_no_other_one_reads() {
    const PAGES: usize = 2048;
    let image = all_data(PAGES);
    let source = Watched::new(image.clone(), |_| Ok(()));
    let Ok(cache) = PageCache::new(source.clone()) else { return };
    let guests: Option<Vec<_>> =
        (0..3).map(|_| Guest::start(cache.clone(), PAGES, ahead(Prefetch::All))).collect();
    let Some(guests) = guests else { return };
    eventually("the cache is full", || cache.filled().0 == image.len());
    for guest in &guests {
        guest.server.stop().unwrap();
    }
    assert_eq!(source.reads().iter().map(|(_, pages)| pages).sum::<u64>(), PAGES as u64);
    let prefetched: u64 = guests.iter().map(|guest| guest.server.stats().prefetched).sum();
    assert_eq!(prefetched, PAGES as u64);
}

#[test]
fn runs_are_prefetched_in_order_cut_to_the_image_and_to_the_limit() {
    const PAGES: usize = 2048;
    let wish = [
        run(700, 10),
        run(710, 500),
        run(9, 0),
        run(1 << 60, 5),
        run(u64::MAX, u64::MAX),
        run(2040, 100),
        run(3, 4),
    ];
    for (limit, expected) in [
        (u64::MAX, vec![(700, 324), (1024, 186), (2040, 8), (3, 4)]),
        (330 * PAGE as u64 + 5, vec![(700, 324), (1024, 6)]),
        (4095, vec![]),
    ] {
        let image = all_data(PAGES);
        let source = Watched::new(image.clone(), |_| Ok(()));
        let options = FaultServerOptions { prefetch_limit: limit, ..ahead(Prefetch::Runs(wish.to_vec())) };
        let Some(guest) = Guest::start(source.clone(), PAGES, options) else { return };
        let pages: u64 = expected.iter().map(|(_, pages)| pages).sum();
        guest.wait_for_prefetched(pages);
        // It goes on only when there is nothing ahead, if it is right.
        guest.check(&image, [1500]);
        guest.server.stop().unwrap();
        let mut reads = source.reads();
        let touched = reads.iter().position(|read| *read == (1488, 16)).expect("what was touched is read");
        reads.remove(touched);
        assert_eq!(reads, expected);
        assert_eq!(guest.server.stats().prefetched, pages);
    }
}

#[test]
fn what_was_recorded_is_what_the_next_one_needs() {
    const PAGES: usize = 2000;
    let image = Image::new(PAGES);
    let touched: Vec<_> = shuffled(PAGES, 12).into_iter().take(100).collect();
    for cached in [false, true] {
        let backing = || -> Option<Backing> {
            if cached { Some(PageCache::new(image.clone()).ok()?.into()) } else { Some(image.clone().into()) }
        };
        let options = FaultServerOptions { record: true, threads: 1, ..FaultServerOptions::default() };
        let Some(first) = backing().and_then(|backing| Guest::start(backing, PAGES, options)) else {
            return;
        };
        first.check(&image, touched.iter().copied());
        first.server.stop().unwrap();
        let record = first.server.recording();
        let covers = |page: u64| record.iter().any(|run| (run.first..run.first + run.pages).contains(&page));
        let number = |run: &PageRun| run.pages;
        assert_eq!(record.iter().map(number).sum::<u64>() * PAGE as u64, first.server.stats().bytes_copied);
        for page in 0..PAGES {
            assert!(!(covers(page as u64) && image.is_zero(page)), "zero page {page} is recorded");
        }
        let first_data = touched.iter().find(|page| !image.is_zero(**page)).copied().unwrap() as u64;
        assert!((record[0].first..record[0].first + record[0].pages).contains(&first_data));
        let next = Guest::start(backing().unwrap(), PAGES, ahead(Prefetch::Runs(record.clone()))).unwrap();
        next.wait_for_prefetched(record.iter().map(number).sum());
        next.check(&image, touched.iter().copied().filter(|page| !image.is_zero(*page)));
        next.server.stop().unwrap();
        assert_eq!(next.server.stats().faults, 0);
        assert_eq!(next.server.recording(), [], "who does not ask for a record has none");
    }
}

/// A channel whose receiving end a source may wait at.
fn gate() -> (Sender<()>, Mutex<Receiver<()>>) {
    let (open, gate) = channel();
    (open, Mutex::new(gate))
}

#[test]
fn a_fault_is_answered_before_the_next_piece_is_prefetched() {
    const PAGES: usize = 4096;
    let image = all_data(PAGES);
    let (open, gate) = gate();
    let source = Watched::new(image.clone(), move |page| {
        if page == 0 {
            let _ = gate.lock().unwrap().recv();
        }
        Ok(())
    });
    let Some(guest) = Guest::start(source.clone(), PAGES, ahead(Prefetch::All)) else { return };
    eventually("the prefetch begins", || !source.reads().is_empty());
    std::thread::scope(|scope| {
        scope.spawn(|| guest.check(&image, [3000]));
        eventually("a thread waits for its page", || guest.has_news());
        drop(open);
    });
    guest.wait_for_prefetched(PAGES as u64 - 16);
    guest.server.stop().unwrap();
    assert_eq!(source.reads()[..3], [(0, 512), (2992, 16), (512, 512)]);
}

#[test]
fn another_thread_answers_while_one_waits_for_the_source() {
    const PAGES: usize = 1024;
    let image = all_data(PAGES);
    let (open, gate) = gate();
    let source = Watched::new(image.clone(), move |page| {
        if page == 0 {
            let _ = gate.lock().unwrap().recv();
        }
        Ok(())
    });
    let options = FaultServerOptions { threads: 2, ..ahead(Prefetch::All) };
    let Some(guest) = Guest::start(source.clone(), PAGES, options) else { return };
    eventually("the prefetch begins", || !source.reads().is_empty());
    guest.check(&image, (600..1000).step_by(7));
    assert_eq!(guest.server.stats().prefetched, 0, "it is still at its first piece");
    drop(open);
    guest.wait_for_prefetched(512);
    guest.check(&image, 0..PAGES);
    guest.server.stop().unwrap();
}

#[test]
fn a_source_that_fails_ends_the_prefetch_and_nothing_else() {
    const PAGES: usize = 1024;
    for cached in [false, true] {
        let image = all_data(PAGES);
        let failures = Arc::new(AtomicU64::new(0));
        let failed = failures.clone();
        let source = Watched::new(image.clone(), move |page| {
            // The first attempt only: later there is somebody who waits.
            if page == 512 && failed.fetch_add(1, SeqCst) == 0 { Err("not now".into()) } else { Ok(()) }
        });
        let backing: Option<Backing> =
            if cached { PageCache::new(source).ok().map(Into::into) } else { Some(source.into()) };
        let Some(guest) = backing.and_then(|backing| Guest::start(backing, PAGES, ahead(Prefetch::All)))
        else {
            return;
        };
        guest.wait_for_prefetched(512);
        eventually("the source fails", || failures.load(SeqCst) == 1);
        guest.check(&image, shuffled(PAGES, 4));
        assert_eq!(guest.server.stop().unwrap(), End::Stopped);
        assert_eq!(guest.server.stats().prefetched, 512);
    }
}

#[test]
fn a_prefetch_stops_after_the_read_that_is_under_way() {
    const PAGES: usize = 8192;
    for (cached, threads) in [(false, 1), (true, 1), (false, 3)] {
        let image = all_data(PAGES);
        let own: Arc<Mutex<Option<FaultServer>>> = Arc::default();
        let in_read = own.clone();
        let (stopped, seen) = channel();
        let source = Watched::new(image.clone(), move |page| {
            if page == 1024 {
                // A thread of the server does not wait for itself, so this is the same as a stop from outside
                // at just this moment.
                let server = loop {
                    match in_read.lock().unwrap().take() {
                        Some(server) => break server,
                        None => std::thread::yield_now(),
                    }
                };
                let _ = server.stop();
                stopped.send(server).unwrap();
            }
            Ok(())
        });
        let backing: Option<Backing> = if cached {
            PageCache::new(source.clone()).ok().map(Into::into)
        } else {
            Some(source.clone().into())
        };
        let options = FaultServerOptions { threads, ..ahead(Prefetch::All) };
        let Some(Guest { server, uffd, memory, .. }) =
            backing.and_then(|backing| Guest::start(backing, PAGES, options))
        else {
            return;
        };
        *own.lock().unwrap() = Some(server);
        let server = seen.recv_timeout(LONG).unwrap();
        assert_eq!(server.stop().unwrap(), End::Stopped);
        let reads = source.reads();
        assert_eq!(reads[..3], [(0, 512), (512, 512), (1024, 512)]);
        // Each other thread may just have looked whether it is to stop, and not have begun to read.
        assert!(reads.len() < 3 + threads, "{reads:?}");
        drop((memory, uffd));
    }
}

#[test]
fn a_warm_cache_is_not_read_for_again() {
    const PAGES: usize = 2048;
    let image = Image::new(PAGES);
    let source = Watched::new(image.clone(), |_| Ok(()));
    let Ok(cache) = PageCache::new(source.clone()) else { return };
    let wish = || Prefetch::Runs(vec![run(1000, 500), run(3, 4), run(1 << 60, 5)]);
    let read = cache.warm(wish(), Bytes(u64::MAX), || true).unwrap();
    let data = (1000..1500).chain(3..7).filter(|page| !image.is_zero(*page)).count() as u64;
    assert_eq!((read, cache.filled()), (data, Bytes(data * PAGE as u64)));
    let reads = source.reads();
    let Some(guest) = Guest::start(cache.clone(), PAGES, ahead(wish())) else { return };
    guest.wait_for_prefetched(504 - data);
    guest.check(&image, (1000..1500).chain(3..7));
    guest.server.stop().unwrap();
    assert_eq!((source.reads(), guest.server.stats().faults), (reads, 0));
}

#[test]
fn warming_ends_at_its_limit_and_when_nobody_waits() {
    const PAGES: usize = 4096;
    let image = all_data(PAGES);
    let Ok(cache) = PageCache::new(image.clone()) else { return };
    let read = cache.warm(Prefetch::All, Bytes(10 * PAGE as u64 + 5), || true).unwrap();
    assert_eq!(read, 10);
    assert_eq!(cache.filled(), Bytes(10 * PAGE as u64));
    let asked = AtomicU64::new(0);
    cache.warm(Prefetch::All, Bytes(u64::MAX), || asked.fetch_add(1, SeqCst) < 2).unwrap();
    // To the end of the chunk that was begun, and one more.
    assert_eq!(cache.filled(), Bytes(1024 * PAGE as u64));
}

#[test]
fn what_could_not_be_read_ahead_is_read_when_it_is_touched() {
    const PAGES: usize = 1024;
    let image = all_data(PAGES);
    let failures = AtomicU64::new(0);
    let source = Watched::new(image.clone(), move |page| {
        if page == 512 && failures.fetch_add(1, SeqCst) == 0 { Err("not now".into()) } else { Ok(()) }
    });
    let Ok(cache) = PageCache::new(source) else { return };
    let error = cache.warm(Prefetch::All, Bytes(u64::MAX), || true).unwrap_err();
    assert!(matches!(error, UffdError::Source { offset, .. } if offset == 512 * PAGE as u64), "{error:?}");
    let Some(guest) = Guest::start(cache, PAGES, ahead(Prefetch::All)) else { return };
    guest.wait_for_prefetched(512);
    guest.check(&image, shuffled(PAGES, 7));
    guest.server.stop().unwrap();
    assert_eq!(guest.server.stats().faults, 0);
}

//! What pages hold.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use userfaultfd::FeatureFlags;
use wrenn_uffd::{End, FaultServer, FaultServerOptions, PageRun, Prefetch};

use super::peer::{
    Image, PAGE, Scratch, eventually, hand_over, page_of, region, send, shuffled, uffd_or_skip,
};
use super::sys::Mapping;

fn options(run_pages: u32) -> FaultServerOptions {
    FaultServerOptions { run_pages, ..FaultServerOptions::default() }
}

fn threaded(run_pages: u32, threads: usize) -> FaultServerOptions {
    FaultServerOptions { threads, ..options(run_pages) }
}

#[test]
fn pages_touched_in_random_order_hold_the_image() {
    const PAGES: usize = 1500;
    for (run_pages, threads) in [(1, 1), (16, 1), (64, 1), (1, 2), (16, 4)] {
        let Some(uffd) = uffd_or_skip(FeatureFlags::EVENT_REMOVE) else { return };
        let (scratch, image) = (Scratch::new(), Image::new(PAGES));
        // Three regions, handed over in no order, of which the second in memory is the first in the image.
        let parts = [Mapping::new(700 * PAGE).unwrap(), Mapping::new(93 * PAGE).unwrap()];
        let last = Mapping::new((PAGES - 793) * PAGE).unwrap();
        let server =
            FaultServer::listen(&scratch.socket(), image.clone(), threaded(run_pages, threads)).unwrap();
        let memory = [(&last, 793 * PAGE), (&parts[1], 0), (&parts[0], 93 * PAGE)];
        let _stream = hand_over(&scratch.socket(), &memory, &uffd);
        let locate = |page: usize| match page {
            0..93 => (&parts[1], page),
            93..793 => (&parts[0], page - 93),
            _ => (&last, page - 793),
        };
        std::thread::scope(|scope| {
            for seed in 0..3 {
                let image = &image;
                scope.spawn(move || {
                    for page in shuffled(PAGES, seed) {
                        let (memory, at) = locate(page);
                        assert!(page_of(memory, at) == image.page(page), "page {page}");
                    }
                });
            }
        });
        // The thread counts after it woke the last reader.
        assert_eq!(server.stop().unwrap(), End::Stopped);
        let stats = server.stats();
        let zeros = (0..PAGES).filter(|page| image.is_zero(*page)).count();
        assert_eq!((stats.pages, stats.pages_total), (PAGES as u64, PAGES as u64));
        assert_eq!(stats.bytes_zeroed, (zeros * PAGE) as u64, "zero pages are zeroed, once");
        assert_eq!(stats.bytes_copied, ((PAGES - zeros) * PAGE) as u64, "and never copied");
        let runs = (PAGES - zeros).div_ceil(run_pages as usize) as u64;
        assert!(stats.faults >= runs, "{} faults", stats.faults);
        if run_pages > 1 {
            assert!(stats.faults < PAGES as u64, "neighbours are filled along: {} faults", stats.faults);
        }
        assert_eq!(stats.latency.iter().sum::<u64>(), stats.faults);
    }
}

#[test]
fn a_written_page_keeps_what_was_written() {
    let Some(uffd) = uffd_or_skip(FeatureFlags::empty()) else { return };
    let (scratch, image) = (Scratch::new(), Image::new(64));
    let memory = Mapping::new(64 * PAGE).unwrap();
    let server = FaultServer::listen(&scratch.socket(), image.clone(), options(16)).unwrap();
    let _stream = hand_over(&scratch.socket(), &[(&memory, 0)], &uffd);
    for page in shuffled(64, 3) {
        memory.write(page * PAGE + 9, 0xd1);
        let mut expected = image.page(page).to_vec();
        expected[9] = 0xd1;
        assert!(page_of(&memory, page) == expected, "page {page}");
    }
    server.stop().unwrap();
}

#[test]
fn discarded_pages_come_back_as_zero() {
    for features in [FeatureFlags::EVENT_REMOVE, FeatureFlags::empty()] {
        let Some(uffd) = uffd_or_skip(features) else { return };
        let (scratch, image) = (Scratch::new(), Image::new(256));
        let memory = Mapping::new(256 * PAGE).unwrap();
        let server = FaultServer::listen(&scratch.socket(), image.clone(), options(16)).unwrap();
        let _stream = hand_over(&scratch.socket(), &[(&memory, 0)], &uffd);
        // Pages that have content and were there: gone, they are zero, whether the server was told or not.
        for page in [6, 7] {
            assert!(page_of(&memory, page) == image.page(page));
        }
        memory.discard(6 * PAGE, 2 * PAGE).unwrap();
        for page in [6, 7] {
            assert!(!image.is_zero(page));
            assert_eq!(page_of(&memory, page), [0; PAGE], "page {page}");
        }
        if features == FeatureFlags::EVENT_REMOVE {
            // Never touched, and given up: nor do its neighbours bring it back.
            memory.discard(70 * PAGE, 4 * PAGE).unwrap();
            assert!(page_of(&memory, 69) == image.page(69));
            for page in 64..80 {
                let expected = if (70..74).contains(&page) { &[0; PAGE][..] } else { image.page(page) };
                assert!(page_of(&memory, page) == expected, "page {page}");
            }
        }
        server.stop().unwrap();
        let removed = if features == FeatureFlags::EVENT_REMOVE { 6 } else { 0 };
        assert_eq!(server.stats().pages_removed, removed);
    }
}

/// Discards race with faults on neighbouring pages: whatever the order, a discarded page is zero.
#[test]
fn discards_racing_with_neighbours_never_bring_content_back() {
    // By itself, with threads that wait for each other, and with a prefetch that fills what is discarded.
    race_discards(threaded(64, 1));
    race_discards(threaded(64, 4));
    race_discards(FaultServerOptions { prefetch: Prefetch::All, ..threaded(16, 1) });
    race_discards(FaultServerOptions { prefetch: Prefetch::All, ..threaded(1, 3) });
}

fn race_discards(options: FaultServerOptions) {
    const PAGES: usize = 4096;
    let Some(uffd) = uffd_or_skip(FeatureFlags::EVENT_REMOVE) else { return };
    let scratch = Scratch::new();
    let image = Arc::new(Image((0..PAGES * PAGE).map(|i| (i / PAGE % 255) as u8 + 1).collect()));
    let memory = Mapping::new(PAGES * PAGE).unwrap();
    let server = FaultServer::listen(&scratch.socket(), image.clone(), options).unwrap();
    let _stream = hand_over(&scratch.socket(), &[(&memory, 0)], &uffd);
    let started = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (memory, image, started) = (&memory, &image, &started);
            scope.spawn(move || {
                // Even pages are only read.
                for page in shuffled(PAGES / 2, seed).into_iter().map(|half| half * 2) {
                    assert!(page_of(memory, page) == image.page(page), "page {page}");
                    started.store(true, Relaxed);
                }
            });
        }
        while !started.load(Relaxed) {
            std::hint::spin_loop();
        }
        // Odd ones are given up, some before they were ever filled, and must be zero from then on.
        for page in shuffled(PAGES / 2, 77).into_iter().map(|half| half * 2 + 1) {
            memory.discard(page * PAGE, PAGE).unwrap();
            assert_eq!(page_of(&memory, page), [0; PAGE], "page {page}");
        }
    });
    for page in (1..PAGES).step_by(2) {
        assert_eq!(page_of(&memory, page), [0; PAGE], "page {page} afterwards");
    }
    server.stop().unwrap();
    let stats = server.stats();
    assert_eq!(stats.pages_removed, PAGES as u64 / 2);
    eprintln!("{} faults, {} retries", stats.faults, stats.retries);
}

#[test]
fn unmapped_memory_is_let_go() {
    let Some(uffd) = uffd_or_skip(FeatureFlags::EVENT_UNMAP) else { return };
    let (scratch, image) = (Scratch::new(), Image::new(64));
    let (kept, dropped) = (Mapping::new(32 * PAGE).unwrap(), Mapping::new(32 * PAGE).unwrap());
    let server = FaultServer::listen(&scratch.socket(), image.clone(), options(16)).unwrap();
    let _stream = hand_over(&scratch.socket(), &[(&kept, 0), (&dropped, 32 * PAGE)], &uffd);
    assert!(page_of(&dropped, 5) == image.page(37));
    drop(dropped);
    for page in 0..32 {
        assert!(page_of(&kept, page) == image.page(page));
    }
    assert_eq!(server.stop().unwrap(), End::Stopped);
    assert_eq!(server.stats().pages_removed, 32);
    // Unmapping waits until somebody reads the event, or the last handle is closed.
    drop(uffd);
}

/// Sets huge pages aside for as long as it lives.
struct HugePages {
    before: String,
}

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    fn or_skip(count: u64) -> Option<Self> {
        let before = std::fs::read_to_string(HUGE_PAGES).unwrap_or_default();
        let had: u64 = before.trim().parse().unwrap_or(0);
        if let Err(e) = std::fs::write(HUGE_PAGES, (had + count).to_string()) {
            eprintln!("SKIP: huge pages cannot be set aside: {e}");
            return None;
        }
        Some(Self { before })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(HUGE_PAGES, self.before.trim());
    }
}

const HUGE: usize = 2 << 20;

/// Four huge pages, of a memfd on hugetlbfs or of none.
fn huge_memory(memfd: bool) -> std::io::Result<Mapping> {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    if !memfd {
        return Mapping::huge(4 * HUGE);
    }
    let file = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)?;
    ftruncate(&file, 4 * HUGE as u64)?;
    Mapping::of_cache(&file, 0, 4 * HUGE)
}

#[test]
fn huge_pages_are_served_whole() {
    let Some(_pages) = HugePages::or_skip(4) else { return };
    // One with content all over, one zero, one that begins with zeros, one that ends with them.
    let mut content = vec![0; 4 * HUGE];
    for (i, byte) in content.iter_mut().enumerate() {
        let (page, within) = (i / HUGE, i % HUGE);
        if page == 0 || page == 2 && within > HUGE / 2 || page == 3 && within < HUGE / 2 {
            *byte = (within / 4096 * 3 + page) as u8 | 1;
        }
    }
    let image = Arc::new(Image(content));
    // A piece of a huge page is prefetched as the whole of it.
    let piece = Prefetch::Runs(vec![PageRun { first: 600, pages: 1 }, PageRun { first: 1030, pages: 3 }]);
    for (memfd, prefetch, ahead) in [(false, Prefetch::None, 0), (true, Prefetch::None, 0), (true, piece, 2)]
    {
        let Some(uffd) = uffd_or_skip(FeatureFlags::empty()) else { return };
        let memory = match huge_memory(memfd) {
            Ok(memory) => memory,
            Err(e) => return eprintln!("SKIP: no huge pages to map: {e}"),
        };
        let scratch = Scratch::new();
        let options = FaultServerOptions { prefetch, ..options(16) };
        let server = FaultServer::listen(&scratch.socket(), image.clone(), options).unwrap();
        uffd.register(memory.pointer(), memory.len()).unwrap();
        let stream = UnixStream::connect(scratch.socket()).unwrap();
        let text = format!("[{}]", region(&memory, 0, HUGE));
        send(&stream, text.as_bytes(), &[uffd.as_fd()]).unwrap();
        eventually("pages are prefetched", || server.stats().prefetched == ahead);
        let read = |page: usize| {
            let mut content = vec![0xee; HUGE];
            memory.read(page * HUGE, &mut content);
            content
        };
        for page in [3, 1, 0, 2] {
            assert!(read(page) == image.0[page * HUGE..(page + 1) * HUGE], "huge page {page}");
        }
        memory.discard(0, HUGE).unwrap();
        assert!(read(0).iter().all(|byte| *byte == 0));
        server.stop().unwrap();
        let stats = server.stats();
        assert_eq!((stats.pages, stats.pages_total, stats.faults), (4, 4, 5 - ahead));
        assert_eq!((stats.bytes_copied, stats.bytes_zeroed), (3 * HUGE as u64, 2 * HUGE as u64));
    }
}

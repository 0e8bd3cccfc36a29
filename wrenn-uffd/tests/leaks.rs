//! Servers leave no thread and no descriptor behind. A binary of its own: it counts those of the whole
//! process.

use std::sync::Arc;
use std::time::Instant;

use userfaultfd::FeatureFlags;
use wrenn_base::{Reaper, UndoList};
use wrenn_uffd::{Backing, End, FaultServer, FaultServerOptions, PageCache, Prefetch};

#[path = "server/peer.rs"]
#[allow(dead_code, reason = "shared with tests that need more of it")]
mod peer;
#[path = "../examples/plain_process/sys.rs"]
#[allow(unsafe_code)]
mod sys;

use peer::{Image, LONG, PAGE, Scratch, hand_over, join, page_of, shuffled, uffd_or_skip};
use sys::Mapping;

const PAGES: usize = 64;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The servers' threads that are left, after a while: one that was joined may be listed a moment longer.
fn threads_left() -> usize {
    let begun = Instant::now();
    loop {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        let left = names.filter(|name| name.trim() == "wrenn-uffd").count();
        if left == 0 || begun.elapsed() > LONG {
            return left;
        }
        std::thread::yield_now();
    }
}

/// One server's life, in a way that the number chooses. False where there is no userfaultfd.
fn round(
    number: usize,
    scratch: &Scratch,
    image: &Arc<Image>,
    cache: &Arc<PageCache>,
    reaper: &Reaper,
) -> bool {
    let Some(uffd) = uffd_or_skip(FeatureFlags::EVENT_REMOVE) else { return false };
    let mut undo = UndoList::new(reaper);
    let options = FaultServerOptions {
        threads: 1 + number % 3,
        record: number.is_multiple_of(2),
        prefetch: if number.is_multiple_of(7) { Prefetch::All } else { Prefetch::None },
        ..FaultServerOptions::default()
    };
    let cached = number % 4 > 1;
    let backing: Backing = if cached { cache.clone().into() } else { image.clone().into() };
    let server = FaultServer::bind(&scratch.socket(), backing, options, &mut undo).unwrap();
    let (stream, memory) = if cached {
        let (stream, _, memory) = join(&scratch.socket(), &uffd);
        (stream, memory)
    } else {
        let memory = Mapping::new(PAGES * PAGE).unwrap();
        (hand_over(&scratch.socket(), &[(&memory, 0)], &uffd), memory)
    };
    for page in shuffled(PAGES, number as u64).into_iter().take(number % PAGES) {
        assert!(page_of(&memory, page) == image.page(page), "round {number}, page {page}");
    }
    // By stop, by drop and by undo in turn.
    match number % 3 {
        0 => assert_eq!(server.stop().unwrap(), End::Stopped),
        1 => drop(server),
        _ => assert!(undo.run(LONG).is_empty()),
    }
    drop(stream);
    true
}

#[test]
fn five_hundred_rounds_leave_nothing_behind() {
    let (scratch, image, reaper) = (Scratch::new(), Image::new(PAGES), Reaper::start());
    let bare = descriptors();
    let Ok(mut cache) = PageCache::new(image.clone()) else { return eprintln!("SKIP: no userfaultfd here") };
    // Whatever the first rounds set up for good is not a leak.
    for number in 0..8 {
        if !round(number, &scratch, &image, &cache, &reaper) {
            return;
        }
    }
    reaper.wait_idle(LONG);
    assert_eq!(threads_left(), 0);
    let before = descriptors();
    for number in 1..=500 {
        if number % 50 == 0 {
            cache = PageCache::new(image.clone()).unwrap();
        }
        assert!(round(number, &scratch, &image, &cache, &reaper));
    }
    reaper.wait_idle(LONG);
    assert_eq!((threads_left(), descriptors()), (0, before));
    assert_eq!(Arc::strong_count(&cache), 1, "no server holds the cache");
    drop(cache);
    assert_eq!(Arc::strong_count(&image), 1, "no server holds the source");
    assert!(descriptors() <= bare, "the cache's descriptors are closed with it");
}

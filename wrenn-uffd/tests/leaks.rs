//! Servers leave no thread and no descriptor behind. A binary of its own: it counts those of the whole
//! process.

use std::sync::Arc;
use std::time::Instant;

use userfaultfd::FeatureFlags;
use wrenn_base::{Reaper, UndoList};
use wrenn_uffd::{End, FaultServer, FaultServerOptions};

#[path = "server/peer.rs"]
#[allow(dead_code, reason = "shared with tests that need more of it")]
mod peer;
#[path = "../examples/plain_process/sys.rs"]
#[allow(unsafe_code)]
mod sys;

use peer::{Image, LONG, PAGE, Scratch, hand_over, page_of, shuffled, uffd_or_skip};
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

#[test]
fn a_hundred_rounds_leave_nothing_behind() {
    let (scratch, image) = (Scratch::new(), Image::new(PAGES));
    let reaper = Reaper::start();
    let round = |number: usize| {
        let Some(uffd) = uffd_or_skip(FeatureFlags::EVENT_REMOVE) else { return false };
        let memory = Mapping::new(PAGES * PAGE).unwrap();
        let mut undo = UndoList::new(&reaper);
        let options = FaultServerOptions::default();
        let server = FaultServer::bind(&scratch.socket(), image.clone(), options, &mut undo).unwrap();
        let stream = hand_over(&scratch.socket(), &[(&memory, 0)], &uffd);
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
    };
    // Whatever the first round sets up for good is not a leak.
    if !round(0) {
        return;
    }
    reaper.wait_idle(LONG);
    assert_eq!(threads_left(), 0);
    let before = descriptors();
    for number in 1..=100 {
        assert!(round(number));
    }
    reaper.wait_idle(LONG);
    assert_eq!((threads_left(), descriptors()), (0, before));
    assert_eq!(Arc::strong_count(&image), 1, "no server holds the source");
}

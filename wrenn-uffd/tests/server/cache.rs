//! Several processes on one page cache.

use std::os::fd::AsFd;
use std::sync::Arc;

use userfaultfd::FeatureFlags;
use wrenn_base::BoxError;
use wrenn_uffd::{
    End, FaultServer, FaultServerOptions, HandshakeError, PageCache, PageSource, Run, RunKind, UffdError,
};

use super::children::{PAGES as CHILD_PAGES, Served};
use super::guest::{Guest, all_data};
use super::peer::{
    Image, LONG, PAGE, Scratch, eventually, noting_failure, page_of, region, send, shuffled, take_cache,
    uffd_or_skip,
};
use super::sys::Mapping;

fn options(run_pages: u32, threads: usize) -> FaultServerOptions {
    FaultServerOptions { run_pages, threads, ..FaultServerOptions::default() }
}

#[test]
fn clones_that_read_at_once_all_see_the_image() {
    const PAGES: usize = 1500;
    for (run_pages, threads) in [(1, 1), (16, 1), (64, 2)] {
        let image = Image::new(PAGES);
        let Ok(cache) = PageCache::new(image.clone()) else { return };
        let clones: Option<Vec<_>> =
            (0..4).map(|_| Guest::start(cache.clone(), PAGES, options(run_pages, threads))).collect();
        let Some(clones) = clones else { return };
        std::thread::scope(|scope| {
            for (seed, clone) in clones.iter().enumerate() {
                let image = &image;
                scope.spawn(move || {
                    for page in shuffled(PAGES, seed as u64) {
                        assert!(page_of(&clone.memory, page) == image.page(page), "page {page}");
                    }
                });
            }
        });
        let data = (0..PAGES).filter(|page| !image.is_zero(*page)).count();
        assert_eq!(cache.filled().0, (data * PAGE) as u64, "zero pages are not in the cache");
        for clone in &clones {
            assert_eq!(clone.server.stop().unwrap(), End::Stopped);
        }
        let stats: Vec<_> = clones.iter().map(|clone| clone.server.stats()).collect();
        let copied: u64 = stats.iter().map(|stats| stats.bytes_copied).sum();
        assert_eq!(copied, cache.filled().0, "every page was put there once");
        for stats in stats {
            assert_eq!(stats.bytes_zeroed, ((PAGES - data) * PAGE) as u64, "a zero page is each clone's own");
        }
    }
}

#[test]
fn a_second_clone_takes_no_fault_for_what_is_there() {
    const PAGES: usize = 600;
    let image = all_data(PAGES);
    let Ok(cache) = PageCache::new(image.clone()) else { return };
    let Some(first) = Guest::start(cache.clone(), PAGES, options(16, 1)) else { return };
    for page in shuffled(PAGES / 2, 5) {
        assert!(page_of(&first.memory, page) == image.page(page));
    }
    // The rest of the last run came along.
    let there = cache.filled().0 as usize / PAGE;
    assert_eq!(there, (PAGES / 2).next_multiple_of(16));
    let second = Guest::start(cache.clone(), PAGES, options(16, 1)).unwrap();
    for page in shuffled(there, 6) {
        assert!(page_of(&second.memory, page) == image.page(page));
    }
    assert_eq!(second.server.stats().faults, 0);
    for page in there..PAGES {
        assert!(page_of(&second.memory, page) == image.page(page));
    }
    second.server.stop().unwrap();
    assert!(second.server.stats().faults > 0, "beyond, it is served as the first was");
}

#[test]
fn what_a_clone_writes_is_its_own() {
    const PAGES: usize = 64;
    let image = Image::new(PAGES);
    let Ok(cache) = PageCache::new(image.clone()) else { return };
    let Some(writer) = Guest::start(cache.clone(), PAGES, options(16, 1)) else { return };
    let reader = Guest::start(cache.clone(), PAGES, options(16, 1)).unwrap();
    // Some pages are there before they are written, others are not.
    for page in (0..PAGES).step_by(3) {
        assert!(page_of(&reader.memory, page) == image.page(page));
    }
    for page in shuffled(PAGES, 8) {
        writer.memory.write(page * PAGE + 9, 0xd1);
        let mut expected = image.page(page).to_vec();
        expected[9] = 0xd1;
        assert!(page_of(&writer.memory, page) == expected, "page {page}");
    }
    let late = Guest::start(cache.clone(), PAGES, options(16, 1)).unwrap();
    for page in 0..PAGES {
        assert!(page_of(&reader.memory, page) == image.page(page), "page {page} of one from before");
        assert!(page_of(&late.memory, page) == image.page(page), "page {page} of one from after");
    }
}

#[test]
fn a_cache_may_be_mapped_in_several_pieces() {
    const PAGES: usize = 96;
    let image = Image::new(PAGES);
    let Ok(cache) = PageCache::new(image.clone()) else { return };
    let (Some(uffd), scratch) = (uffd_or_skip(FeatureFlags::EVENT_REMOVE), Scratch::new()) else { return };
    let server = FaultServer::listen(&scratch.socket(), cache, options(16, 1)).unwrap();
    let (stream, fd, size) = take_cache(&scratch.socket());
    assert_eq!(size, PAGES * PAGE);
    let split = 37 * PAGE;
    let low = Mapping::of_cache(&fd, 0, split).unwrap();
    let high = Mapping::of_cache(&fd, split as u64, size - split).unwrap();
    for memory in [&low, &high] {
        uffd.register(memory.pointer(), memory.len()).unwrap();
    }
    let text = format!("[{},{}]", region(&high, split, PAGE), region(&low, 0, PAGE));
    send(&stream, text.as_bytes(), &[uffd.as_fd()]).unwrap();
    for page in shuffled(PAGES, 4) {
        let content = if page < 37 { page_of(&low, page) } else { page_of(&high, page - 37) };
        assert!(content == image.page(page), "page {page}");
    }
    server.stop().unwrap();
}

/// What a server on a cache makes of a peer's regions.
fn verdict(features: FeatureFlags, page_size: usize) -> Option<HandshakeError> {
    let cache = PageCache::new(all_data(512)).ok()?;
    let (uffd, scratch) = (uffd_or_skip(features)?, Scratch::new());
    let server = FaultServer::listen(&scratch.socket(), cache, options(16, 1)).unwrap();
    let (stream, fd, size) = take_cache(&scratch.socket());
    let memory = Mapping::of_cache(&fd, 0, size).unwrap();
    uffd.register(memory.pointer(), memory.len()).unwrap();
    let mut text = format!("[{}]", region(&memory, 0, page_size));
    if page_size != PAGE {
        // Aligned, so that only its page size is wrong.
        text = text.replace(&memory.address().to_string(), &(1u64 << 40).to_string());
    }
    send(&stream, text.as_bytes(), &[uffd.as_fd()]).unwrap();
    let error = server.wait(LONG).unwrap().unwrap_err();
    drop(server);
    match Arc::into_inner(error).unwrap() {
        UffdError::Handshake { source, .. } => Some(source),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_process_that_a_cache_cannot_serve_is_refused() {
    // It could discard memory without anybody knowing, and find old content there.
    let Some(refused) = verdict(FeatureFlags::empty(), PAGE) else { return };
    assert!(matches!(refused, HandshakeError::Removals), "{refused:?}");
    let refused = verdict(FeatureFlags::EVENT_REMOVE, 2 << 20).unwrap();
    assert!(matches!(refused, HandshakeError::Region { index: 0, reason } if reason.contains("page cache")));
}

#[test]
fn images_that_are_not_made_of_pages_have_no_cache() {
    for len in [0, 4095, 4097] {
        let refused = PageCache::new(Arc::new(Image(vec![1; len])));
        assert!(matches!(refused, Err(UffdError::System { .. })), "{len} bytes");
    }
}

/// Somebody touches a page of the memfd where no userfaultfd watches: the kernel makes one of zeros.
fn taint(cache: &Arc<PageCache>, page: usize) -> Option<()> {
    let scratch = Scratch::new();
    let server = FaultServer::listen(&scratch.socket(), cache.clone(), options(16, 1)).unwrap();
    let (_stream, fd, size) = take_cache(&scratch.socket());
    assert_eq!(page_of(&Mapping::of_cache(&fd, 0, size).unwrap(), page), [0; PAGE]);
    server.stop().unwrap();
    Some(())
}

#[test]
fn a_cache_that_others_filled_is_not_used_any_more() {
    const PAGES: usize = 64;
    let image = all_data(PAGES);
    let Ok(cache) = PageCache::new(image.clone()) else { return };
    let (noting, noted) = noting_failure();
    let Some(clone) = Guest::start(cache.clone(), PAGES, FaultServerOptions { run_pages: 16, ..noting })
    else {
        return;
    };
    assert!(page_of(&clone.memory, 3) == image.page(3));
    taint(&cache, 22).unwrap();
    // Nobody begins with it.
    let scratch = Scratch::new();
    let server = FaultServer::listen(&scratch.socket(), cache.clone(), options(16, 1)).unwrap();
    let _stream = std::os::unix::net::UnixStream::connect(scratch.socket()).unwrap();
    let error = server.wait(LONG).unwrap().unwrap_err();
    assert!(matches!(&*error, UffdError::Tainted { .. }), "{error:?}");
    // And who is on it ends as soon as the server finds out. The thread that waits is let go at the end.
    let waiting = Arc::new(clone);
    let reader = waiting.clone();
    let touch = std::thread::spawn(move || drop(page_of(&reader.memory, 20)));
    let error = waiting.server.wait(LONG).unwrap().unwrap_err();
    assert!(matches!(&*error, UffdError::Tainted { offset: 0x16000 }), "{error:?}");
    eventually("the callback is called", || noted.lock().unwrap().is_some());
    waiting.uffd.wake(waiting.memory.pointer(), waiting.memory.len()).unwrap();
    waiting.uffd.unregister(waiting.memory.pointer(), waiting.memory.len()).unwrap();
    touch.join().unwrap();
    assert!(waiting.server.stop().is_err());
}

#[test]
fn a_cache_outlives_a_process_that_is_killed_on_it() {
    if uffd_or_skip(FeatureFlags::EVENT_REMOVE).is_none() {
        return;
    }
    struct Gated(Arc<Image>, std::sync::Mutex<std::sync::mpsc::Receiver<()>>);
    impl PageSource for Gated {
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn lookup(&self, _offset: u64, max: u64) -> Run {
            Run { kind: RunKind::Data, len: max }
        }
        fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError> {
            let _ = self.1.lock().unwrap().recv();
            self.0.read(offset, buf)
        }
    }
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    let image = all_data(CHILD_PAGES);
    let cache = PageCache::new(Arc::new(Gated(image.clone(), may_go_on.into()))).unwrap();
    let scratch = Scratch::new();
    let (noting, noted) = noting_failure();
    let server = FaultServer::listen(&scratch.socket(), cache.clone(), noting).unwrap();
    let mut served = Served::start("touch one page of a cache", &scratch.socket());
    served.wait_for_fault();
    served.child.kill().unwrap();
    served.child.wait().unwrap();
    drop(go_on);
    assert_eq!(server.wait(LONG).unwrap().unwrap(), End::ProcessExited);
    assert!(noted.lock().unwrap().is_none());
    let next = Guest::start(cache.clone(), CHILD_PAGES, options(16, 1)).unwrap();
    for page in 0..CHILD_PAGES {
        assert!(page_of(&next.memory, page) == image.page(page), "page {page}");
    }
}

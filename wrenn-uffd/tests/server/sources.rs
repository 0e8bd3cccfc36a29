//! Sources that do more than they must, and fills that the kernel refuses.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};

use wrenn_base::BoxError;
use wrenn_uffd::{Backing, End, FaultServerOptions, PageCache, PageSource, Run, RunKind};

use super::guest::Guest;
use super::peer::{Image, PAGE, eventually, page_of, shuffled};

fn options(run_pages: u32) -> FaultServerOptions {
    FaultServerOptions { run_pages, ..FaultServerOptions::default() }
}

/// An image that lends its content, and cannot be read otherwise.
struct Lent(Arc<Image>);

impl PageSource for Lent {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn lookup(&self, offset: u64, max: u64) -> Run {
        self.0.lookup(offset, max)
    }

    fn read(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), BoxError> {
        Err("what is lent need not be read".into())
    }

    fn resident(&self, offset: u64, len: usize) -> Option<&[u8]> {
        Some(&self.0.0[offset as usize..offset as usize + len])
    }
}

#[test]
fn what_lies_in_memory_is_not_read() {
    const PAGES: usize = 300;
    let image = Image::new(PAGES);
    for cached in [false, true] {
        let source = Arc::new(Lent(image.clone()));
        let backing: Backing = if cached { PageCache::new(source).unwrap().into() } else { source.into() };
        let Some(guest) = Guest::start(backing, PAGES, options(16)) else { return };
        guest.check(&image, shuffled(PAGES, 2));
        assert_eq!(guest.server.stop().unwrap(), End::Stopped);
    }
}

/// A source whose runs end where its compressed frames do: every seven pages.
struct Framed(Arc<Image>, Mutex<Vec<(usize, usize)>>);

impl PageSource for Framed {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn lookup(&self, offset: u64, max: u64) -> Run {
        let frame = (7 * PAGE) as u64;
        Run { kind: RunKind::Data, len: max.min(frame - offset % frame) }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError> {
        self.1.lock().unwrap().push((offset as usize / PAGE, buf.len() / PAGE));
        self.0.read(offset, buf)
    }
}

#[test]
fn a_fault_reads_nothing_beyond_what_the_source_has_at_hand() {
    const PAGES: usize = 64;
    let source = Arc::new(Framed(Image::new(PAGES), Default::default()));
    let Some(guest) = Guest::start(source.clone(), PAGES, options(32)) else { return };
    guest.check(&source.0, [20, 3, 30, 33, 63]);
    guest.server.stop().unwrap();
    // The runs of 32 cut the frame of pages 28 to 34, and the image's end the last one.
    assert_eq!(*source.1.lock().unwrap(), [(14, 7), (0, 7), (28, 4), (32, 3), (63, 1)]);
}

#[test]
fn pages_that_the_process_fills_itself_stay_as_they_are() {
    const PAGES: usize = 64;
    let image = Image::new(PAGES);
    for cached in [false, true] {
        let backing: Backing =
            if cached { PageCache::new(image.clone()).unwrap().into() } else { image.clone().into() };
        let Some(guest) = Guest::start(backing, PAGES, options(16)) else { return };
        // In the midst of a run of data, and of a run of zeros.
        for page in [7, 17] {
            assert_eq!(image.is_zero(page), page == 17);
            super::forking::copy(&guest.uffd, &guest.memory, page * PAGE, &[0x5a; PAGE]);
        }
        for page in shuffled(PAGES, 3) {
            let expected = if page == 7 || page == 17 { &[0x5a; PAGE][..] } else { image.page(page) };
            assert!(page_of(&guest.memory, page) == expected, "page {page}");
        }
        assert_eq!(guest.server.stop().unwrap(), End::Stopped);
    }
}

/// While a removal is announced and nobody has read of it, the kernel refuses to fill pages.
#[test]
fn a_fill_that_meets_a_removal_is_tried_again() {
    const PAGES: usize = 256;
    struct Gated(Arc<Image>, Mutex<Receiver<()>>, AtomicBool);
    impl PageSource for Gated {
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn lookup(&self, offset: u64, max: u64) -> Run {
            self.0.lookup(offset, max)
        }
        fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError> {
            self.2.store(true, SeqCst);
            let _ = self.1.lock().unwrap().recv();
            self.0.read(offset, buf)
        }
    }
    let (open, gate) = channel();
    let image = Image::new(PAGES);
    let source = Arc::new(Gated(image.clone(), gate.into(), AtomicBool::new(false)));
    let Some(guest) = Guest::start(source.clone(), PAGES, options(16)) else { return };
    let Guest { server, memory, .. } = &guest;
    std::thread::scope(|scope| {
        // Its answer waits for the source ...
        scope.spawn(|| assert!(page_of(memory, 6) == image.page(6)));
        eventually("the source is asked", || source.2.load(SeqCst));
        // ... and meanwhile another thread gives up a neighbour.
        scope.spawn(|| memory.discard(8 * PAGE, PAGE).unwrap());
        eventually("a removal is announced", || guest.has_news());
        drop(open);
    });
    assert_eq!(page_of(memory, 8), [0; PAGE], "and it is gone");
    assert!(page_of(memory, 9) == image.page(9));
    server.stop().unwrap();
    let stats = server.stats();
    assert!(stats.retries > 0, "{stats:?}");
    assert_eq!(stats.pages_removed, 1);
}

//! The two yardsticks, by the `userfaultfd` crate.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use userfaultfd::{Event, FeatureFlags};

use crate::peer::{PAGE, uffd_or_skip};
use crate::sys::Mapping;

/// Fills memory from `image` in pieces of 2 MiB, with nobody waiting.
pub(crate) fn bulk(image: &[u8]) -> Option<Duration> {
    let memory = Mapping::new(image.len()).ok()?;
    let uffd = uffd_or_skip(FeatureFlags::empty())?;
    uffd.register(memory.pointer(), memory.len()).ok()?;
    let begun = crate::used();
    for (i, piece) in image.chunks(2 << 20).enumerate() {
        // SAFETY: the target lies within the mapping, which nobody has references into.
        unsafe {
            let target = memory.pointer().byte_add(i * (2 << 20));
            uffd.copy(piece.as_ptr().cast(), target, piece.len(), true).ok()?;
        }
    }
    Some(crate::used() - begun)
}

/// Touches pages that a loop of poll, read and copy fills, `run_pages` at a time.
pub(crate) fn minimal_handler(image: &[u8], order: &[usize], run_pages: usize) -> Option<Duration> {
    let run = run_pages * PAGE;
    let memory = Mapping::new(image.len()).ok()?;
    let uffd = uffd_or_skip(FeatureFlags::empty())?;
    uffd.register(memory.pointer(), memory.len()).ok()?;
    let done = AtomicBool::new(false);
    Some(std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let mut fds = [rustix::event::PollFd::new(&uffd, rustix::event::PollFlags::IN)];
                let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                if rustix::event::poll(&mut fds, Some(&pause)).is_ok_and(|ready| ready > 0)
                    && let Ok(Some(Event::Pagefault { addr, .. })) = uffd.read_event()
                {
                    let first = (addr as usize - memory.pointer() as usize) / run * run;
                    let source = image[first..first + run].as_ptr().cast();
                    // SAFETY: the run lies within the mapping, which nobody has references into: both end with
                    // the image, and it is a whole number of runs.
                    let _ = unsafe { uffd.copy(source, memory.pointer().byte_add(first), run, true) };
                }
            }
        });
        let took = super::touch(&memory, order);
        done.store(true, Relaxed);
        took
    }))
}

//! Sources that fail, processes that die, events that cannot be served: the server always comes to an end,
//! and the process never runs on with wrong content.

use std::os::unix::process::ExitStatusExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use userfaultfd::FeatureFlags;
use wrenn_base::{BoxError, Reaper, UndoList};
use wrenn_uffd::{
    Backing, End, FaultServer, FaultServerOptions, PageCache, PageSource, Run, RunKind, UffdError,
};

use super::children::{PAGES, Served};
use super::peer::{Image, LONG, PAGE, Scratch, hand_over, noting_failure, page_of, uffd_or_skip};
use super::sys::Mapping;

/// A source whose reads do what a test wants.
pub(crate) struct Scripted<F>(pub(crate) F);

impl<F: Fn(u64, &mut [u8]) -> Result<(), BoxError> + Send + Sync + 'static> PageSource for Scripted<F> {
    fn len(&self) -> u64 {
        (PAGES * PAGE) as u64
    }

    fn lookup(&self, _offset: u64, max: u64) -> Run {
        Run { kind: RunKind::Data, len: max }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError> {
        (self.0)(offset, buf)
    }
}

/// Options that kill `process` on failure, as a user of the server must.
fn killing(process: Arc<Mutex<Option<Pid>>>) -> (FaultServerOptions, Receiver<Arc<UffdError>>) {
    let (failed, seen) = channel();
    let on_failure = Box::new(move |error| {
        failed.send(error).unwrap();
        kill_process(process.lock().unwrap().unwrap(), Signal::KILL).unwrap();
    });
    (FaultServerOptions { on_failure: Some(on_failure), ..FaultServerOptions::default() }, seen)
}

fn can_serve() -> bool {
    uffd_or_skip(FeatureFlags::EVENT_REMOVE).is_some()
}

/// Runs a child with a source and returns the error that killed it.
fn error_that_kills(job: &str, backing: impl Into<Backing>, threads: usize) -> Arc<UffdError> {
    let (scratch, process) = (Scratch::new(), Arc::new(Mutex::new(None)));
    let (mut options, failed) = killing(process.clone());
    options.threads = threads;
    // Held until the child's id is known, so that the callback has it.
    let mut pid = process.lock().unwrap();
    let server = FaultServer::listen(&scratch.socket(), backing, options).unwrap();
    let mut served = Served::start(job, &scratch.socket());
    *pid = Some(served.pid());
    drop(pid);
    let error = failed.recv_timeout(LONG).unwrap();
    assert_eq!(served.child.wait().unwrap().signal(), Some(libc::SIGKILL));
    let outcome = server.wait(LONG).unwrap().unwrap_err();
    assert!(Arc::ptr_eq(&outcome, &error));
    assert!(Arc::ptr_eq(&server.stop().unwrap_err(), &error));
    assert!(!scratch.socket().exists());
    error
}

/// A source with one page that cannot be read.
fn bad_at(bad: u64) -> Arc<dyn PageSource> {
    Arc::new(Scripted(move |offset, buf: &mut [u8]| {
        buf.fill(1);
        let is_bad = (offset..offset + buf.len() as u64).contains(&bad);
        if is_bad { Err("the disk is on fire".into()) } else { Ok(()) }
    }))
}

#[test]
fn a_source_error_is_reported_and_the_process_killed() {
    if !can_serve() {
        return;
    }
    let check = |error: Arc<UffdError>| match &*error {
        UffdError::Source { offset: 0x13000, source } => {
            assert_eq!(source.to_string(), "the disk is on fire")
        }
        other => panic!("{other:?}"),
    };
    for threads in [1, 3] {
        check(error_that_kills("touch all pages", bad_at(0x13000), threads));
        let cache = PageCache::new(bad_at(0x13000)).unwrap();
        check(error_that_kills("touch all pages of a cache", cache, threads));
    }
}

#[test]
fn a_page_that_is_given_back_on_a_cache_is_the_end_of_the_process() {
    if !can_serve() {
        return;
    }
    for threads in [1, 3] {
        let cache = PageCache::new(Image::new(PAGES)).unwrap();
        let error = error_that_kills("discard a page of a cache", cache.clone(), threads);
        assert!(matches!(&*error, UffdError::Removed { .. }), "{error:?}");
        assert_eq!(Arc::strong_count(&cache), 1, "no server holds the cache");
    }
}

#[test]
fn a_neighbour_that_cannot_be_read_does_not_hurt_before_it_is_touched() {
    if !can_serve() {
        return;
    }
    // Page 7 is bad; page 6, in the same run, is what the child wants.
    let source = Scripted(|offset: u64, buf: &mut [u8]| {
        buf.fill(1);
        let bad = (offset..offset + buf.len() as u64).contains(&0x7000);
        if bad { Err("a bad page".into()) } else { Ok(()) }
    });
    let scratch = Scratch::new();
    let server =
        FaultServer::listen(&scratch.socket(), Arc::new(source), FaultServerOptions::default()).unwrap();
    let mut served = Served::start("touch one page", &scratch.socket());
    assert!(served.child.wait().unwrap().success());
    assert_eq!(server.wait(LONG).unwrap().unwrap(), End::ProcessExited);
    assert_eq!(server.stats().pages, 1);
}

#[test]
fn a_source_that_panics_is_reported_and_the_process_killed() {
    if !can_serve() {
        return;
    }
    let error = error_that_kills(
        "touch one page",
        Arc::new(Scripted(|_, _: &mut [u8]| panic!("a bug in the source"))),
        2,
    );
    assert!(
        matches!(&*error, UffdError::Panicked { message } if message == "a bug in the source"),
        "{error:?}"
    );
}

#[test]
fn a_fault_outside_the_regions_is_reported_and_the_process_killed() {
    if !can_serve() {
        return;
    }
    let error = error_that_kills("touch what was not handed over", Image::new(PAGES), 1);
    assert!(matches!(&*error, UffdError::Stray { .. }), "{error:?}");
}

#[test]
fn a_process_that_is_not_killed_waits_rather_than_run_on_with_zeros() {
    if !can_serve() {
        return;
    }
    let scratch = Scratch::new();
    let (options, noted) = noting_failure();
    let source = Arc::new(Scripted(|_, _: &mut [u8]| Err("gone".into())));
    let server = FaultServer::listen(&scratch.socket(), source, options).unwrap();
    // The server has the only handle of this child's userfaultfd: closing it would wake the child.
    let mut served = Served::start("touch without a userfaultfd of its own", &scratch.socket());
    served.wait_for_fault();
    let error = server.wait(LONG).unwrap().unwrap_err();
    assert!(matches!(&*error, UffdError::Source { .. }), "{error:?}");
    while noted.lock().unwrap().is_none() {
        std::thread::yield_now();
    }
    assert!(served.has_fault(), "it still waits");
    assert_eq!(served.child.try_wait().unwrap(), None);
    served.child.kill().unwrap();
    served.child.wait().unwrap();
    assert!(server.stop().is_err());
}

#[test]
fn a_process_that_exits_ends_the_service() {
    if !can_serve() {
        return;
    }
    let scratch = Scratch::new();
    let (options, noted) = noting_failure();
    let server = FaultServer::listen(&scratch.socket(), Image::new(PAGES), options).unwrap();
    let mut served = Served::start("touch all pages", &scratch.socket());
    assert!(served.child.wait().unwrap().success());
    assert_eq!(server.wait(LONG).unwrap().unwrap(), End::ProcessExited);
    assert_eq!(server.stats().pages, PAGES as u64);
    assert!(noted.lock().unwrap().is_none(), "a regular end is no failure");
    assert_eq!(server.stop().unwrap(), End::ProcessExited, "stopping later does not change how it ended");
}

#[test]
fn a_process_killed_while_it_waits_for_a_page_ends_the_service() {
    if !can_serve() {
        return;
    }
    let (reading, read_begun) = channel();
    let (go_on, may_go_on): (Sender<()>, _) = channel();
    let may_go_on = Mutex::new(may_go_on);
    let source = Scripted(move |_, buf: &mut [u8]| {
        buf.fill(1);
        reading.send(()).unwrap();
        let _ = may_go_on.lock().unwrap().recv();
        Ok(())
    });
    let scratch = Scratch::new();
    let (options, noted) = noting_failure();
    let server = FaultServer::listen(&scratch.socket(), Arc::new(source), options).unwrap();
    let mut served = Served::start("touch one page", &scratch.socket());
    read_begun.recv_timeout(LONG).unwrap();
    served.child.kill().unwrap();
    served.child.wait().unwrap();
    // Now there is a page to be filled and nothing to fill it in.
    drop(go_on);
    assert_eq!(server.wait(LONG).unwrap().unwrap(), End::ProcessExited);
    assert!(noted.lock().unwrap().is_none());
    assert_eq!(server.stats().pages, 0);
}

#[test]
fn a_fork_is_reported_and_the_process_killed() {
    if !can_serve() {
        return;
    }
    let error = error_that_kills("fork", Image::new(PAGES), 2);
    assert!(matches!(&*error, UffdError::Unsupported { event: "a fork" }), "{error:?}");
}

#[test]
fn the_failure_callback_may_stop_the_server() {
    if !can_serve() {
        return;
    }
    for threads in [1, 4] {
        stop_in_callback(threads);
    }
}

fn stop_in_callback(threads: usize) {
    let scratch = Scratch::new();
    let own: Arc<Mutex<Option<FaultServer>>> = Arc::default();
    let (done, seen) = channel();
    let in_callback = own.clone();
    let options = FaultServerOptions {
        on_failure: Some(Box::new(move |_| {
            let server = in_callback.lock().unwrap().take().unwrap();
            done.send(server.stop().is_err()).unwrap();
        })),
        threads,
        ..FaultServerOptions::default()
    };
    let source = Arc::new(Scripted(|_, _: &mut [u8]| Err("gone".into())));
    *own.lock().unwrap() = Some(FaultServer::listen(&scratch.socket(), source, options).unwrap());
    let _served = Served::start("touch one page", &scratch.socket());
    assert!(seen.recv_timeout(LONG).unwrap());
}

#[test]
fn the_undo_stops_the_server_and_is_idempotent() {
    let Some(uffd) = uffd_or_skip(FeatureFlags::empty()) else { return };
    let reaper = Reaper::start();
    for connect in [true, false] {
        let (scratch, memory) = (Scratch::new(), Mapping::new(PAGES * PAGE).unwrap());
        let mut undo = UndoList::new(&reaper);
        let options = FaultServerOptions::default();
        let server = FaultServer::bind(&scratch.socket(), Image::new(PAGES), options, &mut undo).unwrap();
        let _stream = connect.then(|| {
            let stream = hand_over(&scratch.socket(), &[(&memory, 0)], &uffd);
            page_of(&memory, 6);
            stream
        });
        assert!(undo.run(LONG).is_empty());
        assert_eq!(server.outcome().unwrap().unwrap(), End::Stopped);
        assert!(!scratch.socket().exists());
        assert_eq!(server.stop().unwrap(), End::Stopped);
    }
    // A step that never happened.
    let mut undo = UndoList::new(&reaper);
    let missing = std::path::Path::new("/nonexistent-dir/uffd.sock");
    let refused = FaultServer::bind(missing, Image::new(1), FaultServerOptions::default(), &mut undo);
    assert!(matches!(refused, Err(UffdError::Listen { path, .. }) if path == missing));
    assert!(undo.run(LONG).is_empty());
}

//! Peers that do not keep to the protocol, or do not come.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use userfaultfd::{FeatureFlags, Uffd};
use wrenn_uffd::{Backing, End, FaultServer, FaultServerOptions, HandshakeError, PageCache, UffdError};

use super::peer::{Image, LONG, PAGE, Scratch, noting_failure, page_of, region, send, uffd_or_skip};
use super::sys::Mapping;

const PAGES: usize = 64;

/// Lets `peer` talk to a fresh server and returns what the server made of it.
fn verdict(peer: impl FnOnce(&mut UnixStream)) -> HandshakeError {
    let scratch = Scratch::new();
    let (options, noted) = noting_failure();
    let server = FaultServer::listen(&scratch.socket(), Image::new(PAGES), options).unwrap();
    let mut stream = UnixStream::connect(scratch.socket()).unwrap();
    peer(&mut stream);
    drop(stream);
    let error = server.wait(LONG).unwrap().unwrap_err();
    assert!(server.stop().is_err());
    assert!(!scratch.socket().exists());
    assert!(noted.lock().unwrap().take().is_some_and(|noted| std::sync::Arc::ptr_eq(&noted, &error)));
    drop(server);
    let error = std::sync::Arc::into_inner(error).unwrap();
    assert!(error.to_string().contains("uffd.sock"), "{error}");
    match error {
        UffdError::Handshake { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

/// The same for one message with descriptors.
fn verdict_on(text: &str, fds: &[BorrowedFd<'_>]) -> HandshakeError {
    verdict(|stream| {
        let _ = send(stream, text.as_bytes(), fds);
    })
}

fn prepared() -> Option<(Uffd, Mapping)> {
    let uffd = uffd_or_skip(FeatureFlags::EVENT_REMOVE)?;
    Some((uffd, Mapping::new(PAGES * PAGE).unwrap()))
}

#[test]
fn texts_that_are_no_region_list_are_refused() {
    let Some((uffd, memory)) = prepared() else { return };
    let fds = [uffd.as_fd()];
    let good = format!("[{}]", region(&memory, 0, PAGE));
    for cut in [1, good.len() / 2, good.len() - 1] {
        let refused = verdict_on(&good[..cut], &fds);
        assert!(matches!(refused, HandshakeError::Closed { received } if received == cut), "{refused:?}");
    }
    assert!(matches!(verdict(|_| {}), HandshakeError::Closed { received: 0 }));
    let deep = "[".repeat(40_000);
    for text in ["no JSON", "{}", "[1]", "[{}]", "[{\"size\":-1}]", "[{\"size\":1e400}]", "\u{0}", &deep] {
        let refused = verdict_on(text, &fds);
        assert!(matches!(refused, HandshakeError::Text(_)), "{text:.20}: {refused:?}");
    }
    let endless = verdict(|stream| {
        // The server hangs up before it has taken all of this.
        let _ = send(stream, b"[", &fds);
        let _ = stream.write_all(&vec![b' '; 200_000]);
    });
    assert!(matches!(endless, HandshakeError::TooLong { .. }), "{endless:?}");
}

#[test]
fn regions_that_cannot_be_are_refused() {
    let Some((uffd, memory)) = prepared() else { return };
    let (fds, one) = ([uffd.as_fd()], region(&memory, 0, PAGE));
    assert!(matches!(verdict_on("[]", &fds), HandshakeError::RegionCount { found: 0, .. }));
    let overlap = verdict_on(&format!("[{one},{one}]"), &fds);
    assert!(matches!(overlap, HandshakeError::Region { index: 1, .. }), "{overlap:?}");
    let odd = verdict_on(&format!("[{}]", region(&memory, 0, 4095)), &fds);
    assert!(matches!(odd, HandshakeError::Region { index: 0, .. }), "{odd:?}");
    let small = Mapping::new(PAGES / 2 * PAGE).unwrap();
    let half = verdict_on(&format!("[{}]", region(&small, 0, PAGE)), &fds);
    assert!(matches!(half, HandshakeError::Size { .. }), "{half:?}");
    let beyond = verdict_on(&format!("[{}]", region(&memory, PAGE, PAGE)), &fds);
    assert!(matches!(beyond, HandshakeError::Region { index: 0, .. }), "{beyond:?}");
}

#[test]
fn other_descriptors_than_one_userfaultfd_are_refused() {
    let Some((uffd, memory)) = prepared() else { return };
    let good = format!("[{}]", region(&memory, 0, PAGE));
    assert!(matches!(verdict_on(&good, &[]), HandshakeError::Descriptors { found: 0 }));
    for count in [2, 3, 12] {
        let refused = verdict_on(&good, &vec![uffd.as_fd(); count]);
        assert!(matches!(refused, HandshakeError::Descriptors { found } if found <= count), "{refused:?}");
    }
    let twice = verdict(|stream| {
        send(stream, b"[", &[uffd.as_fd()]).unwrap();
        send(stream, b" ", &[uffd.as_fd()]).unwrap();
        let _ = send(stream, &good.as_bytes()[1..], &[]);
    });
    assert!(matches!(twice, HandshakeError::Descriptors { found: 2 }), "{twice:?}");
    let file = File::open("/proc/self/exe").unwrap();
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    for fd in [file.as_fd(), pipe.as_fd()] {
        let refused = verdict_on(&good, &[fd]);
        assert!(matches!(refused, HandshakeError::NotUserfaultfd { .. }), "{refused:?}");
    }
    // Made, but never told which version of the interface to speak.
    let raw = super::forking::raw_userfaultfd();
    let refused = verdict_on(&good, &[raw.as_fd()]);
    assert!(matches!(refused, HandshakeError::Unusable(_)), "{refused:?}");
}

#[test]
fn a_message_may_come_in_pieces() {
    let Some((uffd, memory)) = prepared() else { return };
    let (scratch, image) = (Scratch::new(), Image::new(PAGES));
    let server =
        FaultServer::listen(&scratch.socket(), image.clone(), FaultServerOptions::default()).unwrap();
    uffd.register(memory.pointer(), memory.len()).unwrap();
    let good = format!("[{}]", region(&memory, 0, PAGE));
    let stream = UnixStream::connect(scratch.socket()).unwrap();
    for (i, byte) in good.as_bytes().iter().enumerate() {
        let fds = [uffd.as_fd()];
        send(&stream, &[*byte], if i == 0 { &fds } else { &[] }).unwrap();
    }
    // The connection's end is not the process's.
    drop(stream);
    assert!(page_of(&memory, 6) == image.page(6));
    assert_eq!(server.stop().unwrap(), End::Stopped);
}

#[test]
fn nobody_is_waited_for_beyond_the_deadline() {
    for connect in [false, true] {
        let scratch = Scratch::new();
        let (mut options, noted) = noting_failure();
        options.accept_deadline = Duration::from_millis(50);
        let server = FaultServer::listen(&scratch.socket(), Image::new(PAGES), options).unwrap();
        let stream = connect.then(|| UnixStream::connect(scratch.socket()).unwrap());
        let error = server.wait(LONG).unwrap().unwrap_err();
        assert!(
            matches!(&*error, UffdError::Deadline { connected, .. } if *connected == connect),
            "{error:?}"
        );
        // Before the callback it may still hold on to who connected; after it the thread is gone.
        assert!(server.stop().is_err());
        assert!(noted.lock().unwrap().is_some());
        assert!(!scratch.socket().exists());
        drop(stream);
    }
}

#[test]
fn a_server_stops_in_every_phase() {
    let scratch = Scratch::new();
    let options = || FaultServerOptions { accept_deadline: Duration::MAX, ..FaultServerOptions::default() };
    for (connect, cached) in [(false, false), (true, false), (false, true), (true, true)] {
        let image = Image::new(PAGES);
        let backing: Backing = match PageCache::new(image.clone()) {
            Ok(cache) if cached => cache.into(),
            _ => image.into(),
        };
        let server = FaultServer::listen(&scratch.socket(), backing, options()).unwrap();
        assert!(server.outcome().is_none());
        let _stream = connect.then(|| UnixStream::connect(scratch.socket()).unwrap());
        assert_eq!(server.stop().unwrap(), End::Stopped);
        assert!(!scratch.socket().exists());
    }
    drop(FaultServer::listen(&scratch.socket(), Image::new(PAGES), options()).unwrap());
    assert!(!scratch.socket().exists(), "dropping stops it too");
}

#[test]
fn sockets_that_cannot_be_made_are_errors_and_leave_nothing() {
    let scratch = Scratch::new();
    let taken = UnixListener::bind(scratch.socket()).unwrap();
    let long = scratch.socket().with_file_name("x".repeat(120));
    let missing = scratch.socket().join("below-a-socket");
    for path in [scratch.socket(), long, missing] {
        let refused = FaultServer::listen(&path, Image::new(PAGES), FaultServerOptions::default());
        assert!(matches!(refused, Err(UffdError::Listen { path: p, .. }) if p == path));
    }
    assert!(scratch.socket().exists(), "another's socket stays");
    drop(taken);
}

//! The other side: sources of known content, memory to be served, and the protocol.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use userfaultfd::{FeatureFlags, Uffd, UffdBuilder};
use wrenn_base::BoxError;
use wrenn_uffd::{FaultServerOptions, PageSource, Run, RunKind, UffdError};

use super::sys::Mapping;

pub(crate) const PAGE: usize = 4096;

/// Far more than anything here takes: only a hang is to end by it.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// An image in memory in which about every third run of pages is zero.
pub(crate) struct Image(pub(crate) Vec<u8>);

impl Image {
    pub(crate) fn new(pages: usize) -> Arc<Self> {
        let mut content = vec![0; pages * PAGE];
        for (number, page) in content.chunks_mut(PAGE).enumerate() {
            if number / 5 % 3 != 0 {
                for (i, byte) in page.iter_mut().enumerate() {
                    *byte = (number * 31 + i * 7 + i / 256 + 1) as u8;
                }
            }
        }
        Arc::new(Self(content))
    }

    pub(crate) fn page(&self, page: usize) -> &[u8] {
        &self.0[page * PAGE..(page + 1) * PAGE]
    }

    pub(crate) fn is_zero(&self, page: usize) -> bool {
        self.page(page).iter().all(|byte| *byte == 0)
    }
}

impl PageSource for Image {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn lookup(&self, offset: u64, max: u64) -> Run {
        let first = offset as usize / PAGE;
        let zero = self.is_zero(first);
        let end = first + max as usize / PAGE;
        let pages = (first..end).take_while(|page| self.is_zero(*page) == zero).count();
        let kind = if zero { RunKind::Zero } else { RunKind::Data };
        Run { kind, len: (pages * PAGE) as u64 }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError> {
        buf.copy_from_slice(&self.0[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
}

/// A userfaultfd with the features that monitors ask for, or a printed reason to skip.
pub(crate) fn uffd_or_skip(features: FeatureFlags) -> Option<Uffd> {
    let mut builder = UffdBuilder::new();
    builder.close_on_exec(true).non_blocking(true).require_features(features);
    builder.create().inspect_err(|e| eprintln!("SKIP: no userfaultfd here: {e}")).ok()
}

/// A scratch directory with a socket's path in it.
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("uffd.sock")
    }
}

/// Options that note the error with which `on_failure` is called.
pub(crate) fn noting_failure() -> (FaultServerOptions, Arc<Mutex<Option<Arc<UffdError>>>>) {
    let noted = Arc::new(Mutex::new(None));
    let note = noted.clone();
    let on_failure = Box::new(move |error| *note.lock().unwrap() = Some(error));
    (FaultServerOptions { on_failure: Some(on_failure), ..FaultServerOptions::default() }, noted)
}

pub(crate) fn region(memory: &Mapping, offset: usize, page_size: usize) -> String {
    let (address, size) = (memory.address(), memory.len());
    format!(
        r#"{{"base_host_virt_addr":{address},"size":{size},"offset":{offset},"page_size":{page_size},"page_size_kib":{page_size}}}"#
    )
}

/// Sends `text` with `fds` beside it.
pub(crate) fn send(stream: &UnixStream, text: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(stream, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)
}

/// Registers `memory` and hands it over, as a monitor does.
pub(crate) fn hand_over(socket: &Path, memory: &[(&Mapping, usize)], uffd: &Uffd) -> UnixStream {
    let mut regions = Vec::new();
    for (memory, offset) in memory {
        uffd.register(memory.pointer(), memory.len()).unwrap();
        regions.push(region(memory, *offset, PAGE));
    }
    let stream = UnixStream::connect(socket).unwrap();
    send(&stream, format!("[{}]", regions.join(",")).as_bytes(), &[uffd.as_fd()]).unwrap();
    stream
}

/// Connects and takes the page cache that the server shows, with its size.
pub(crate) fn take_cache(socket: &Path) -> (UnixStream, OwnedFd, usize) {
    let stream = UnixStream::connect(socket).unwrap();
    let mut text = [0; 100];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let received = recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    assert_eq!(fds.len(), 1, "one descriptor comes with the message");
    let message: serde_json::Value = serde_json::from_slice(&text[..received.bytes]).unwrap();
    let size = message["cache_size"].as_u64().unwrap();
    (stream, fds.remove(0), size as usize)
}

/// A process's part in being served from a cache: takes it, maps it in one piece, registers it, hands over.
pub(crate) fn join(socket: &Path, uffd: &Uffd) -> (UnixStream, OwnedFd, Mapping) {
    let (stream, cache, size) = take_cache(socket);
    let memory = Mapping::of_cache(&cache, 0, size).unwrap();
    uffd.register(memory.pointer(), memory.len()).unwrap();
    send(&stream, format!("[{}]", region(&memory, 0, PAGE)).as_bytes(), &[uffd.as_fd()]).unwrap();
    (stream, cache, memory)
}

/// Waits for something that a server's thread does on its own.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LONG, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The page of a mapping, faulted in.
pub(crate) fn page_of(memory: &Mapping, page: usize) -> Vec<u8> {
    let mut content = vec![0xee; PAGE];
    memory.read(page * PAGE, &mut content);
    content
}

/// The numbers below `count` in an order that the seed determines.
pub(crate) fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<_> = (0..count).collect();
    let mut state = seed | 1;
    for i in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(i, (state >> 33) as usize % (i + 1));
    }
    order
}

//! What the monitor sends: one JSON array of regions, with the userfaultfd beside its first byte; and what it
//! is sent before that if there is a page cache.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::error::HandshakeError;
use crate::regions::WireRegion;
use crate::sys::{self, Uffd};

/// The longest message: room for every region there may be, and a bound on what a peer can make us keep.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;

/// Room for more descriptors than may come, so that too many can be told from one.
const MAX_DESCRIPTORS: usize = 4;

/// A message as far as it has come.
///
/// Descriptors are kept here until the message is judged: closing what might be the last handle of a
/// userfaultfd lets the process's waiting threads run on with zeros.
#[derive(Debug, Default)]
pub(crate) struct Message {
    text: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// How a message stands after more of it was read.
#[derive(Debug)]
pub(crate) enum Received {
    /// It is complete.
    Regions(Vec<WireRegion>),
    /// It may go on: wait for the peer.
    Partial,
}

impl Message {
    /// Reads what has come. The stream does not block.
    pub(crate) fn receive(&mut self, stream: &UnixStream) -> Result<Received, HandshakeError> {
        loop {
            let mut chunk = vec![0; MAX_MESSAGE + 1 - self.text.len()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut chunk)];
            let received = match recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::AGAIN) => return Ok(Received::Partial),
                Err(Errno::INTR) => continue,
                Err(_) => return Err(HandshakeError::Closed { received: self.text.len() }),
                Ok(received) => received,
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptors.extend(descriptors);
                }
            }
            if self.descriptors.len() > 1 || received.flags.contains(ReturnFlags::CTRUNC) {
                return Err(HandshakeError::Descriptors { found: self.descriptors.len() });
            }
            if received.bytes == 0 {
                return Err(HandshakeError::Closed { received: self.text.len() });
            }
            self.text.extend_from_slice(&chunk[..received.bytes]);
            if self.text.len() > MAX_MESSAGE {
                return Err(HandshakeError::TooLong { limit: MAX_MESSAGE });
            }
            if let Some(regions) = parse(&self.text).map_err(HandshakeError::Text)? {
                return Ok(Received::Regions(regions));
            }
        }
    }

    /// Checks the one descriptor that must have come and takes it over.
    pub(crate) fn userfaultfd(&mut self) -> Result<Uffd, HandshakeError> {
        let Some(descriptor) = self.descriptors.first() else {
            return Err(HandshakeError::Descriptors { found: 0 });
        };
        let found = sys::describe(descriptor.as_fd()).map_err(HandshakeError::Unusable)?;
        if found != Uffd::DESCRIPTION {
            return Err(HandshakeError::NotUserfaultfd { found });
        }
        // Kept open twice, so that the original stays with the message if the copy turns out to be of no use.
        let copy = descriptor.try_clone().map_err(HandshakeError::Unusable)?;
        Uffd::adopt(copy).map_err(HandshakeError::Unusable)
    }
}

/// The regions that a text lists; `None` where it may go on.
pub(crate) fn parse(text: &[u8]) -> serde_json::Result<Option<Vec<WireRegion>>> {
    match serde_json::from_slice(text) {
        Ok(regions) => Ok(Some(regions)),
        Err(e) if e.is_eof() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Tells a peer, which has just connected, of its page cache.
pub(crate) fn show(stream: &UnixStream, size: u64, cache: BorrowedFd<'_>) -> Result<(), HandshakeError> {
    let text = format!(r#"{{"cache_size":{size}}}"#);
    let fds = [cache];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let parts = [IoSlice::new(text.as_bytes())];
    // Nothing was sent before, so there is room for all of it: it is refused only if the peer is gone.
    match rustix::io::retry_on_intr(|| sendmsg(stream, &parts, &mut ancillary, SendFlags::NOSIGNAL)) {
        Ok(_) => Ok(()),
        Err(_) => Err(HandshakeError::Closed { received: 0 }),
    }
}

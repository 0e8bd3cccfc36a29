//! Waiting for the one process that is to be served.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::cache::Backing;
use crate::error::{HandshakeError, UffdError};
use crate::handshake::{self, Message, Received};
use crate::regions::{PageSize, Regions, WireRegion};
use crate::sys;

/// A socket's path, which is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketPath(pub(crate) PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The process that connected, and all that it sent.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: UnixStream,
    /// Readable once the process is gone.
    pub(crate) process: OwnedFd,
    pub(crate) message: Message,
}

/// What a wait ended with.
#[derive(Debug, PartialEq, Eq)]
enum Waited {
    Ready,
    Stopped,
    TooLate,
}

/// Waits for connection and message, until the deadline or a stop.
#[derive(Debug)]
pub(crate) struct Wait<'a> {
    pub(crate) stop: BorrowedFd<'a>,
    pub(crate) deadline: Duration,
    pub(crate) until: Instant,
}

impl Wait<'_> {
    /// Waits for a process to connect. `None` means to stop.
    pub(crate) fn accept(
        &self,
        listener: UnixListener,
        path: &SocketPath,
    ) -> Result<Option<Peer>, UffdError> {
        let stream = loop {
            match self.wait(listener.as_fd())? {
                Waited::Stopped => return Ok(None),
                Waited::TooLate => {
                    return Err(UffdError::Deadline { deadline: self.deadline, connected: false });
                }
                Waited::Ready => {}
            }
            match listener.accept() {
                Ok((stream, _)) => break stream,
                // Whoever it was has gone again, or a signal came.
                Err(e)
                    if matches!(
                        Errno::from_io_error(&e),
                        Some(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR)
                    ) => {}
                Err(e) => return Err(UffdError::system("accept the monitor's connection")(e)),
            }
        };
        stream.set_nonblocking(true).map_err(UffdError::system("set the monitor's connection up"))?;
        let process = sys::peer_pidfd(stream.as_fd()).map_err(|source| UffdError::Handshake {
            path: path.0.clone(),
            source: HandshakeError::Unwatchable(source),
        })?;
        Ok(Some(Peer { stream, process, message: Message::default() }))
    }

    /// Shows the peer its cache, if there is one, waits for its message and checks that. `None` means to stop.
    pub(crate) fn introduce(
        &self,
        peer: &mut Peer,
        path: &SocketPath,
        backing: &Backing,
    ) -> Result<Option<(Regions, sys::Uffd)>, UffdError> {
        let refused = |source| UffdError::Handshake { path: path.0.clone(), source };
        if let Some(cache) = backing.cache() {
            cache.check()?;
            handshake::show(&peer.stream, backing.source().len(), cache.shown()).map_err(refused)?;
        }
        loop {
            match self.wait(peer.stream.as_fd())? {
                Waited::Stopped => return Ok(None),
                Waited::TooLate => {
                    return Err(UffdError::Deadline { deadline: self.deadline, connected: true });
                }
                Waited::Ready => {}
            }
            if let Received::Regions(wire) = peer.message.receive(&peer.stream).map_err(refused)? {
                return accepted(&mut peer.message, &wire, backing).map(Some).map_err(refused);
            }
        }
    }

    fn wait(&self, fd: BorrowedFd<'_>) -> Result<Waited, UffdError> {
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            let timeout = timespec(left);
            let mut fds = [PollFd::new(&self.stop, PollFlags::IN), PollFd::new(&fd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Err(Errno::INTR) => continue,
                result => result.map_err(UffdError::system("wait for the monitor"))?,
            };
            return Ok(match [fds[0].revents().is_empty(), fds[1].revents().is_empty()] {
                [false, _] => Waited::Stopped,
                [true, false] => Waited::Ready,
                [true, true] if left.is_zero() => Waited::TooLate,
                [true, true] => continue,
            });
        }
    }
}

/// Checks what a peer sent.
fn accepted(
    message: &mut Message,
    wire: &[WireRegion],
    backing: &Backing,
) -> Result<(Regions, sys::Uffd), HandshakeError> {
    let uffd = message.userfaultfd()?;
    if !is_set_up(&uffd) {
        return Err(HandshakeError::Unusable(Errno::INVAL.into()));
    }
    let largest = match backing {
        Backing::Source(_) => PageSize::Huge,
        Backing::Cache(_) => PageSize::Base,
    };
    let regions = Regions::new(wire, backing.source().len(), largest)?;
    if backing.cache().is_some() && !uffd.announces_removals().map_err(HandshakeError::Unusable)? {
        return Err(HandshakeError::Removals);
    }
    Ok((regions, uffd))
}

/// Whether the userfaultfd went through `UFFDIO_API`: one that has not reports an error to whoever polls it.
fn is_set_up(uffd: &sys::Uffd) -> bool {
    let mut fds = [PollFd::new(uffd, PollFlags::IN)];
    let polled = poll(&mut fds, Some(&timespec(Duration::ZERO)));
    polled.is_ok() && !fds[0].revents().contains(PollFlags::ERR)
}

pub(crate) fn timespec(time: Duration) -> Timespec {
    let tv_sec = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: i64::from(time.subsec_nanos()) }
}

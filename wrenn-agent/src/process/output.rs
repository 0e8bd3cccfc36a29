//! The reading ends of a command's pipes, or its terminal.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use wrenn_agent_api::MAX_OUTPUT_CHUNK;

use super::outlet::Channel;

/// The most that one event of a terminal carries, in bytes: what clients of this protocol expect.
const MAX_TERMINAL_CHUNK: usize = 16 * 1024;

/// Everything that a command can write to.
pub(super) struct Output {
    sources: [Option<Source>; 2],
    buffer: Box<[u8]>,
}

struct Source {
    channel: Channel,
    end: End,
    /// Bytes that must come before anything counts as written after the command's exit.
    owed: u64,
}

enum End {
    Pipe(pipe::Receiver),
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

impl Output {
    pub(super) fn pipes(stdout: pipe::Receiver, stderr: pipe::Receiver) -> Self {
        let source = |channel, pipe| Some(Source { channel, end: End::Pipe(pipe), owed: 0 });
        Self {
            sources: [source(Channel::Stdout, stdout), source(Channel::Stderr, stderr)],
            buffer: vec![0; MAX_OUTPUT_CHUNK].into(),
        }
    }

    pub(super) fn terminal(master: Arc<AsyncFd<OwnedFd>>) -> Self {
        let source = Source { channel: Channel::Terminal, end: End::Terminal(master), owed: 0 };
        Self { sources: [Some(source), None], buffer: vec![0; MAX_TERMINAL_CHUNK].into() }
    }

    /// The next piece that was written; `None` once nobody has the other ends open. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<(Channel, Bytes)> {
        loop {
            let [first, second] = &self.sources;
            if first.is_none() && second.is_none() {
                return None;
            }
            let index = tokio::select! {
                () = readable(first) => 0,
                () = readable(second) => 1,
            };
            // Nothing awaits between here and the return: whatever was read is delivered.
            let Some(source) = &mut self.sources[index] else { continue };
            match source.end.try_read(&mut self.buffer) {
                Ok(0) => self.sources[index] = None,
                Ok(len) => {
                    source.owed = source.owed.saturating_sub(len as u64);
                    return Some((source.channel, Bytes::copy_from_slice(&self.buffer[..len])));
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // A terminal says EIO when its other end is closed by all.
                Err(_) => self.sources[index] = None,
            }
        }
    }

    /// Notes what is in the pipes now, so that [`owes`](Self::owes) tells when it has been read.
    pub(super) fn mark(&mut self) {
        for source in self.sources.iter_mut().flatten() {
            source.owed = match &source.end {
                End::Pipe(pipe) => rustix::io::ioctl_fionread(pipe).unwrap_or(0),
                // A hung-up terminal gives all it has and then its end, so it owes nothing.
                End::Terminal(_) => 0,
            };
        }
    }

    /// Whether something that [`mark`](Self::mark) noted is still to be read.
    pub(super) fn owes(&self) -> bool {
        self.sources.iter().flatten().any(|source| source.owed > 0)
    }

    /// Whether anybody can still write.
    pub(super) fn is_open(&self) -> bool {
        self.sources.iter().any(Option::is_some)
    }
}

async fn readable(source: &Option<Source>) {
    let ready = match source.as_ref().map(|source| &source.end) {
        Some(End::Pipe(pipe)) => pipe.readable().await,
        Some(End::Terminal(master)) => master.readable().await.map(drop),
        None => std::future::pending().await,
    };
    // An error means that the runtime goes down; the read will tell.
    let _ = ready;
}

impl End {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_read(buffer),
            Self::Terminal(master) => {
                master.try_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?))
            }
        }
    }
}

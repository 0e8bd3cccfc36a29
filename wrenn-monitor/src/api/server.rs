//! The API thread: one `poll` loop over the listening socket and a few connections.
//!
//! Failure paths: a connection that fails, or speaks something other than HTTP, is closed and nothing else.
//! The loop itself ends only if `poll` or the listening socket fails, which the caller takes for fatal.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use wrenn_vmm::api::{Extensions, Version};

use super::http::{self, CONTINUE, MAX_BODY, MAX_HEAD, Parsed, Request, Response, Status};
use super::route::{Routed, route};
use crate::action::{ActionSender, Answer, Fault};

/// How many clients are served at a time. One more takes the place of an idle one, or waits.
const MAX_CONNECTIONS: usize = 10;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ApiServerError {
    #[error(
        "the API socket {} exists already: remove it, or stop the monitor that serves it",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("the API socket {} cannot be made", path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("the API socket has failed")]
    Socket(#[source] io::Error),
}

/// The API's listening socket, and whoever is connected.
pub(crate) struct ApiServer {
    listener: UnixListener,
    /// Longest connected first.
    connections: Vec<Connection>,
}

impl ApiServer {
    /// Makes the socket; clients can connect from now on.
    ///
    /// # Errors
    /// If something is at `path` already, or a socket cannot be made there.
    pub(crate) fn bind(path: &Path) -> Result<Self, ApiServerError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ApiServerError::InUse { path: path.to_owned() },
            _ => ApiServerError::Bind { path: path.to_owned(), source },
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener, connections: Vec::new() })
    }

    /// Serves for ever; the machine's part is done by whoever holds the other end of `actions`.
    ///
    /// # Errors
    /// Only if the listening socket fails.
    pub(crate) fn run(mut self, actions: &ActionSender) -> Result<(), ApiServerError> {
        loop {
            self.turn(actions).map_err(ApiServerError::Socket)?;
        }
    }

    /// Waits for something to happen, and deals with it.
    fn turn(&mut self, actions: &ActionSender) -> io::Result<()> {
        let (acceptable, ready) = self.wait()?;
        let mut ready = ready.into_iter();
        self.connections.retain_mut(|connection| match ready.next() {
            Some(true) => connection.advance(actions),
            _ => true,
        });
        if acceptable {
            self.accept()?;
        }
        Ok(())
    }

    /// Whether a client can be accepted, and which connections can go on.
    fn wait(&self) -> io::Result<(bool, Vec<bool>)> {
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        if self.connections.len() == MAX_CONNECTIONS && !self.connections.iter().any(Connection::is_idle) {
            fds[0] = PollFd::new(&self.listener, PollFlags::empty());
        }
        for connection in &self.connections {
            let wanted = if connection.output.is_empty() { PollFlags::IN } else { PollFlags::OUT };
            fds.push(PollFd::new(&connection.stream, wanted));
        }
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => return Ok((false, vec![false; self.connections.len()])),
            result => result?,
        };
        let mut happened = fds.iter().map(|fd| !fd.revents().is_empty());
        let acceptable = happened.next().unwrap_or(false);
        Ok((acceptable, happened.collect()))
    }

    fn accept(&mut self) -> io::Result<()> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => return if is_passing(&error) { Ok(()) } else { Err(error) },
        };
        if self.connections.len() == MAX_CONNECTIONS {
            match self.connections.iter().position(Connection::is_idle) {
                Some(idle) => drop(self.connections.remove(idle)),
                None => return Ok(()),
            }
        }
        stream.set_nonblocking(true)?;
        self.connections.push(Connection { stream, input: Vec::new(), output: Vec::new(), ends: false });
        Ok(())
    }
}

/// Whether a failure to accept concerns one client only.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
}

/// One client.
struct Connection {
    stream: UnixStream,
    /// What it has sent and is not yet dealt with: at most one request, or the beginning of one, and a bit.
    input: Vec<u8>,
    /// What it is still to be sent.
    output: Vec<u8>,
    /// Whether to close once that is done.
    ends: bool,
}

impl Connection {
    /// Whether nothing is under way with it.
    fn is_idle(&self) -> bool {
        self.input.is_empty() && self.output.is_empty()
    }

    /// Reads, answers and writes as far as that goes without waiting. `false`: the connection is at its end.
    fn advance(&mut self, actions: &ActionSender) -> bool {
        if self.output.is_empty() && !self.receive() {
            return false;
        }
        loop {
            if self.send().is_err() {
                return false;
            }
            if !self.output.is_empty() {
                return true;
            }
            if self.ends {
                return false;
            }
            if !self.answer(actions) {
                return self.send().is_ok();
            }
        }
    }

    /// Takes what has come in; `false` at the end, or if the connection has failed.
    fn receive(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        // Never more than the largest request, so that a client cannot make this grow.
        let room = (MAX_HEAD + MAX_BODY).saturating_sub(self.input.len()).min(chunk.len());
        match self.stream.read(&mut chunk[..room]) {
            Ok(0) => false,
            Ok(len) => {
                self.input.extend(&chunk[..len]);
                true
            }
            Err(error) => is_passing(&error),
        }
    }

    /// Answers the request at the start of the input; `false` if there is none yet.
    fn answer(&mut self, actions: &ActionSender) -> bool {
        match http::parse(&self.input) {
            Ok(Parsed::Whole(request, len)) => {
                self.input.drain(..len);
                self.ends = !request.keep_alive;
                respond(&request, actions).write(&mut self.output, request.keep_alive);
                true
            }
            Ok(Parsed::Partial { waits_for_continue }) => {
                if waits_for_continue {
                    self.output.extend(CONTINUE);
                }
                false
            }
            Err(error) => {
                self.ends = true;
                error.response().write(&mut self.output, false);
                true
            }
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => drop(self.output.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Has the machine do what `request` asks.
fn respond(request: &Request, actions: &ActionSender) -> Response {
    log::debug!("{} {}", request.method, request.path);
    let outcome = match route(&request.method, &request.path, &request.body) {
        Ok(Routed::Version) => {
            return Response::json(&Version { firecracker_version: env!("CARGO_PKG_VERSION").into() });
        }
        Ok(Routed::Extensions) => return Response::json(&Extensions::CURRENT),
        Ok(Routed::Action(action)) => actions.perform(*action),
        Err(error) => Err(Fault::from_error(&error)),
    };
    match outcome {
        Ok(Answer::Done) => Response::done(),
        Ok(Answer::Instance(info)) => Response::json(&info),
        Ok(Answer::Machine(config)) => Response::json(&config),
        Ok(Answer::Config(config)) => Response::json(&config),
        Ok(Answer::Memory(memory)) => Response::json(&memory),
        Err(fault) => {
            log::warn!("{} {} was refused: {fault}", request.method, request.path);
            Response::fault(Status::BadRequest, fault.message)
        }
    }
}

#[cfg(test)]
mod tests;

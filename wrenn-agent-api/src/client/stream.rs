//! The events of one command, as they come.

use std::time::Duration;

use bytes::Bytes;
use connectrpc::client::ServerStream;
use connectrpc::{ConnectError, ErrorCode};

use super::AgentError;
use super::transport::Transport;
use crate::proto::process as pb;
use crate::proto::process::__buffa::oneof;
use crate::transport::WatchedBody;

/// One event in a command's life.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessEvent {
    /// It runs. The first event, once.
    #[non_exhaustive]
    Start {
        /// Its process id in the guest.
        pid: u32,
    },
    /// It wrote to standard output: 1 byte to 32 KiB, cut anywhere.
    Stdout(Bytes),
    /// It wrote to standard error: 1 byte to 32 KiB, cut anywhere.
    Stderr(Bytes),
    /// It wrote to its terminal: 1 byte to 16 KiB, cut anywhere.
    Terminal(Bytes),
    /// So many bytes of an output were missed and not kept; what comes of it follows after them. Only where what was
    /// missed was asked for.
    #[non_exhaustive]
    Lost {
        /// Of which output.
        channel: Channel,
        /// How many.
        bytes: u64,
    },
    /// It is over, and all its output has come before. The last event, once.
    #[non_exhaustive]
    End {
        /// What it exited with, or -1 when a signal ended it.
        exit_code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
        /// `exit status 3`, `signal: killed`.
        status: String,
    },
}

impl ProcessEvent {
    /// That so many bytes of an output were not kept.
    pub fn lost(channel: Channel, bytes: u64) -> Self {
        Self::Lost { channel, bytes }
    }

    /// That it is over: with an exit code, or by a signal.
    pub fn end(exit_code: i32, signal: Option<i32>) -> Self {
        let status = match signal {
            Some(signal) => format!("signal: {signal}"),
            None => format!("exit status {exit_code}"),
        };
        Self::End { exit_code, signal, status }
    }
}

/// What a command writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Channel {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
    /// Its terminal, which is both.
    Terminal,
}

/// The events of one command: a stream to be drawn with [`next`](Self::next).
///
/// **Backpressure**: nothing is read ahead but about 64 KiB here and what the sockets hold. Whoever stops drawing
/// stops the command at its next write to a full pipe; nothing is lost. **Dropping** the stream detaches from
/// the command, which runs on; of its output the last is kept, for
/// [`attach_with_missed`](super::AgentClient::attach_with_missed).
pub struct ProcessStream {
    events: Events,
    transport: Transport,
    pid: u32,
    terminal: bool,
    state: State,
}

pub(super) enum Events {
    Start(ServerStream<WatchedBody, pb::StartResponseView<'static>>),
    Connect(ServerStream<WatchedBody, pb::ConnectResponseView<'static>>),
}

enum State {
    Starting,
    Running,
    /// The end event has come; what closes the stream on the wire has not.
    Ending(ProcessEvent),
    Ended,
}

/// How long the close of a stream may take after its end event: it comes along with it.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

const FOLLOW: &str = "following a command";

impl ProcessStream {
    /// Waits for the start event, so that a command that cannot start is an error and not an event.
    pub(super) async fn open(
        call: &'static str,
        events: Events,
        transport: Transport,
    ) -> Result<Self, AgentError> {
        let mut stream = Self { events, transport, pid: 0, terminal: false, state: State::Starting };
        match stream.draw(call).await? {
            Some(Drawn::Start { pid, terminal }) => (stream.pid, stream.terminal) = (pid, terminal),
            _ => return Err(AgentError::protocol(call, "the first event is not a start")),
        }
        Ok(stream)
    }

    /// The command's process id in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the command has a terminal instead of pipes.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The next event; `None` after the end event. The first is always the start.
    ///
    /// Cancel safe: dropping the future loses no event.
    ///
    /// # Errors
    /// [`AgentError::CommandTimeout`] when the command's time limit passed; it is dead then.
    /// [`AgentError::Disconnected`] when the connection broke: the command runs on, unless the guest is gone.
    /// After an error there are no more events.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>, AgentError> {
        if let State::Starting = self.state {
            self.state = State::Running;
            return Ok(Some(ProcessEvent::Start { pid: self.pid }));
        }
        if let State::Running = self.state {
            match self.draw(FOLLOW).await {
                Ok(Some(Drawn::Start { .. })) => return self.fail("a second start event"),
                Ok(Some(Drawn::Event(end @ ProcessEvent::End { .. }))) => self.state = State::Ending(end),
                Ok(Some(Drawn::Event(event))) => return Ok(Some(event)),
                Ok(None) => return self.fail("the events stopped without an end event"),
                Err(error) => {
                    self.state = State::Ended;
                    return Err(error);
                }
            }
        }
        if let State::Ending(_) = self.state {
            // A connection can serve the next call only if this stream was read to its close. What went wrong
            // there changes nothing about the command.
            let _ = tokio::time::timeout(CLOSE_WAIT, self.draw(FOLLOW)).await;
        }
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Ending(end) => Ok(Some(end)),
            _ => Ok(None),
        }
    }

    fn fail(&mut self, what: &str) -> Result<Option<ProcessEvent>, AgentError> {
        self.state = State::Ended;
        Err(AgentError::protocol(FOLLOW, what))
    }

    /// The next event from the wire that means something to a caller.
    async fn draw(&mut self, call: &'static str) -> Result<Option<Drawn>, AgentError> {
        loop {
            let event = match &mut self.events {
                Events::Start(events) => {
                    let message = events.message().await.map_err(|e| fault(&self.transport, call, &e))?;
                    message.map(|message| message.to_owned_message().event)
                }
                Events::Connect(events) => {
                    let message = events.message().await.map_err(|e| fault(&self.transport, call, &e))?;
                    message.map(|message| message.to_owned_message().event)
                }
            };
            let Some(event) = event else { return Ok(None) };
            if let Some(event) = from_proto(event.into_option().and_then(|event| event.event)) {
                return Ok(Some(event));
            }
        }
    }
}

impl std::fmt::Debug for ProcessStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessStream").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// An event, as it is on the wire.
enum Drawn {
    Start { pid: u32, terminal: bool },
    Event(ProcessEvent),
}

/// What an event means; keepalives, and kinds that only a newer agent knows, mean nothing.
fn from_proto(event: Option<oneof::process_event::Event>) -> Option<Drawn> {
    use oneof::process_event::Event;
    use oneof::process_event::data_event::Output;
    Some(Drawn::Event(match event? {
        Event::Start(start) => {
            return Some(Drawn::Start { pid: start.pid, terminal: start.terminal.unwrap_or(false) });
        }
        Event::Data(data) => {
            let (channel, bytes) = match data.output? {
                Output::Stdout(bytes) => (Channel::Stdout, bytes),
                Output::Stderr(bytes) => (Channel::Stderr, bytes),
                Output::Pty(bytes) => (Channel::Terminal, bytes),
            };
            match (data.lost.filter(|lost| *lost > 0), channel) {
                (Some(lost), channel) => ProcessEvent::Lost { channel, bytes: lost },
                (None, Channel::Stdout) => ProcessEvent::Stdout(bytes),
                (None, Channel::Stderr) => ProcessEvent::Stderr(bytes),
                (None, Channel::Terminal) => ProcessEvent::Terminal(bytes),
            }
        }
        Event::End(end) => {
            ProcessEvent::End { exit_code: end.exit_code, signal: end.signal, status: end.status }
        }
        Event::Keepalive(_) => return None,
    }))
}

/// Why a stream failed: its connection, its time limit, or what the agent said.
pub(super) fn fault(transport: &Transport, call: &'static str, error: &ConnectError) -> AgentError {
    if let Some(fault) = transport.take_fault(call, true) {
        return fault;
    }
    match error.code {
        ErrorCode::DeadlineExceeded => AgentError::CommandTimeout,
        _ => AgentError::from_connect(call, error),
    }
}

//! Calls about commands: start, follow, feed, signal.

use bytes::Bytes;
use connectrpc::client::CallOptions;
use hyper::header::AUTHORIZATION;

use super::command::{Command, ProcessInfo, Selector, Signal, TerminalSize};
use super::stream::{Events, ProcessStream, fault};
use super::{AgentClient, AgentError, basic, config};
use crate::KEEPALIVE_HEADER;
use crate::proto::process as pb;
use crate::proto::process::__buffa::oneof;

/// How often a silent command's stream shows that the agent lives, in seconds.
pub(super) const KEEPALIVE_SECONDS: &str = "30";

/// The longest time limit that the protocol can say, in milliseconds: ten digits.
const MAX_TIMEOUT: u128 = 9_999_999_999;

/// The most input that one request carries; more is sent as several, in order.
const INPUT_PIECE: usize = 256 * 1024;

impl AgentClient {
    /// Starts a command and follows it.
    ///
    /// Resolves once it runs. Dropping the future leaves it unknown whether the command was started.
    ///
    /// # Errors
    /// [`AgentError::InvalidArgument`] if the program or the working directory is not there or not usable;
    /// [`AgentError::UnknownUser`] for an unknown user.
    pub async fn start(&self, mut command: Command) -> Result<ProcessStream, AgentError> {
        const CALL: &str = "starting a command";
        let mut options = CallOptions::default().with_header(KEEPALIVE_HEADER, KEEPALIVE_SECONDS);
        if let Some(user) = command.user.take() {
            options = options.with_header(AUTHORIZATION, basic(&user));
        }
        if let Some(limit) = command.timeout {
            // By hand, because the library would also cut the stream here, where it can't know the true reason.
            options = options
                .with_header("connect-timeout-ms", limit.as_millis().clamp(1, MAX_TIMEOUT).to_string());
        }
        let transport = self.transport();
        let client = pb::ProcessClient::new(transport.clone(), config());
        self.within(CALL, async {
            let events = client
                .start_with_options(command.into_request(), options)
                .await
                .map_err(|e| fault(&transport, CALL, &e))?;
            ProcessStream::open(CALL, Events::Start(events), transport.clone()).await
        })
        .await
    }

    /// Follows a command that already runs: what it prints from now on, and its end.
    ///
    /// Every stream of a command gets all of its output; the slowest reader sets the pace.
    ///
    /// # Errors
    /// [`AgentError::NotFound`] if no such command runs, or ended less than 30 s ago.
    pub async fn attach(&self, process: impl Into<Selector>) -> Result<ProcessStream, AgentError> {
        self.connect(process.into(), false).await
    }

    /// The same, but first what it printed while nobody followed it. Whoever asks first gets that.
    ///
    /// The agent keeps the last 256 KiB; where there was more, [`ProcessEvent::Lost`] comes first and says how much.
    /// What an earlier stream had drawn off the agent counts as followed, though a connection that broke may have
    /// swallowed the last of it.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    ///
    /// [`ProcessEvent::Lost`]: super::ProcessEvent::Lost
    pub async fn attach_with_missed(
        &self,
        process: impl Into<Selector>,
    ) -> Result<ProcessStream, AgentError> {
        self.connect(process.into(), true).await
    }

    async fn connect(&self, process: Selector, missed: bool) -> Result<ProcessStream, AgentError> {
        const CALL: &str = "attaching to a command";
        let process = process.into_proto();
        let options = CallOptions::default().with_header(KEEPALIVE_HEADER, KEEPALIVE_SECONDS);
        let transport = self.transport();
        let client = pb::ProcessClient::new(transport.clone(), config());
        self.within(CALL, async {
            let request = pb::ConnectRequest { process: process.into(), missed: missed.then_some(true) };
            let events = client
                .connect_with_options(request, options)
                .await
                .map_err(|e| fault(&transport, CALL, &e))?;
            ProcessStream::open(CALL, Events::Connect(events), transport.clone()).await
        })
        .await
    }

    /// The commands that run now, of those that this service started.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn list(&self) -> Result<Vec<ProcessInfo>, AgentError> {
        const CALL: &str = "listing commands";
        let answer = self
            .unary(CALL, pb::ProcessClient::new, async |client| {
                Ok(client.list(pb::ListRequest::default()).await?.into_owned())
            })
            .await?;
        Ok(answer.processes.into_iter().map(ProcessInfo::from).collect())
    }

    /// Sends a signal to a command's process group.
    ///
    /// # Errors
    /// [`AgentError::NotFound`] if no such command runs.
    pub async fn send_signal(&self, process: impl Into<Selector>, signal: Signal) -> Result<(), AgentError> {
        let signal = match signal {
            Signal::Terminate => pb::Signal::SIGNAL_SIGTERM,
            Signal::Kill => pb::Signal::SIGNAL_SIGKILL,
        };
        let process = process.into().into_proto();
        let request = pb::SendSignalRequest { process: process.into(), signal: signal.into() };
        self.unary("sending a signal", pb::ProcessClient::new, async |client| {
            client.send_signal(request).await.map(drop)
        })
        .await
    }

    /// Writes to a command's standard input, and waits until all of it is in the pipe.
    ///
    /// A command that does not read makes this wait, up to the client's time limit for each 256 KiB. After an
    /// error, or if the future is dropped, a part may have been written.
    ///
    /// # Errors
    /// [`AgentError::NotFound`] if no such command runs; [`AgentError::Failed`] if it has no piped input, or
    /// closed it.
    pub async fn send_input(
        &self,
        process: impl Into<Selector>,
        input: impl Into<Bytes>,
    ) -> Result<(), AgentError> {
        self.feed(process.into(), input.into(), oneof::process_input::Input::Stdin).await
    }

    /// Writes to a command's terminal: what would be typed. Ctrl-D, the byte 4, at the beginning of a line ends the
    /// input of whoever reads it there.
    ///
    /// Waits and fails as [`send_input`](Self::send_input).
    ///
    /// # Errors
    /// [`AgentError::NotFound`] if no such command runs; [`AgentError::InvalidArgument`] if it has no terminal.
    pub async fn send_terminal_input(
        &self,
        process: impl Into<Selector>,
        input: impl Into<Bytes>,
    ) -> Result<(), AgentError> {
        self.feed(process.into(), input.into(), oneof::process_input::Input::Pty).await
    }

    async fn feed(
        &self,
        process: Selector,
        mut input: Bytes,
        kind: fn(Bytes) -> oneof::process_input::Input,
    ) -> Result<(), AgentError> {
        while !input.is_empty() {
            let piece = input.split_to(input.len().min(INPUT_PIECE));
            let request = pb::SendInputRequest {
                process: process.clone().into_proto().into(),
                input: pb::ProcessInput { input: Some(kind(piece)) }.into(),
            };
            self.unary("sending input", pb::ProcessClient::new, async |client| {
                client.send_input(request).await.map(drop)
            })
            .await?;
        }
        Ok(())
    }

    /// Changes the size of a command's terminal, and tells its foreground processes (SIGWINCH).
    ///
    /// # Errors
    /// [`AgentError::NotFound`] if no such command runs; [`AgentError::InvalidArgument`] if it has no terminal.
    pub async fn resize(&self, process: impl Into<Selector>, size: TerminalSize) -> Result<(), AgentError> {
        let request =
            pb::UpdateRequest { process: process.into().into_proto().into(), pty: size.into_proto().into() };
        self.unary("resizing a terminal", pb::ProcessClient::new, async |client| {
            client.update(request).await.map(drop)
        })
        .await
    }

    /// Closes a command's standard input: it reads the end of its input. Closing twice is no error.
    ///
    /// # Errors
    /// [`AgentError::NotFound`] if no such command runs.
    pub async fn close_stdin(&self, process: impl Into<Selector>) -> Result<(), AgentError> {
        let request = pb::CloseStdinRequest { process: process.into().into_proto().into() };
        self.unary("closing input", pb::ProcessClient::new, async |client| {
            client.close_stdin(request).await.map(drop)
        })
        .await
    }
}

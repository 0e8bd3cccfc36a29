//! Commands in the guest: start, follow, feed, signal.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use connectrpc::client::{CallOptions, ClientConfig, ServerStream};
use connectrpc::{ConnectError, ErrorCode};
use hyper::Uri;
use hyper::header::AUTHORIZATION;

use super::transport::{Transport, WatchedBody};
use super::{AgentClient, AgentError, ORIGIN};
use crate::KEEPALIVE_HEADER;
use crate::proto::process as pb;
use crate::proto::process::__buffa::oneof;

/// How often a silent command's stream shows that the agent lives, in seconds.
const KEEPALIVE_SECONDS: &str = "30";

/// The longest time limit that the protocol can say, in milliseconds: ten digits.
const MAX_TIMEOUT: u128 = 9_999_999_999;

/// The most input that one request carries; more is sent as several, in order.
const INPUT_PIECE: usize = 256 * 1024;

/// A command to run in the guest. No shell is involved unless it is the command.
///
/// ```
/// use wrenn_agent_api::Command;
/// let command = Command::new("/bin/sh").args(["-c", "exit 3"]).env("LANG", "C").cwd("/tmp").user("root");
/// # let _ = command;
/// ```
#[derive(Debug, Clone)]
pub struct Command {
    config: pb::ProcessConfig,
    user: Option<String>,
    stdin: bool,
    tag: Option<String>,
    timeout: Option<Duration>,
}

impl Command {
    /// A command that runs `program`: a path, or a name to be found in its PATH.
    pub fn new(program: impl Into<String>) -> Self {
        let config = pb::ProcessConfig { cmd: program.into(), ..Default::default() };
        Self { config, user: None, stdin: false, tag: None, timeout: None }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.config.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.config.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable; it wins over the sandbox's.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.envs.insert(name.into(), value.into());
        self
    }

    /// Sets the working directory (default: the sandbox's, else the user's home). Relative paths and `~` start
    /// at the user's home.
    pub fn cwd(mut self, path: impl Into<String>) -> Self {
        self.config.cwd = Some(path.into());
        self
    }

    /// Sets who runs it (default: the sandbox's default user).
    pub fn user(mut self, name: impl Into<String>) -> Self {
        self.user = Some(name.into());
        self
    }

    /// Says whether it gets a pipe as standard input, for [`AgentClient::send_input`]. Default: `/dev/null`.
    pub fn stdin(mut self, piped: bool) -> Self {
        self.stdin = piped;
        self
    }

    /// Names it for [`Selector::Tag`].
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    /// Limits its time, counted by the agent: then it and its process group are killed.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    fn into_request(self) -> pb::StartRequest {
        pb::StartRequest {
            process: self.config.into(),
            tag: self.tag,
            stdin: Some(self.stdin),
            ..Default::default()
        }
    }
}

/// Which command a call means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// By its process id in the guest.
    Pid(u32),
    /// By the tag it was started with.
    Tag(String),
}

impl From<u32> for Selector {
    fn from(pid: u32) -> Self {
        Self::Pid(pid)
    }
}

impl Selector {
    fn into_proto(self) -> pb::ProcessSelector {
        let selector = match self {
            Self::Pid(pid) => oneof::process_selector::Selector::Pid(pid),
            Self::Tag(tag) => oneof::process_selector::Selector::Tag(tag),
        };
        pb::ProcessSelector { selector: Some(selector), ..Default::default() }
    }
}

/// The signals that the agent delivers, to the whole process group of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// A command that runs, as [`AgentClient::list`] tells it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its process id in the guest.
    pub pid: u32,
    /// The tag it was started with.
    pub tag: Option<String>,
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The variables that its start request named.
    pub envs: BTreeMap<String, String>,
    /// The directory that its start request named.
    pub cwd: Option<String>,
}

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

/// The events of one command: a stream to be drawn with [`next`](Self::next).
///
/// **Backpressure**: nothing is read ahead but about 64 KiB here and what the sockets hold. Whoever stops drawing
/// stops the command at its next write to a full pipe; nothing is lost. **Dropping** the stream detaches from
/// the command, which runs on, its output thrown away.
pub struct ProcessStream {
    events: Events,
    transport: Transport,
    pid: u32,
    state: State,
}

enum Events {
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
    async fn open(call: &'static str, events: Events, transport: Transport) -> Result<Self, AgentError> {
        let mut stream = Self { events, transport, pid: 0, state: State::Starting };
        match stream.draw(call).await? {
            Some(ProcessEvent::Start { pid }) => stream.pid = pid,
            _ => return Err(AgentError::protocol(call, "the first event is not a start")),
        }
        Ok(stream)
    }

    /// The command's process id in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
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
                Ok(Some(ProcessEvent::Start { .. })) => return self.fail("a second start event"),
                Ok(Some(end @ ProcessEvent::End { .. })) => self.state = State::Ending(end),
                Ok(Some(event)) => return Ok(Some(event)),
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
    async fn draw(&mut self, call: &'static str) -> Result<Option<ProcessEvent>, AgentError> {
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

/// What an event means; keepalives, and kinds that only a newer agent knows, mean nothing.
fn from_proto(event: Option<oneof::process_event::Event>) -> Option<ProcessEvent> {
    use oneof::process_event::Event;
    use oneof::process_event::data_event::Output;
    match event? {
        Event::Start(start) => Some(ProcessEvent::Start { pid: start.pid }),
        Event::Data(data) => match data.output? {
            Output::Stdout(bytes) => Some(ProcessEvent::Stdout(bytes)),
            Output::Stderr(bytes) => Some(ProcessEvent::Stderr(bytes)),
            Output::Pty(_) => None,
        },
        Event::End(end) => {
            Some(ProcessEvent::End { exit_code: end.exit_code, signal: end.signal, status: end.status })
        }
        Event::Keepalive(_) => None,
    }
}

/// Why a stream failed: its connection, its time limit, or what the agent said.
fn fault(transport: &Transport, call: &'static str, error: &ConnectError) -> AgentError {
    if let Some(fault) = transport.take_fault(call, true) {
        return fault;
    }
    match error.code {
        ErrorCode::DeadlineExceeded => AgentError::CommandTimeout,
        _ => AgentError::from_connect(call, error),
    }
}

impl AgentClient {
    /// Starts a command and follows it.
    ///
    /// Resolves once it runs. Dropping the future leaves it unknown whether the command was started.
    ///
    /// # Errors
    /// [`AgentError::InvalidArgument`] if the program or the working directory is not there or not usable;
    /// [`AgentError::Unauthenticated`] for an unknown user.
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
        let client = pb::ProcessClient::new(transport.clone(), self.config());
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
        const CALL: &str = "attaching to a command";
        let process = process.into().into_proto();
        let options = CallOptions::default().with_header(KEEPALIVE_HEADER, KEEPALIVE_SECONDS);
        let transport = self.transport();
        let client = pb::ProcessClient::new(transport.clone(), self.config());
        self.within(CALL, async {
            let request = pb::ConnectRequest { process: process.into(), ..Default::default() };
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
            .unary(CALL, async |client| Ok(client.list(pb::ListRequest::default()).await?.into_owned()))
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
        let request =
            pb::SendSignalRequest { process: process.into(), signal: signal.into(), ..Default::default() };
        self.unary("sending a signal", async |client| client.send_signal(request).await.map(drop)).await
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
        let selector = process.into();
        let mut input = input.into();
        while !input.is_empty() {
            let piece = input.split_to(input.len().min(INPUT_PIECE));
            let request = pb::SendInputRequest {
                process: selector.clone().into_proto().into(),
                input: pb::ProcessInput {
                    input: Some(oneof::process_input::Input::Stdin(piece)),
                    ..Default::default()
                }
                .into(),
                ..Default::default()
            };
            self.unary("sending input", async |client| client.send_input(request).await.map(drop)).await?;
        }
        Ok(())
    }

    /// Closes a command's standard input: it reads the end of its input. Closing twice is no error.
    ///
    /// # Errors
    /// [`AgentError::NotFound`] if no such command runs.
    pub async fn close_stdin(&self, process: impl Into<Selector>) -> Result<(), AgentError> {
        let request =
            pb::CloseStdinRequest { process: process.into().into_proto().into(), ..Default::default() };
        self.unary("closing input", async |client| client.close_stdin(request).await.map(drop)).await
    }

    fn config(&self) -> ClientConfig {
        ClientConfig::new(Uri::from_static(ORIGIN)).proto()
    }

    /// One unary call, within the time limit.
    async fn unary<T>(
        &self,
        call: &'static str,
        work: impl AsyncFnOnce(pb::ProcessClient<Transport>) -> Result<T, ConnectError>,
    ) -> Result<T, AgentError> {
        let transport = self.transport();
        let client = pb::ProcessClient::new(transport.clone(), self.config());
        self.within(call, async {
            work(client).await.map_err(|error| {
                transport.take_fault(call, false).unwrap_or_else(|| AgentError::from_connect(call, &error))
            })
        })
        .await
    }
}

impl From<pb::ProcessInfo> for ProcessInfo {
    fn from(info: pb::ProcessInfo) -> Self {
        let config = info.config.into_option().unwrap_or_default();
        Self {
            pid: info.pid,
            tag: info.tag,
            program: config.cmd,
            args: config.args,
            envs: config.envs.into_iter().collect(),
            cwd: config.cwd,
        }
    }
}

/// HTTP Basic credentials with a user and no password: how this protocol names a user.
fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:")))
}

//! The RPC service `process.Process`.
//!
//! Errors are Connect codes as clients of this protocol expect them: an unknown process is `not_found`, an
//! unknown user `unauthenticated`, a program or directory that cannot be used `invalid_argument`.

use std::ffi::CString;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use connectrpc::{
    ConnectError, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures_util::{Stream, StreamExt, stream};
use rustix::process::Signal;
use rustix::termios::Winsize;
use tokio::time::Instant;
use wrenn_agent_api::proto::process as pb;
use wrenn_agent_api::proto::process::__buffa::oneof;

use super::input::InputError;
use super::launch::{Wiring, is_directory};
use super::outlet::{Channel, Event, Follower};
use super::status::end_event;
use super::{Launch, Process, Processes};
use crate::paths;
use crate::reaper::Exit;
use crate::rpc;
use crate::settings::{Settings, is_env_pair};
use crate::users::User;

/// The service; cheap to make.
pub(crate) struct ProcessService {
    pub(crate) processes: Arc<Processes>,
    pub(crate) settings: Arc<Settings>,
}

// The trait promises less about the answers than these types say; nobody but the generated code calls them.
#[allow(refining_impl_trait)]
impl pb::Process for ProcessService {
    async fn start(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, pb::StartRequest>,
    ) -> ServiceResult<ServiceStream<pb::StartResponse>> {
        let request = request.to_owned_message();
        let config = request.process.into_option().unwrap_or_default();
        let user = rpc::user(&self.settings, &ctx)?;
        let io = match request.pty.into_option() {
            Some(pty) => Wiring::Terminal(window_size(pty)?),
            None => Wiring::Pipes { stdin: request.stdin.unwrap_or(true) },
        };
        let launch = self.plan(&config, &user, io)?;
        let program = launch.program.clone();
        let deadline = ctx.deadline().map(Into::into);
        let started = self.processes.start(launch, config, request.tag, deadline).await;
        let (process, events) = started.map_err(|e| start_error(&program, &e))?;
        Response::stream_ok(
            follow(process, events, rpc::keepalive(&ctx), Limit::OfCommand)
                .map(|event| event.map(|event| pb::StartResponse { event: event.into() })),
        )
    }

    async fn connect(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, pb::ConnectRequest>,
    ) -> ServiceResult<ServiceStream<pb::ConnectResponse>> {
        let request = request.to_owned_message();
        let process = self.select(request.process.into_option())?;
        let events = process.outlet.attach(request.missed.unwrap_or(false));
        let limit = Limit::OfCall(ctx.deadline().map(Into::into));
        Response::stream_ok(
            follow(process, events, rpc::keepalive(&ctx), limit)
                .map(|event| event.map(|event| pb::ConnectResponse { event: event.into() })),
        )
    }

    async fn list(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, pb::ListRequest>,
    ) -> ServiceResult<pb::ListResponse> {
        let info = |process: &Arc<Process>| pb::ProcessInfo {
            config: process.config.clone().into(),
            pid: process.pid(),
            tag: process.tag.clone(),
        };
        let processes = self.processes.running().iter().map(info).collect();
        Response::ok(pb::ListResponse { processes })
    }

    async fn update(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::UpdateRequest>,
    ) -> ServiceResult<pb::UpdateResponse> {
        let request = request.to_owned_message();
        let process = self.select_running(request.process.into_option())?;
        if let Some(pty) = request.pty.into_option() {
            process.input.resize(window_size(pty)?).map_err(input_error)?;
        }
        Response::ok(pb::UpdateResponse::default())
    }

    async fn send_input(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::SendInputRequest>,
    ) -> ServiceResult<pb::SendInputResponse> {
        let request = request.to_owned_message();
        let process = self.select_running(request.process.into_option())?;
        write(&process, request.input.into_option()).await?;
        Response::ok(pb::SendInputResponse::default())
    }

    async fn stream_input(
        &self,
        _: RequestContext,
        mut requests: InboundStream<pb::StreamInputRequest>,
    ) -> ServiceResult<pb::StreamInputResponse> {
        use oneof::stream_input_request::Event;
        let mut process = None;
        while let Some(request) = requests.next().await {
            match request?.to_owned_message().event {
                Some(Event::Start(start)) => {
                    process = Some(self.select_running(start.process.into_option())?);
                }
                Some(Event::Data(data)) => {
                    let process = process.as_ref();
                    let process = process
                        .ok_or_else(|| ConnectError::invalid_argument("data before the start event"))?;
                    write(process, data.input.into_option()).await?;
                }
                Some(Event::Keepalive(_)) | None => {}
            }
        }
        Response::ok(pb::StreamInputResponse::default())
    }

    async fn close_stdin(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::CloseStdinRequest>,
    ) -> ServiceResult<pb::CloseStdinResponse> {
        let process = self.select_running(request.to_owned_message().process.into_option())?;
        process.input.close().await.map_err(input_error)?;
        Response::ok(pb::CloseStdinResponse::default())
    }

    async fn send_signal(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::SendSignalRequest>,
    ) -> ServiceResult<pb::SendSignalResponse> {
        let request = request.to_owned_message();
        let signal = match request.signal.as_known() {
            Some(pb::Signal::SIGNAL_SIGKILL) => Signal::KILL,
            Some(pb::Signal::SIGNAL_SIGTERM) => Signal::TERM,
            _ => return Err(ConnectError::unimplemented("only SIGKILL and SIGTERM can be sent")),
        };
        let selector = request.process.into_option();
        let process = self.select_running(selector.clone())?;
        process.signal(signal).map_err(|_gone| no_process(selector.as_ref()))?;
        Response::ok(pb::SendSignalResponse::default())
    }
}

impl ProcessService {
    /// Decides everything about a command that can be decided before it is forked.
    fn plan(&self, config: &pb::ProcessConfig, user: &User, io: Wiring) -> Result<Launch, ConnectError> {
        if config.cmd.is_empty() {
            return Err(ConnectError::invalid_argument("no program: `cmd` is empty"));
        }
        if config.cmd.contains('\0') || config.args.iter().any(|arg| arg.contains('\0')) {
            return Err(ConnectError::invalid_argument("a NUL character in the command line"));
        }
        if let Some((name, _)) = config.envs.iter().find(|(name, value)| !is_env_pair(name, value)) {
            return Err(ConnectError::invalid_argument(format!("no environment variable: {name:?}")));
        }
        let env = config.envs.iter().map(|(name, value)| (name.clone(), value.clone()));
        Ok(Launch {
            program: config.cmd.clone(),
            args: config.args.clone(),
            env: self.settings.command_env(user, env),
            cwd: self.directory(config.cwd.as_deref(), user)?,
            // An agent without root's rights (only in tests) can be nobody but itself.
            identity: rustix::process::geteuid().is_root().then(|| user.identity.clone()),
            io,
        })
    }

    fn directory(&self, named: Option<&str>, user: &User) -> Result<CString, ConnectError> {
        let named =
            named.map(str::to_owned).filter(|path| !path.is_empty()).or_else(|| self.settings.workdir());
        let path = paths::resolve(named.as_deref().unwrap_or("~"), &user.home);
        let cwd = CString::new(path)
            .map_err(|_| ConnectError::invalid_argument("a NUL character in the working directory"))?;
        if is_directory(&cwd) {
            return Ok(cwd);
        }
        // A user without a home still runs commands, as with login(1).
        if named.is_none() {
            return Ok(c"/".into());
        }
        Err(ConnectError::invalid_argument(format!("cwd '{}' does not exist", cwd.to_string_lossy())))
    }

    fn select(&self, selector: Option<pb::ProcessSelector>) -> Result<Arc<Process>, ConnectError> {
        use oneof::process_selector::Selector;
        let found = match selector.as_ref().and_then(|selector| selector.selector.as_ref()) {
            Some(Selector::Pid(pid)) => self.processes.find(|process| process.pid() == *pid),
            Some(Selector::Tag(tag)) => {
                self.processes.find(|process| process.tag.as_deref() == Some(tag.as_str()))
            }
            None => return Err(ConnectError::invalid_argument("no process is selected")),
        };
        found.ok_or_else(|| no_process(selector.as_ref()))
    }

    fn select_running(&self, selector: Option<pb::ProcessSelector>) -> Result<Arc<Process>, ConnectError> {
        let process = self.select(selector.clone())?;
        if process.runs() { Ok(process) } else { Err(no_process(selector.as_ref())) }
    }
}

/// What a call's time limit means for its stream.
#[derive(Debug, Clone, Copy)]
enum Limit {
    /// The command is killed at the limit; its stream delivers everything up to then, and says why it ended.
    OfCommand,
    /// Only the call ends at the limit.
    OfCall(Option<Instant>),
}

/// The events of a stream: the start, what comes, keepalives in the pauses, the end.
fn follow(
    process: Arc<Process>,
    events: Follower,
    keepalive: Duration,
    limit: Limit,
) -> impl Stream<Item = Result<pb::ProcessEvent, ConnectError>> + Send + 'static {
    let terminal = process.input.is_terminal().then_some(true);
    let start = pb::process_event::StartEvent { pid: process.pid(), terminal };
    let rest = stream::unfold(Some((process, events)), move |state| async move {
        let (process, mut events) = state?;
        let received = tokio::select! {
            received = tokio::time::timeout(keepalive, events.recv()) => received,
            () = rpc::passed(limit.of_call()) => return Some((Err(rpc::too_late("the call")), None)),
        };
        Some(match received {
            Ok(Some(Event::Output(channel, bytes))) => {
                (Ok(wire_event(data_event(channel, bytes, None))), Some((process, events)))
            }
            Ok(Some(Event::Lost(channel, bytes))) => {
                (Ok(wire_event(data_event(channel, Bytes::new(), Some(bytes)))), Some((process, events)))
            }
            Ok(Some(Event::End(exit))) if limit.killed(&process, exit) => {
                (Err(rpc::too_late("the command")), None)
            }
            Ok(Some(Event::End(exit))) => (Ok(wire_event(end_event(exit))), None),
            Ok(None) => (Err(ConnectError::internal("the agent lost sight of the process")), None),
            Err(_) => (Ok(wire_event(pb::process_event::KeepAlive::default())), Some((process, events))),
        })
    });
    stream::iter([Ok(wire_event(start))]).chain(rest)
}

impl Limit {
    /// When the call ends, whatever the command does.
    fn of_call(self) -> Option<Instant> {
        match self {
            Self::OfCall(deadline) => deadline,
            Self::OfCommand => None,
        }
    }

    /// Whether the limit is why the command ended.
    fn killed(self, process: &Process, exit: Exit) -> bool {
        matches!(self, Self::OfCommand)
            && process.timed_out.load(Ordering::Relaxed)
            && exit == Exit::Signal(libc::SIGKILL)
    }
}

fn wire_event(event: impl Into<Option<oneof::process_event::Event>>) -> pb::ProcessEvent {
    pb::ProcessEvent { event: event.into() }
}

fn data_event(channel: Channel, bytes: Bytes, lost: Option<u64>) -> pb::process_event::DataEvent {
    use oneof::process_event::data_event::Output;
    let output = match channel {
        Channel::Stdout => Output::Stdout(bytes),
        Channel::Stderr => Output::Stderr(bytes),
        Channel::Terminal => Output::Pty(bytes),
    };
    pb::process_event::DataEvent { output: Some(output), lost }
}

async fn write(process: &Process, input: Option<pb::ProcessInput>) -> Result<(), ConnectError> {
    use oneof::process_input::Input;
    match input.and_then(|input| input.input) {
        Some(Input::Stdin(bytes)) => process.input.write_pipe(&bytes).await,
        Some(Input::Pty(bytes)) => process.input.write_terminal(&bytes).await,
        None => return Err(ConnectError::invalid_argument("no input")),
    }
    .map_err(input_error)
}

fn window_size(pty: pb::PTY) -> Result<Winsize, ConnectError> {
    let size = pty.size.into_option().unwrap_or_default();
    let out_of_range = |_| ConnectError::invalid_argument("a terminal has at most 65535 columns and rows");
    Ok(Winsize {
        ws_row: size.rows.try_into().map_err(out_of_range)?,
        ws_col: size.cols.try_into().map_err(out_of_range)?,
        ws_xpixel: 0,
        ws_ypixel: 0,
    })
}

fn no_process(selector: Option<&pb::ProcessSelector>) -> ConnectError {
    use oneof::process_selector::Selector;
    ConnectError::not_found(match selector.and_then(|selector| selector.selector.as_ref()) {
        Some(Selector::Pid(pid)) => format!("no process with pid {pid} runs"),
        Some(Selector::Tag(tag)) => format!("no process with tag '{tag}' runs"),
        None => "no such process runs".into(),
    })
}

fn input_error(error: InputError) -> ConnectError {
    match error {
        InputError::WrongKind(_) => ConnectError::invalid_argument(error.to_string()),
        InputError::None | InputError::Closed | InputError::Io(_) => {
            ConnectError::internal(error.to_string())
        }
    }
}

fn start_error(program: &str, error: &io::Error) -> ConnectError {
    let message = format!("cannot run '{program}': {error}");
    match error.raw_os_error() {
        Some(
            libc::ENOENT
            | libc::EACCES
            | libc::ENOEXEC
            | libc::ENOTDIR
            | libc::ELOOP
            | libc::EISDIR
            | libc::E2BIG
            | libc::ENAMETOOLONG
            | libc::EPERM,
        ) => ConnectError::invalid_argument(message),
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
            ConnectError::resource_exhausted(message)
        }
        _ => ConnectError::internal(message),
    }
}

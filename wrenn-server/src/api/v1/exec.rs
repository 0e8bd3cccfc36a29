//! Commands in a running sandbox, of which the output is collected; and the processes that run.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use wrenn_agent_api::{AgentClient, AgentError, Command, ProcessEvent, Signal};

use super::exec_lines;
use super::sandbox_types::check_env;
use crate::api::extract::{Json, Path, Query};
use crate::api::{Code, Error, whole};
use crate::app::App;
use crate::auth::Member;
use crate::sandboxes::{agent, agent_failed};

/// Of each output so much is collected; of the rest it is said that there was more.
const MOST_OUTPUT: usize = 4 << 20;
/// A command that nothing else was asked for is killed after so long.
const DEFAULT_LIMIT: u32 = 60;
/// An hour; what takes longer is followed over a WebSocket.
const MOST_LIMIT: u32 = 3600;
/// How much input is sent at a time.
const INPUT_PIECE: usize = 32 << 10;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(exec))
        .routes(routes!(exec_lines::follow))
        .routes(routes!(processes))
        .routes(routes!(signal))
}

/// A command, and how it is run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Exec {
    /// A line for the shell, or a program with its arguments.
    command: Line,
    /// Where; the home of its user where not set.
    #[schema(min_length = 1, max_length = 4096, pattern = r"^[^\x00]+$")]
    cwd: Option<String>,
    /// Who; the sandbox's own where not set.
    #[schema(pattern = "^[A-Za-z0-9_.$-]{1,64}$")]
    user: Option<String>,
    /// Beside what the sandbox has.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// What it reads, in the notation that `encoding` says.
    stdin: Option<String>,
    /// How bytes are written here: as text, where those that are no UTF-8 are replaced; or in base64, as they are.
    #[serde(default)]
    pub(super) encoding: Encoding,
    /// It is killed after so long; 60 where not set.
    #[schema(minimum = 1, maximum = 3600)]
    #[serde(default, deserialize_with = "whole::option")]
    timeout_seconds: Option<u32>,
}

impl Exec {
    /// The command, and what it is to read.
    pub(super) fn checked(self) -> Result<(Command, Option<Vec<u8>>), Error> {
        let limit = self.timeout_seconds.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MOST_LIMIT).contains(&limit) {
            return Err(Code::InvalidRequest.because(format!("timeout_seconds: from 1 to {MOST_LIMIT}")));
        }
        let stdin = self.stdin.map(|text| self.encoding.read(text)).transpose()?;
        let command = described(self.command, self.cwd, self.user, self.env)?
            .stdin(stdin.is_some())
            .timeout(Duration::from_secs(limit.into()));
        Ok((command, stdin))
    }
}

/// A line for the shell, or a program with its arguments.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = CommandLine)]
pub(super) enum Line {
    #[schema(example = "echo hello")]
    Shell(String),
    Program(Vec<String>),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encoding {
    #[default]
    Text,
    Base64,
}

impl Encoding {
    pub(super) fn write(self, bytes: &[u8]) -> String {
        match self {
            Self::Text => String::from_utf8_lossy(bytes).into_owned(),
            Self::Base64 => STANDARD.encode(bytes),
        }
    }

    fn read(self, text: String) -> Result<Vec<u8>, Error> {
        match self {
            Self::Text => Ok(text.into_bytes()),
            Self::Base64 => {
                STANDARD.decode(text).map_err(|_| Code::InvalidRequest.because("stdin: this is no base64"))
            }
        }
    }
}

/// What a command came to.
#[derive(Debug, Serialize, ToSchema)]
struct ExecResult {
    /// What it exited with; -1 if a signal ended it.
    exit_code: i32,
    /// The signal that ended it.
    signal: Option<i32>,
    stdout: String,
    stderr: String,
    /// Whether there was more of it, which is not here.
    stdout_truncated: bool,
    stderr_truncated: bool,
}

impl Line {
    /// The command, with the limits that the agent has on texts.
    pub(super) fn command(self) -> Result<Command, Error> {
        let words = match self {
            Self::Shell(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line],
            Self::Program(words) => words,
        };
        let total: usize = words.iter().map(String::len).sum();
        if words.first().is_none_or(String::is_empty)
            || total > 128 << 10
            || words.iter().any(|word| word.contains('\0'))
        {
            return Err(Code::InvalidRequest.because("command: a program, at most 128 KiB, and no NUL"));
        }
        let mut words = words.into_iter();
        Ok(Command::new(words.next().unwrap_or_default()).args(words))
    }
}

/// A command with what is common to all ways to run one.
pub(super) fn described(
    line: Line,
    cwd: Option<String>,
    user: Option<String>,
    env: BTreeMap<String, String>,
) -> Result<Command, Error> {
    check_env(&env)?;
    let mut command = line.command()?;
    if let Some(cwd) = cwd {
        super::files::check_path("cwd", &cwd)?;
        command = command.cwd(cwd);
    }
    if let Some(user) = user {
        command = command.user(checked_user(user)?);
    }
    Ok(env.into_iter().fold(command, |command, (name, value)| command.env(name, value)))
}

/// A user's name as guests may have it.
pub(super) fn checked_user(user: String) -> Result<String, Error> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_-.$".contains(c);
    if user.is_empty() || user.len() > 64 || !user.chars().all(fine) {
        return Err(Code::InvalidRequest.because("user: this is no user's name"));
    }
    Ok(user)
}

/// Run a command and collect its output
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/exec", tag = "commands", params(("sandbox" = String, Path)),
    request_body = Exec, responses((status = OK, body = ExecResult)))]
async fn exec(
    State(app): State<App>,
    member: Member,
    Path(id): Path<String>,
    Json(asked): Json<Exec>,
) -> Result<Reply<ExecResult>, Error> {
    let encoding = asked.encoding;
    let (command, stdin) = asked.checked()?;
    let agent = agent(&app, member.team, &id).await?;
    let result = run(&agent, command, stdin, encoding).await;
    result.map(Reply).map_err(|error| agent_failed(&app, &id, &error))
}

/// Runs a command to its end. Dropped on the way, it kills the command: nobody would ever read what it says.
async fn run(
    agent: &AgentClient,
    command: Command,
    stdin: Option<Vec<u8>>,
    encoding: Encoding,
) -> Result<ExecResult, AgentError> {
    let mut events = agent.start(command).await?;
    let pid = events.pid();
    let killer = KillOnDrop { agent: Some(agent.clone()), pid };
    let feed = feed(agent, pid, stdin);
    let collect = async {
        let (mut stdout, mut stderr) = (Collected::default(), Collected::default());
        loop {
            match events.next().await? {
                Some(ProcessEvent::Stdout(piece)) => stdout.add(&piece),
                Some(ProcessEvent::Stderr(piece)) => stderr.add(&piece),
                Some(ProcessEvent::End { exit_code, signal, .. }) => {
                    return Ok(ExecResult {
                        exit_code,
                        signal,
                        stdout: encoding.write(&stdout.bytes),
                        stderr: encoding.write(&stderr.bytes),
                        stdout_truncated: stdout.truncated,
                        stderr_truncated: stderr.truncated,
                    });
                }
                Some(_) => {}
                None => {
                    let message = "the command's events ended before it".to_owned();
                    return Err(AgentError::Failed { call: "exec", code: "internal".to_owned(), message });
                }
            }
        }
    };
    // Both at once: a command may answer while it reads, and its end ends the feeding.
    let mut feed = std::pin::pin!(futures_util::FutureExt::fuse(feed));
    let mut collect = std::pin::pin!(collect);
    let result = loop {
        tokio::select! {
            result = &mut collect => break result,
            () = &mut feed => {}
        }
    };
    killer.not_needed();
    result
}

/// Gives a command what it is to read, and the end of it.
pub(super) async fn feed(agent: &AgentClient, pid: u32, stdin: Option<Vec<u8>>) {
    let Some(stdin) = stdin else { return };
    for piece in stdin.chunks(INPUT_PIECE) {
        // A command need not read what it is given.
        if agent.send_input(pid, piece.to_vec()).await.is_err() {
            return;
        }
    }
    let _ = agent.close_stdin(pid).await;
}

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Collected {
    fn add(&mut self, piece: &[u8]) {
        let room = MOST_OUTPUT - self.bytes.len();
        self.truncated |= piece.len() > room;
        self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
    }
}

/// Kills a command when nobody waits for it any more.
struct KillOnDrop {
    agent: Option<AgentClient>,
    pid: u32,
}

impl KillOnDrop {
    fn not_needed(mut self) {
        self.agent = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let (Some(agent), Ok(runtime)) = (self.agent.take(), tokio::runtime::Handle::try_current()) {
            let pid = self.pid;
            runtime.spawn(async move { agent.send_signal(pid, Signal::Kill).await });
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct Process {
    pid: u32,
    /// What it was named by who started it.
    tag: Option<String>,
    program: String,
    args: Vec<String>,
    cwd: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ProcessList {
    processes: Vec<Process>,
}

/// The commands that run in a sandbox
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/processes", tag = "commands", params(("sandbox" = String, Path)),
    responses((status = OK, body = ProcessList)))]
async fn processes(
    State(app): State<App>,
    member: Member,
    Path(id): Path<String>,
) -> Result<Reply<ProcessList>, Error> {
    let agent = agent(&app, member.team, &id).await?;
    let all = agent.list().await.map_err(|error| agent_failed(&app, &id, &error))?;
    let processes = all.into_iter().map(|process| Process {
        pid: process.pid,
        tag: process.tag,
        program: process.program,
        args: process.args,
        cwd: process.cwd,
    });
    Ok(Reply(ProcessList { processes: processes.collect() }))
}

#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum SignalName {
    Terminate,
    #[default]
    Kill,
}

impl SignalName {
    pub(super) fn signal(self) -> Signal {
        match self {
            Self::Terminate => Signal::Terminate,
            Self::Kill => Signal::Kill,
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct End {
    /// What it is ended with; `kill` where not set.
    #[param(inline)]
    signal: Option<SignalName>,
}

/// End a command with all that it started
#[utoipa::path(delete, path = "/v1/sandboxes/{sandbox}/processes/{pid}", tag = "commands",
    params(("sandbox" = String, Path), ("pid" = u32, Path), End), responses((status = NO_CONTENT)))]
async fn signal(
    State(app): State<App>,
    member: Member,
    Path((id, pid)): Path<(String, u32)>,
    Query(end): Query<End>,
) -> Result<StatusCode, Error> {
    let agent = agent(&app, member.team, &id).await?;
    let sent = agent.send_signal(pid, end.signal.unwrap_or_default().signal()).await;
    sent.map_err(|error| agent_failed(&app, &id, &error))?;
    Ok(StatusCode::NO_CONTENT)
}

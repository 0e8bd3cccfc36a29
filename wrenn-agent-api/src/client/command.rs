//! What to run in a guest, and how to name what runs.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::proto::process as pb;
use crate::proto::process::__buffa::oneof;

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
    pub(super) user: Option<String>,
    stdin: bool,
    terminal: Option<TerminalSize>,
    tag: Option<String>,
    pub(super) timeout: Option<Duration>,
}

impl Command {
    /// A command that runs `program`: a path, or a name to be found in its PATH.
    pub fn new(program: impl Into<String>) -> Self {
        let config = pb::ProcessConfig { cmd: program.into(), ..Default::default() };
        Self { config, user: None, stdin: false, terminal: None, tag: None, timeout: None }
    }

    /// Runs another program instead, so far without arguments.
    pub fn program(mut self, program: impl Into<String>) -> Self {
        self.config.cmd = program.into();
        self.config.args.clear();
        self
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

    /// Says whether it gets a pipe as standard input, for [`AgentClient::send_input`](super::AgentClient::send_input). Default: `/dev/null`.
    pub fn stdin(mut self, piped: bool) -> Self {
        self.stdin = piped;
        self
    }

    /// Gives it a terminal for all three standard streams. What it prints comes as [`ProcessEvent::Terminal`], what it
    /// reads goes in with [`AgentClient::send_terminal_input`].
    ///
    /// [`ProcessEvent::Terminal`]: super::ProcessEvent::Terminal
    /// [`AgentClient::send_terminal_input`]: super::AgentClient::send_terminal_input
    pub fn terminal(mut self, size: TerminalSize) -> Self {
        self.terminal = Some(size);
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

    /// Whether it gets a pipe as standard input.
    pub fn has_stdin(&self) -> bool {
        self.stdin && self.terminal.is_none()
    }

    pub(super) fn into_request(self) -> pb::StartRequest {
        pb::StartRequest {
            process: self.config.into(),
            pty: self.terminal.map(TerminalSize::into_proto).into(),
            tag: self.tag,
            stdin: Some(self.stdin),
        }
    }
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Default for TerminalSize {
    /// 80 columns, 24 rows.
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

impl TerminalSize {
    pub(super) fn into_proto(self) -> pb::PTY {
        let size = pb::pty::Size { cols: self.columns.into(), rows: self.rows.into() };
        pb::PTY { size: size.into() }
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

impl From<&str> for Selector {
    /// By tag.
    fn from(tag: &str) -> Self {
        Self::Tag(tag.to_owned())
    }
}

impl From<u32> for Selector {
    fn from(pid: u32) -> Self {
        Self::Pid(pid)
    }
}

impl Selector {
    pub(super) fn into_proto(self) -> pb::ProcessSelector {
        let selector = match self {
            Self::Pid(pid) => oneof::process_selector::Selector::Pid(pid),
            Self::Tag(tag) => oneof::process_selector::Selector::Tag(tag),
        };
        pb::ProcessSelector { selector: Some(selector) }
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

/// A command that runs, as [`AgentClient::list`](super::AgentClient::list) tells it.
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

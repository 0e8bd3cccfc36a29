//! Commands in a sandbox, in the manner of `std::process::Command`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wrenn_agent_api::TerminalSize;

use crate::error::Error;
use crate::machine::Live;
use crate::process::Process;

/// How much `output` collects of each stream where nothing else is said.
pub(crate) const DEFAULT_OUTPUT_LIMIT: usize = 64 << 20;

/// A command to be run in a sandbox; made by [`Sandbox::command`](crate::Sandbox::command).
///
/// ```no_run
/// # async fn example(sandbox: wrenn_core::Sandbox) -> Result<(), wrenn_core::Error> {
/// let listing = sandbox.command("ls").arg("-l").cwd("/etc").output().await?;
/// assert!(listing.status.success(), "{}", listing.stderr_text());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a command does nothing until `output` or `spawn` is awaited"]
pub struct Command {
    live: Arc<Live>,
    command: wrenn_agent_api::Command,
    output_limit: usize,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandStatus {
    code: i32,
    signal: Option<i32>,
}

/// What a command that has ended printed, and how it ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: CommandStatus,
    /// Its standard output.
    pub stdout: Bytes,
    /// Its standard error.
    pub stderr: Bytes,
}

impl Command {
    pub(crate) fn new(live: Arc<Live>, program: String) -> Self {
        Self { live, command: wrenn_agent_api::Command::new(program), output_limit: DEFAULT_OUTPUT_LIMIT }
    }

    fn map(mut self, change: impl FnOnce(wrenn_agent_api::Command) -> wrenn_agent_api::Command) -> Self {
        self.command = change(self.command);
        self
    }

    /// Adds an argument.
    pub fn arg(self, arg: impl Into<String>) -> Self {
        self.map(|command| command.arg(arg))
    }

    /// Adds arguments.
    pub fn args(self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.map(|command| command.args(args))
    }

    /// Sets an environment variable; it wins over the sandbox's.
    pub fn env(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.map(|command| command.env(name, value))
    }

    /// Sets the working directory; the user's home where not set.
    pub fn cwd(self, path: impl Into<String>) -> Self {
        self.map(|command| command.cwd(path))
    }

    /// Sets the user that runs it; root where not set.
    pub fn user(self, name: impl Into<String>) -> Self {
        self.map(|command| command.user(name))
    }

    /// Gives it a name by which [`Sandbox::attach`](crate::Sandbox::attach) finds it.
    pub fn tag(self, tag: impl Into<String>) -> Self {
        self.map(|command| command.tag(tag))
    }

    /// Gives it a pipe as standard input, for [`Process::take_stdin`]; `/dev/null` where not called.
    pub fn stdin_piped(self) -> Self {
        self.map(|command| command.stdin(true))
    }

    /// Limits its time, counted in the guest: then it and its process group are killed.
    pub fn timeout(self, limit: Duration) -> Self {
        self.map(|command| command.timeout(limit))
    }

    /// Gives it a terminal for all three standard streams; what it prints on it is its standard output. See
    /// [`Sandbox::pty`](crate::Sandbox::pty) for one to type on.
    pub fn terminal(self, size: TerminalSize) -> Self {
        self.map(|command| command.terminal(size))
    }

    pub(crate) fn program(self, program: impl Into<String>) -> Self {
        self.map(|command| command.program(program))
    }

    /// How many bytes of each stream [`output`](Self::output) collects at most; 64 MiB where not set.
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Starts the command, and returns once it runs.
    ///
    /// # Errors
    /// The guest cannot be reached, or has no such program, user or directory.
    ///
    /// # Cancel safety
    /// After a drop it is unknown whether the command was started.
    pub async fn spawn(self) -> Result<Process, Error> {
        let owns_stdin = self.command.has_stdin();
        let events = self.live.ask(self.live.agent.start(self.command)).await?;
        Ok(Process::new(self.live, events, owns_stdin, self.output_limit))
    }

    /// Runs the command to its end and collects what it prints.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn); and a command that prints more than the limit is an error
    /// ([`Cause::OutputTooLarge`](crate::Cause::OutputTooLarge)); it runs on, its output thrown away. A command that fails is no error: see
    /// [`Output::status`].
    ///
    /// # Cancel safety
    /// A dropped future does not end the command.
    pub async fn output(self) -> Result<Output, Error> {
        self.spawn().await?.wait_with_output().await
    }
}

impl CommandStatus {
    pub(crate) fn new(code: i32, signal: Option<i32>) -> Self {
        Self { code, signal }
    }

    /// Whether it exited with code 0.
    pub fn success(self) -> bool {
        self.code() == Some(0)
    }

    /// The code it exited with; none where a signal ended it.
    pub fn code(self) -> Option<i32> {
        self.signal.is_none().then_some(self.code)
    }

    /// The signal that ended it, if one did.
    pub fn signal(self) -> Option<i32> {
        self.signal
    }
}

impl Output {
    /// The standard output as text, what is not UTF-8 replaced, and without white space at its end.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// The standard error as text, what is not UTF-8 replaced, and without white space at its end.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_code_or_a_signal() {
        let exited = CommandStatus { code: 3, signal: None };
        assert_eq!((exited.code(), exited.signal(), exited.success()), (Some(3), None, false));
        let killed = CommandStatus { code: -1, signal: Some(9) };
        assert_eq!((killed.code(), killed.signal(), killed.success()), (None, Some(9), false));
        assert!(CommandStatus { code: 0, signal: None }.success());
    }

    #[test]
    fn output_is_readable_whatever_its_bytes() {
        let status = CommandStatus { code: 0, signal: None };
        let output = Output { status, stdout: Bytes::from_static(b"a\xff\n\n"), stderr: Bytes::new() };
        assert_eq!(output.stdout_text(), "a\u{fffd}");
        assert_eq!(output.stderr_text(), "");
    }
}

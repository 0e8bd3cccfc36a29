//! Commands in a sandbox, in the manner of `std::process::Command`.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use wrenn_agent_api::{ProcessEvent, ProcessStream, Selector, Signal};

use crate::error::{Cause, Error};
use crate::lifetime::Activity;
use crate::machine::Live;

/// How much `output` collects of each stream where nothing else is said.
const DEFAULT_OUTPUT_LIMIT: usize = 64 << 20;

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

/// A command that runs, and the stream of its events.
///
/// Whoever stops drawing events stops the command at its next write to a full pipe; nothing is lost. Dropping it
/// detaches from the command, which runs on, its output thrown away.
pub struct Process {
    live: Arc<Live>,
    events: ProcessStream,
    /// Until it has ended: a command that somebody waits for keeps the sandbox from being idle.
    activity: Option<Activity>,
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

    /// Gives it a pipe as standard input, for [`Process::write_stdin`]; `/dev/null` where not called.
    pub fn stdin_piped(self) -> Self {
        self.map(|command| command.stdin(true))
    }

    /// Limits its time, counted in the guest: then it and its process group are killed.
    pub fn timeout(self, limit: Duration) -> Self {
        self.map(|command| command.timeout(limit))
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
        let events = self.live.ask(self.live.agent.start(self.command)).await?;
        let activity = Some(self.live.activity());
        Ok(Process { live: self.live, events, activity })
    }

    /// Runs the command to its end and collects what it prints.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn); and a command that prints more than the limit is an error
    /// ([`Cause::OutputTooLarge`]); it runs on, its output thrown away. A command that fails is no error: see
    /// [`Output::status`].
    ///
    /// # Cancel safety
    /// A dropped future does not end the command.
    pub async fn output(self) -> Result<Output, Error> {
        let limit = self.output_limit;
        let mut process = self.spawn().await?;
        let (mut stdout, mut stderr) = (BytesMut::new(), BytesMut::new());
        loop {
            let (stream, piece) = match process.next().await? {
                Some(ProcessEvent::Stdout(piece)) => (&mut stdout, piece),
                Some(ProcessEvent::Stderr(piece)) => (&mut stderr, piece),
                Some(ProcessEvent::End { exit_code, signal, .. }) => {
                    let status = CommandStatus { code: exit_code, signal };
                    return Ok(Output { status, stdout: stdout.freeze(), stderr: stderr.freeze() });
                }
                Some(_) => continue,
                None => unreachable!("the agent's client ends every stream with an end event or an error"),
            };
            if stream.len() + piece.len() > limit {
                return Err(Cause::OutputTooLarge { limit }.into());
            }
            stream.extend_from_slice(&piece);
        }
    }
}

impl Process {
    /// Its process id in the guest; it stays the same across a pause.
    pub fn pid(&self) -> u32 {
        self.events.pid()
    }

    /// The next event: a start, output, and at last an end; nothing after that.
    ///
    /// # Errors
    /// The guest ended, or was paused; the connection broke; or the command ran into its time limit.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>, Error> {
        let event = self.live.ask(self.events.next()).await?;
        if let Some(ProcessEvent::End { .. }) = event {
            self.live.command_answered();
            self.activity = None;
        }
        Ok(event)
    }

    /// Writes to its standard input, and waits until all of it is in the pipe.
    ///
    /// # Errors
    /// It ended, closed its input, or was started without [`Command::stdin_piped`]. A part may have been written.
    pub async fn write_stdin(&self, bytes: impl Into<Bytes>) -> Result<(), Error> {
        self.live.ask(self.live.agent.send_input(self.selector(), bytes)).await
    }

    /// Closes its standard input; closing twice is no error.
    ///
    /// # Errors
    /// It ended.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        self.live.ask(self.live.agent.close_stdin(self.selector())).await
    }

    /// Sends a signal to its process group.
    ///
    /// # Errors
    /// It ended.
    pub async fn signal(&self, signal: Signal) -> Result<(), Error> {
        self.live.ask(self.live.agent.send_signal(self.selector(), signal)).await
    }

    fn selector(&self) -> Selector {
        Selector::Pid(self.pid())
    }
}

impl CommandStatus {
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

//! Processes of a guest: what a spawned command is, and what can be attached to.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use wrenn_agent_api::{AgentError, ProcessEvent, ProcessInfo, ProcessStream, Selector, Signal, TerminalSize};

use crate::command::{CommandStatus, DEFAULT_OUTPUT_LIMIT, Output};
use crate::division::{Division, Events, Lane};
use crate::error::{Cause, Error};
use crate::lifetime::Activity;
use crate::machine::Live;
use crate::pipes::{ProcessReader, ProcessStdin};
use crate::sandbox::Sandbox;

/// A command that runs in a sandbox, in the manner of `tokio::process::Child`.
///
/// Its outputs can be had in either of two ways: in order, as events, from [`next`](Self::next); or each by itself, as
/// an `AsyncRead` from [`take_stdout`](Self::take_stdout) and [`take_stderr`](Self::take_stderr). What was not taken
/// comes as events still.
///
/// **Backpressure**: a few hundred KiB wait here, then nothing more is drawn, and the command stops at its next write to
/// a full pipe; nothing is lost, and memory does not grow. As with real pipes, a reader that stalls on one output stalls
/// the other one too, in the end.
///
/// **Dropping** it and what was taken of it detaches from the command, which runs on; so does a pause, which ends every
/// call with an error. The last 256 KiB of what it prints meanwhile are kept, for
/// [`Sandbox::attach`](crate::Sandbox::attach). Until it has ended, a process that somebody is attached to keeps its
/// sandbox from being idle.
///
/// ```no_run
/// # async fn example(sandbox: wrenn_core::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// let mut sort = sandbox.command("sort").stdin_piped().spawn().await?;
/// let mut stdin = sort.take_stdin().expect("it is piped, and taken once");
/// stdin.write_all(b"pear\napple\n").await?;
/// stdin.shutdown().await?;
/// let mut sorted = String::new();
/// sort.take_stdout().expect("taken once").read_to_string(&mut sorted).await?;
/// assert!(sort.wait().await?.success());
/// # Ok(())
/// # }
/// ```
pub struct Process {
    live: Arc<Live>,
    pid: u32,
    terminal: bool,
    source: Source,
    stdin: Stdin,
    output_limit: usize,
    status: Option<CommandStatus>,
}

/// The events of a process that somebody is attached to.
struct Attachment {
    live: Arc<Live>,
    events: ProcessStream,
    /// Until its end.
    activity: Option<Activity>,
}

impl Events for Attachment {
    async fn next(&mut self) -> Result<Option<ProcessEvent>, Error> {
        let event = self.live.ask(self.events.next()).await?;
        if let Some(ProcessEvent::End { .. }) = event {
            self.live.command_answered();
            self.activity = None;
        }
        Ok(event)
    }
}

/// Where its events come from.
enum Source {
    /// The agent, in order.
    Whole(Box<Attachment>),
    /// A task that has taken them apart.
    Divided(Arc<Division>),
    /// Only while the one becomes the other.
    Neither,
}

/// What can be taken of its standard input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stdin {
    /// A pipe that is this process's to close.
    Owned,
    /// Somebody else may write to it as well.
    Shared,
    None,
}

impl Process {
    pub(crate) fn new(live: Arc<Live>, events: ProcessStream, owns_stdin: bool, output_limit: usize) -> Self {
        let stdin = match (owns_stdin, events.is_terminal()) {
            (true, _) => Stdin::Owned,
            (false, true) => Stdin::Shared,
            (false, false) => Stdin::None,
        };
        Self::of(live, events, stdin, output_limit)
    }

    fn of(live: Arc<Live>, events: ProcessStream, stdin: Stdin, output_limit: usize) -> Self {
        let (pid, terminal) = (events.pid(), events.is_terminal());
        let attachment = Attachment { activity: Some(live.activity()), events, live: Arc::clone(&live) };
        let source = Source::Whole(Box::new(attachment));
        Self { live, pid, terminal, source, stdin, output_limit, status: None }
    }

    /// Its process id in the guest; it stays the same across a pause.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has a terminal instead of pipes. Then all it prints is its standard output.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Its standard input, once: to be had of a command with [`Command::stdin_piped`](crate::Command::stdin_piped), of
    /// one with a terminal, and of one that was attached to.
    pub fn take_stdin(&mut self) -> Option<ProcessStdin> {
        let stdin = std::mem::replace(&mut self.stdin, Stdin::None);
        let owned = stdin == Stdin::Owned;
        (stdin != Stdin::None)
            .then(|| ProcessStdin::new(Arc::clone(&self.live), self.pid, self.terminal, owned))
    }

    /// Its standard output, or its terminal's, once. What [`next`](Self::next) gave already does not come again.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn take_stdout(&mut self) -> Option<ProcessReader> {
        self.take(Lane::Stdout)
    }

    /// Its standard error, once; empty where it has a terminal.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn take_stderr(&mut self) -> Option<ProcessReader> {
        self.take(Lane::Stderr)
    }

    fn take(&mut self, lane: Lane) -> Option<ProcessReader> {
        let division = self.divide();
        division.take(lane).then(|| ProcessReader::new(division, lane))
    }

    /// Has the outputs taken apart from now on.
    fn divide(&mut self) -> Arc<Division> {
        let division = match std::mem::replace(&mut self.source, Source::Neither) {
            Source::Divided(division) => division,
            Source::Whole(attachment) => Arc::new(Division::begin(*attachment, self.terminal)),
            Source::Neither => unreachable!("it is replaced before anybody can look"),
        };
        self.source = Source::Divided(Arc::clone(&division));
        division
    }

    /// Whether nothing was taken of it, so that it can become a terminal.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.source, Source::Whole(..)) && self.stdin != Stdin::None
    }

    /// The next event: a start, output that was not taken, and at last an end; nothing after that.
    ///
    /// Where outputs were taken there is no start any more, and the order between them is lost.
    ///
    /// # Errors
    /// The guest ended, or was paused; the connection broke; or the command ran into its time limit. There are no more
    /// events then, and [`wait`](Self::wait) fails.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>, Error> {
        let event = match &mut self.source {
            Source::Whole(attachment) => attachment.next().await?,
            Source::Divided(division) => division.next().await?,
            Source::Neither => unreachable!("it is replaced before anybody can look"),
        };
        if let Some(ProcessEvent::End { exit_code, signal, .. }) = &event {
            self.status = Some(CommandStatus::new(*exit_code, *signal));
        }
        Ok(event)
    }

    /// Waits for its end, and says how it ended; again is no error.
    ///
    /// A piped standard input that was not taken is closed first. Outputs that were not taken are thrown away; those
    /// that were must be read, or dropped, for a command that prints much to come to its end.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    ///
    /// # Cancel safety
    /// A dropped future may have thrown output away; nothing else is lost.
    pub async fn wait(&mut self) -> Result<CommandStatus, Error> {
        self.close_untaken_stdin().await?;
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            if self.next().await?.is_none() && self.status.is_none() {
                return Err(over());
            }
        }
    }

    /// Waits for its end, and collects what it prints on outputs that were not taken.
    ///
    /// A piped standard input that was not taken is closed first.
    ///
    /// # Errors
    /// As [`next`](Self::next), and [`Cause::OutputTooLarge`] for more than
    /// [`Command::output_limit`](crate::Command::output_limit) of either: the command runs on then.
    ///
    /// # Cancel safety
    /// A dropped future detaches from the command, which runs on; what was collected is lost.
    pub async fn wait_with_output(mut self) -> Result<Output, Error> {
        self.close_untaken_stdin().await?;
        let limit = self.output_limit;
        let (mut stdout, mut stderr) = (BytesMut::new(), BytesMut::new());
        loop {
            let (collected, piece) = match self.next().await? {
                Some(ProcessEvent::Stdout(piece) | ProcessEvent::Terminal(piece)) => (&mut stdout, piece),
                Some(ProcessEvent::Stderr(piece)) => (&mut stderr, piece),
                Some(_) => continue,
                None => {
                    let status = self.status.ok_or_else(over)?;
                    return Ok(Output { status, stdout: stdout.freeze(), stderr: stderr.freeze() });
                }
            };
            if collected.len() + piece.len() > limit {
                return Err(Cause::OutputTooLarge { limit }.into());
            }
            collected.extend_from_slice(&piece);
        }
    }

    async fn close_untaken_stdin(&mut self) -> Result<(), Error> {
        if self.stdin == Stdin::Owned {
            match self.close_stdin().await {
                // It ended: its status says how.
                Err(error) if matches!(error.cause(), Cause::Agent(AgentError::NotFound { .. })) => {}
                result => result?,
            }
            self.stdin = Stdin::None;
        }
        Ok(())
    }

    /// Writes to its standard input or terminal, and waits until all of it is in the pipe: at most the agent's time limit
    /// of 30 s for each 256 KiB. [`take_stdin`](Self::take_stdin) has no such limit.
    ///
    /// # Errors
    /// It ended, closed its input, or was started without [`Command::stdin_piped`](crate::Command::stdin_piped). A part
    /// may have been written.
    pub async fn write_stdin(&self, bytes: impl Into<Bytes>) -> Result<(), Error> {
        let agent = &self.live.agent;
        match self.terminal {
            true => self.live.ask(agent.send_terminal_input(self.pid, bytes)).await,
            false => self.live.ask(agent.send_input(self.pid, bytes)).await,
        }
    }

    /// Closes its standard input; closing twice is no error.
    ///
    /// # Errors
    /// It ended, or has a terminal, whose end of input is a character (Ctrl-D, the byte 4).
    pub async fn close_stdin(&self) -> Result<(), Error> {
        self.live.ask(self.live.agent.close_stdin(self.pid)).await
    }

    /// Sends a signal to its process group.
    ///
    /// # Errors
    /// It ended.
    pub async fn signal(&self, signal: Signal) -> Result<(), Error> {
        self.live.ask(self.live.agent.send_signal(self.pid, signal)).await
    }

    /// Changes the size of its terminal, and tells who runs in its foreground (SIGWINCH).
    ///
    /// # Errors
    /// It ended, or has no terminal.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        self.live.ask(self.live.agent.resize(self.pid, size)).await
    }
}

/// The error of asking for the end of one whose events have ended with an error before.
fn over() -> Error {
    let source = "its events ended with an error before".into();
    Cause::Agent(AgentError::Disconnected { call: "following a command", source }).into()
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nobody can take what was not taken: it must not stop what was.
        if let Source::Divided(division) = &self.source {
            division.abandon_untaken();
        }
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process")
            .field("pid", &self.pid)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Sandbox {
    /// The processes that run now, of those that were started from outside: by this library, or by any other client of
    /// the guest's agent.
    ///
    /// # Errors
    /// The guest cannot be reached.
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>, Error> {
        let live = self.live();
        live.ask(live.agent.list()).await
    }

    /// Attaches to a process that was started earlier, by its id or its tag: a background process, or any after a
    /// resume.
    ///
    /// First comes what it printed while nobody was attached to it, of which the guest keeps the last 256 KiB; what was
    /// more is counted, as [`ProcessEvent::Lost`] or by [`ProcessReader::lost`]. Whoever attaches first gets it. Of what
    /// was on its way when a connection broke, or at a pause, a part may be missing. One that ended can be attached to
    /// for another 30 s.
    ///
    /// # Errors
    /// There is no such process, or the guest cannot be reached.
    ///
    /// # Cancel safety
    /// A dropped future loses nothing of what had been kept, unless the answer was on its way.
    pub async fn attach(&self, process: impl Into<Selector>) -> Result<Process, Error> {
        let live = Arc::clone(self.live());
        let events = live.ask(live.agent.attach_with_missed(process)).await?;
        Ok(Process::of(live, events, Stdin::Shared, DEFAULT_OUTPUT_LIMIT))
    }
}

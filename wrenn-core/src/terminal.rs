//! Terminals: a shell, or any program, to type at.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wrenn_agent_api::{Signal, TerminalSize};

use crate::command::{Command, CommandStatus};
use crate::error::Error;
use crate::pipes::{ProcessReader, ProcessStdin};
use crate::process::Process;
use crate::sandbox::Sandbox;

/// The shell of a terminal where no program is named: Bash, if the guest has it.
const SHELL: &str = "exec \"$(command -v bash || echo /bin/sh)\" -l";

/// A terminal to be made; from [`Sandbox::pty`](crate::Sandbox::pty).
///
/// Where nothing else is said it has 80 columns and 24 rows, is of the kind `xterm-256color`, and a login shell runs on
/// it.
#[derive(Clone)]
#[must_use = "a terminal is not there until `spawn` is awaited"]
pub struct Pty {
    command: Command,
    size: TerminalSize,
}

impl Pty {
    fn map(mut self, change: impl FnOnce(Command) -> Command) -> Self {
        self.command = change(self.command);
        self
    }

    /// Sets its size, in characters.
    pub fn size(mut self, columns: u16, rows: u16) -> Self {
        self.size = TerminalSize { columns, rows };
        self
    }

    /// Runs `program` on it instead of a shell, with the arguments that are added after this.
    pub fn command(self, program: impl Into<String>) -> Self {
        self.map(|command| command.program(program))
    }

    /// Adds an argument for the program.
    pub fn arg(self, arg: impl Into<String>) -> Self {
        self.map(|command| command.arg(arg))
    }

    /// Adds arguments for the program.
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

    /// Sets the user that runs the program; root where not set.
    pub fn user(self, name: impl Into<String>) -> Self {
        self.map(|command| command.user(name))
    }

    /// Gives it a name by which [`Sandbox::attach`](crate::Sandbox::attach) finds it.
    pub fn tag(self, tag: impl Into<String>) -> Self {
        self.map(|command| command.tag(tag))
    }

    /// Limits the program's time, counted in the guest: then it and its process group are killed.
    pub fn timeout(self, limit: Duration) -> Self {
        self.map(|command| command.timeout(limit))
    }

    /// Makes the terminal, and returns once the program runs on it.
    ///
    /// # Errors
    /// The guest cannot be reached, or has no such program, user or directory.
    ///
    /// # Cancel safety
    /// After a drop it is unknown whether the program was started.
    pub async fn spawn(self) -> Result<Terminal, Error> {
        let process = self.command.terminal(self.size).spawn().await?;
        Ok(Terminal::of(process))
    }
}

/// A terminal that a program runs on: what is written to it is typed, what is read from it is shown.
///
/// It reads to the end when the program is over. Dropping it detaches from the program, which runs on, as does a pause:
/// [`Sandbox::attach`](crate::Sandbox::attach) and [`Process::into_terminal`] find it again.
///
/// ```no_run
/// # async fn example(sandbox: wrenn_core::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut terminal = sandbox.pty().size(120, 40).spawn().await?;
/// let mut here = tokio::io::join(tokio::io::empty(), tokio::io::sink());
/// tokio::io::copy_bidirectional(&mut here, &mut terminal).await?;
/// # Ok(())
/// # }
/// ```
pub struct Terminal {
    process: Process,
    input: ProcessStdin,
    output: ProcessReader,
}

impl Terminal {
    /// Of a process that was just made, and has one.
    fn of(mut process: Process) -> Self {
        let (Some(input), Some(output)) = (process.take_stdin(), process.take_stdout()) else {
            unreachable!("nothing was taken of it yet")
        };
        Self { process, input, output }
    }

    /// The program's process id in the guest.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Changes its size, and tells who runs in its foreground (SIGWINCH).
    ///
    /// # Errors
    /// The program has ended.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<(), Error> {
        self.process.resize(TerminalSize { columns, rows }).await
    }

    /// Sends a signal to the program's process group. What is typed as Ctrl-C, the byte 3, goes to the foreground's.
    ///
    /// # Errors
    /// The program has ended.
    pub async fn signal(&self, signal: Signal) -> Result<(), Error> {
        self.process.signal(signal).await
    }

    /// Waits for the program's end, and says how it ended. What it shows must be read meanwhile.
    ///
    /// # Errors
    /// As [`Process::next`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn wait(&mut self) -> Result<CommandStatus, Error> {
        self.process.wait().await
    }

    /// Its parts, for use at the same time: what is shown, what is typed, and the rest.
    pub fn into_parts(self) -> (ProcessReader, ProcessStdin, Process) {
        (self.output, self.input, self.process)
    }
}

impl Process {
    /// The terminal that it runs on; the process again, if it has none or something was taken of it.
    ///
    /// # Errors
    /// The process.
    pub fn into_terminal(self) -> Result<Terminal, Box<Process>> {
        if !self.is_terminal() || !self.is_whole() {
            return Err(Box::new(self));
        }
        Ok(Terminal::of(self))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(context, buffer)
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_shutdown(context)
    }
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").field("pid", &self.pid()).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Begins a terminal: its size, its program and the rest to be said, or left as they are.
    pub fn pty(&self) -> Pty {
        let shell = Command::new(Arc::clone(self.live()), "/bin/sh".into());
        let command = shell.arg("-c").arg(SHELL).env("TERM", "xterm-256color");
        Pty { command, size: TerminalSize::default() }
    }
}

//! A command in a guest, joined to this program's standard streams until it ends.

use std::io::{Read as _, stdin};
use std::process::ExitCode;

use tokio::io::{AsyncWrite, AsyncWriteExt as _, stderr, stdout};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wrenn_agent_api::{AgentClient, AgentError, ProcessEvent, ProcessStream, Signal};

use crate::terminal::{self, RawMode};

/// Exit statuses that are not the command's own, as Docker has them.
pub(crate) mod status {
    /// The command ran into its time limit.
    pub(crate) const TIMED_OUT: u8 = 124;
    /// This program, the host or the sandbox failed.
    pub(crate) const FAILED: u8 = 125;
    /// The guest cannot run the command.
    pub(crate) const NOT_RUN: u8 = 127;
}

/// Which of this program's streams the command gets beside its output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams {
    pub(crate) input: bool,
    pub(crate) terminal: bool,
}

/// Waits until this program is told to end: by Ctrl-C, or otherwise.
///
/// # Errors
/// The operating system refuses the handlers.
pub(crate) async fn told_to_end() -> std::io::Result<()> {
    let mut signals = Signals::listen()?;
    while let Told::Resized = signals.next().await {}
    Ok(())
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With a status, or by a signal: the status that a shell would show.
    Status(u8),
    /// Because this program was told to end.
    Interrupted,
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Status(status) => status.into(),
            // As of SIGINT.
            Ended::Interrupted => (128 + 2).into(),
        }
    }
}

/// A command that could not be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error("the terminal cannot be used")]
    Terminal(#[source] std::io::Error),
    #[error("cannot write what the command printed")]
    Output(#[source] std::io::Error),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Follows a command to its end.
///
/// Without a terminal, the first Ctrl-C asks the command to end and the second ends it; with one, the guest's terminal makes of
/// Ctrl-C what it is set to.
///
/// # Errors
/// The connection broke, or nobody takes what the command prints. The command may run on.
pub(crate) async fn follow(
    agent: &AgentClient,
    mut process: ProcessStream,
    streams: Streams,
) -> Result<Ended, AttachError> {
    let pid = process.pid();
    let _raw = if streams.terminal { RawMode::begin().map_err(AttachError::Terminal)? } else { None };
    let input = Input { agent: agent.clone(), pid, terminal: streams.terminal };
    // It ends with the command, or goes on waiting for a key that nobody needs: the program does not wait for it.
    let _feeding = streams.input.then(|| AbortOnDrop(tokio::spawn(input.feed(read_input()))));
    let mut signals = Signals::listen().map_err(AttachError::Terminal)?;
    let mut interrupted = false;
    loop {
        tokio::select! {
            event = process.next() => match event? {
                Some(ProcessEvent::Stdout(piece) | ProcessEvent::Terminal(piece)) => write(&mut stdout(), &piece).await?,
                Some(ProcessEvent::Stderr(piece)) => write(&mut stderr(), &piece).await?,
                Some(ProcessEvent::End { exit_code, signal, .. }) => {
                    return Ok(if interrupted { Ended::Interrupted } else { Ended::of(exit_code, signal) });
                }
                Some(_) => {}
                None => return Err(AgentError::Protocol { call: "following a command", what: "no end".into() }.into()),
            },
            told = signals.next() => match told {
                Told::Resized if streams.terminal => {
                    unless_ended(agent.resize(pid, terminal::size()).await)?;
                }
                Told::Resized => {}
                Told::End => {
                    let how = if interrupted { Signal::Kill } else { Signal::Terminate };
                    interrupted = true;
                    unless_ended(agent.send_signal(pid, how).await)?;
                }
            },
        }
    }
}

impl Ended {
    /// What a shell would show of it.
    fn of(code: i32, signal: Option<i32>) -> Self {
        let code = signal.map_or(code, |signal| 128 + signal);
        Self::Status(u8::try_from(code).unwrap_or(u8::MAX))
    }
}

/// A command that ended meanwhile needs nothing any more.
fn unless_ended(result: Result<(), AgentError>) -> Result<(), AgentError> {
    match result {
        Err(AgentError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), piece: &[u8]) -> Result<(), AttachError> {
    to.write_all(piece).await.map_err(AttachError::Output)?;
    to.flush().await.map_err(AttachError::Output)
}

/// Where what is typed goes.
struct Input {
    agent: AgentClient,
    pid: u32,
    terminal: bool,
}

impl Input {
    /// Passes everything on. A command that reads no more is told by its end, not here.
    async fn feed(self, mut pieces: mpsc::Receiver<Vec<u8>>) {
        while let Some(piece) = pieces.recv().await {
            let sent = match self.terminal {
                true => self.agent.send_terminal_input(self.pid, piece).await,
                false => self.agent.send_input(self.pid, piece).await,
            };
            if let Err(error) = sent {
                return tracing::debug!(%error, "the command takes no input");
            }
        }
        // A terminal has no end but the key for it.
        let closed = match self.terminal {
            true => self.agent.send_terminal_input(self.pid, vec![END_OF_INPUT]).await,
            false => self.agent.close_stdin(self.pid).await,
        };
        if let Err(error) = closed {
            tracing::debug!(%error, "the command takes no end of input");
        }
    }
}

/// Ctrl-D.
const END_OF_INPUT: u8 = 4;

/// Reads standard input on a thread of its own, which is left behind at the program's end: a read cannot be given up.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = [0; 64 * 1024];
        while let Ok(read @ 1..) = stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the operating system tells this program meanwhile.
enum Told {
    /// The terminal has another size.
    Resized,
    /// To end.
    End,
}

/// Where it tells it.
struct Signals {
    resized: SignalStream,
    interrupt: SignalStream,
    terminate: SignalStream,
    hangup: SignalStream,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.resized.recv() => Told::Resized,
            _ = self.interrupt.recv() => Told::End,
            _ = self.terminate.recv() => Told::End,
            _ = self.hangup.recv() => Told::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_a_shells() {
        assert_eq!(Ended::of(3, None), Ended::Status(3));
        assert_eq!(Ended::of(-1, Some(9)), Ended::Status(137));
        assert_eq!(Ended::of(300, None), Ended::Status(255));
    }
}

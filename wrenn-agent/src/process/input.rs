//! The writing end of a command's standard input, or its terminal.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::Mutex;

/// What a command reads from. Writers take turns; each writes all of its bytes before the next.
pub(super) enum Input {
    /// `/dev/null`.
    Nothing,
    /// A pipe, until it is closed.
    Pipe(Mutex<Option<pipe::Sender>>),
    /// A terminal, with the lock that makes writers take turns.
    Terminal(Arc<AsyncFd<OwnedFd>>, Mutex<()>),
}

/// Why input was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    #[error("the process has no standard input: it was started without")]
    None,
    #[error("the standard input of the process is closed")]
    Closed,
    #[error("the process {0}")]
    WrongKind(&'static str),
    #[error("could not write to the process: {0}")]
    Io(#[from] io::Error),
}

impl Input {
    pub(super) fn pipe(pipe: pipe::Sender) -> Self {
        Self::Pipe(Mutex::new(Some(pipe)))
    }

    pub(super) fn terminal(master: Arc<AsyncFd<OwnedFd>>) -> Self {
        Self::Terminal(master, Mutex::default())
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(..))
    }

    /// Writes all of `bytes` to the pipe, as fast as the command reads.
    ///
    /// If the future is dropped a part may have been written.
    pub(super) async fn write_pipe(&self, bytes: &[u8]) -> Result<(), InputError> {
        match self {
            Self::Nothing => Err(InputError::None),
            Self::Terminal(..) => Err(InputError::WrongKind("has a terminal: its input is `pty`")),
            Self::Pipe(pipe) => {
                let mut pipe = pipe.lock().await;
                let sender = pipe.as_mut().ok_or(InputError::Closed)?;
                match sender.write_all(bytes).await {
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                        *pipe = None;
                        Err(InputError::Closed)
                    }
                    result => Ok(result?),
                }
            }
        }
    }

    /// The same for a terminal.
    pub(super) async fn write_terminal(&self, mut bytes: &[u8]) -> Result<(), InputError> {
        let Self::Terminal(master, turn) = self else {
            return Err(InputError::WrongKind("has no terminal: its input is `stdin`"));
        };
        let _turn = turn.lock().await;
        while !bytes.is_empty() {
            let written = master.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Closes the pipe. Again is no error; a terminal has no end of input but the character for it.
    pub(super) async fn close(&self) -> Result<(), InputError> {
        match self {
            Self::Nothing => Err(InputError::None),
            Self::Terminal(..) => Err(InputError::WrongKind("has a terminal: send it Ctrl-D")),
            Self::Pipe(pipe) => {
                *pipe.lock().await = None;
                Ok(())
            }
        }
    }

    /// Changes the terminal's size.
    pub(super) fn resize(&self, size: Winsize) -> Result<(), InputError> {
        match self {
            Self::Terminal(master, _) => {
                Ok(rustix::termios::tcsetwinsize(master.get_ref(), size).map_err(io::Error::from)?)
            }
            _ => Err(InputError::WrongKind("has no terminal")),
        }
    }
}

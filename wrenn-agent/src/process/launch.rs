//! Starting a command: its pipes or terminal, its identity, its session.
//!
//! Every command leads a session and process group of its own. It inherits nothing of the agent but the three
//! standard streams, so that no command can hold another's pipes open.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::Winsize;
use tokio::net::unix::pipe;

use super::input::Input;
use super::output::Output;
use crate::sys::{Identity, enter_on_exec, watch};

/// A command, all decided.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: CString,
    /// `None` runs it as whoever the agent is.
    pub(crate) identity: Option<Identity>,
    pub(crate) io: Wiring,
}

/// What the command's standard streams are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wiring {
    /// Pipes for output, and for input a pipe or `/dev/null`.
    Pipes { stdin: bool },
    /// A terminal of that size for all three.
    Terminal(Winsize),
}

/// Our ends of the wiring.
pub(super) enum Ends {
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    Terminal(OwnedFd),
}

impl Launch {
    /// Forks and executes. Blocks until the program runs, or says why it does not.
    pub(super) fn fork(self) -> io::Result<(Pid, Ends)> {
        // This is the guest's side: running commands is what the agent is for.
        #[allow(clippy::disallowed_methods)]
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(self.env);
        let terminal = matches!(self.io, Wiring::Terminal(_));
        let ends = match self.io {
            Wiring::Pipes { stdin } => wire_pipes(&mut command, stdin)?,
            Wiring::Terminal(size) => wire_terminal(&mut command, size, self.identity.as_ref())?,
        };
        enter_on_exec(&mut command, self.identity, self.cwd, terminal);
        // The handle is dropped: the reaper waits for the child, by its pid.
        let pid = command.spawn()?.id();
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        Ok((pid.ok_or_else(|| io::Error::other("a pid out of range"))?, ends))
    }
}

fn wire_pipes(command: &mut Command, stdin: bool) -> io::Result<Ends> {
    let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let stdin = if stdin {
        let (child_stdin, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        command.stdin(child_stdin);
        Some(stdin)
    } else {
        command.stdin(Stdio::null());
        None
    };
    command.stdout(child_stdout).stderr(child_stderr);
    Ok(Ends::Pipes { stdin, stdout, stderr })
}

fn wire_terminal(command: &mut Command, size: Winsize, user: Option<&Identity>) -> io::Result<Ends> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = File::from(ioctl_tiocgptpeer(&master, flags)?);
    rustix::termios::tcsetwinsize(&slave, size)?;
    if let Some(user) = user {
        // Programs open their terminal anew by its name, as themselves. The group stays `tty`.
        std::os::unix::fs::fchown(&slave, Some(user.uid), None)?;
    }
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    Ok(Ends::Terminal(master))
}

impl Ends {
    /// Makes them non-blocking and registers them with the runtime.
    pub(super) fn into_async(self) -> io::Result<(Input, Output)> {
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                let output = Output::pipes(
                    pipe::Receiver::from_owned_fd(stdout)?,
                    pipe::Receiver::from_owned_fd(stderr)?,
                );
                let input = match stdin {
                    Some(stdin) => Input::pipe(pipe::Sender::from_owned_fd(stdin)?),
                    None => Input::Nothing,
                };
                Ok((input, output))
            }
            Self::Terminal(master) => {
                rustix::fs::fcntl_setfl(&master, rustix::fs::fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
                let master = Arc::new(watch(master)?);
                Ok((Input::terminal(master.clone()), Output::terminal(master)))
            }
        }
    }
}

/// Whether `path` is a directory that exists.
pub(super) fn is_directory(path: &std::ffi::CStr) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).is_ok()
}

//! Running the system's own tools.
//!
//! A tool is run without a shell, without input, in a process group of its own (so that an interrupt reaches all of it,
//! once), in the C locale, and dies with this program. What it says on standard error is shown as progress, and its end
//! is kept for the error.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::Pid;

use crate::build::BuildError;
use crate::progress::Step;
use crate::{interrupt, sys};

/// How many of a failed tool's last lines are shown.
const KEPT_LINES: usize = 15;
/// A line is cut after so many bytes.
const LONGEST_LINE: u64 = 4096;
/// No answer that is read from a tool is longer.
const LONGEST_OUTPUT: u64 = 16 << 20;

/// A program of the system that is about to be run.
pub(crate) struct Tool {
    name: &'static str,
    command: Command,
}

impl Tool {
    /// Looks for a program; `package` is the Debian package that brings it.
    ///
    /// # Errors
    /// [`BuildError::MissingTool`].
    pub(crate) fn find(name: &'static str, package: &'static str) -> Result<Self, BuildError> {
        Ok(Self { name, command: command(&program(name, package)?) })
    }

    /// As [`find`](Self::find), for a program that starts others and mounts file systems: it runs in a process and a
    /// mount namespace of its own, so that nothing of all that outlives it. Needs root.
    ///
    /// # Errors
    /// [`BuildError::MissingTool`].
    pub(crate) fn find_contained(name: &'static str, package: &'static str) -> Result<Self, BuildError> {
        let program = program(name, package)?;
        let mut command = command(&self::program("unshare", "util-linux")?);
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--"]).arg(program);
        Ok(Self { name, command })
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it to its end and returns its standard output.
    ///
    /// # Errors
    /// [`BuildError::ToolFailed`] with its last words, or [`BuildError::Io`] where it cannot be started.
    pub(crate) fn run(mut self, step: &Step) -> Result<Vec<u8>, BuildError> {
        tracing::debug!(command = ?self.command, "running");
        let name = self.name;
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut child, watched) = interrupt::watch_tool(|| {
            let child = self.command.spawn()?;
            let group = Pid::from_child(&child);
            Ok((child, group))
        })
        .map_err(BuildError::io("start", name))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let reader = thread::spawn(move || {
            let mut output = Vec::new();
            // Past the limit nobody reads any more, which ends the tool.
            stdout.map(|pipe| pipe.take(LONGEST_OUTPUT).read_to_end(&mut output)).transpose().map(|_| output)
        });
        let mut last = VecDeque::new();
        if let Some(pipe) = stderr {
            for line in lines(pipe) {
                step.note(&line);
                if last.len() == KEPT_LINES {
                    last.pop_front();
                }
                last.push_back(line);
            }
        }
        let status = child.wait();
        drop(watched);
        let status = status.map_err(BuildError::io("wait for", name))?;
        let output =
            reader.join().unwrap_or_else(|_| Ok(Vec::new())).map_err(BuildError::io("read from", name))?;
        if status.success() {
            return Ok(output);
        }
        Err(BuildError::ToolFailed { tool: name, status, said: Vec::from(last).join("\n  ") })
    }
}

fn program(name: &'static str, package: &'static str) -> Result<PathBuf, BuildError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Administrators' tools are not on everybody's PATH.
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
        .ok_or(BuildError::MissingTool { tool: name, package })
}

fn command(program: &Path) -> Command {
    #[allow(clippy::disallowed_methods, reason = "building images is what these tools are for")]
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").stdin(Stdio::null()).process_group(0);
    sys::end_with_us(&mut command);
    command
}

/// What `pipe` says, line by line, whatever its encoding and however long its lines.
fn lines(pipe: impl Read) -> impl Iterator<Item = String> {
    let mut pipe = BufReader::new(pipe);
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        match pipe.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
        }
    })
}

/// `key=value` for a tool's command line.
pub(crate) fn option(key: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut option = OsString::from(key);
    option.push("=");
    option.push(value);
    option
}

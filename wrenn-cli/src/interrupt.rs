//! Ctrl-C and SIGTERM: end the tool that is running, remove what is staged, leave.
//!
//! A thread of its own does that, so that no step of a build has to ask whether it was interrupted. Only the last step,
//! which gives a staged directory its name, must not meet with its removal: [`finish`] has an interrupt wait for it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::build::BuildError;

static RUNNING: Mutex<Running> = Mutex::new(Running { staged: Vec::new(), tool: None });

struct Running {
    staged: Vec<PathBuf>,
    /// The process group of the tool that is running.
    tool: Option<Pid>,
}

/// How long a tool may take to clean up after itself.
const TOOL_GRACE: Duration = Duration::from_secs(20);

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to watch for the signals.
///
/// # Errors
/// The operating system refuses the handlers.
pub(crate) fn install() -> Result<(), BuildError> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(BuildError::io("watch", "signals"))?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            clean_up();
            eprintln!("wrenn: interrupted");
            // By convention of shells: 128 and the signal's number.
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn clean_up() {
    // The lock is kept: the build cannot start another tool, or stage anything more, while this ends the program.
    let running = running();
    if let Some(group) = running.tool {
        let _ = kill_process_group(group, Signal::TERM);
        let start = Instant::now();
        while test_kill_process_group(group).is_ok() && start.elapsed() < TOOL_GRACE {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = kill_process_group(group, Signal::KILL);
    }
    for dir in &running.staged {
        // The build goes on writing until this program ends, so one pass may not get everything. What then is left
        // is swept by the next command.
        for _ in 0..3 {
            if std::fs::remove_dir_all(dir).is_ok() {
                break;
            }
        }
    }
    // Until the exit.
    std::mem::forget(running);
}

/// Something that an interrupt has to clean up, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Watched {
    dir: Option<PathBuf>,
}

/// Has an interrupt remove a staged directory.
pub(crate) fn watch_dir(dir: &Path) -> Watched {
    running().staged.push(dir.to_owned());
    Watched { dir: Some(dir.to_owned()) }
}

/// Starts a tool such that an interrupt ends it: none can come between its start and its being known.
pub(crate) fn watch_tool<T>(
    start: impl FnOnce() -> std::io::Result<(T, Pid)>,
) -> std::io::Result<(T, Watched)> {
    let mut running = running();
    let (tool, group) = start()?;
    running.tool = Some(group);
    Ok((tool, Watched { dir: None }))
}

/// Runs the last step of a build, which registers the watched directory or removes it. An interrupt comes before it or
/// after it.
pub(crate) fn finish<T>(watched: Watched, register: impl FnOnce() -> T) -> T {
    let mut running = running();
    let result = register();
    running.staged.retain(|staged| Some(staged) != watched.dir.as_ref());
    drop(running);
    result
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut running = running();
        match &self.dir {
            Some(dir) => running.staged.retain(|staged| staged != dir),
            None => running.tool = None,
        }
    }
}

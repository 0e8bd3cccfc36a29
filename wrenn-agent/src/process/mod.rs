//! Commands: how they are started, what becomes of their output, and the RPC service over them.
//!
//! ```text
//!  launch ── fork, exec ──> the command ── pipes or terminal ──> output ──> pump ──> outlet ──> streams
//!  reaper <── exit status ──┘                                                 └── end, after all output
//! ```
//! - The pump reads at the pace of the slowest attached stream, so that a full pipe slows the command, not the
//!   agent; with no stream attached it reads on, so that the command is not stopped for good, and the last of what
//!   it read is kept for whoever attaches and asks for it.
//! - A command belongs to nobody: it goes on when its caller is gone, and ends by itself, by a signal, or at the
//!   time limit of the call that started it.

mod input;
mod launch;
mod missed;
mod outlet;
mod output;
mod pump;
mod service;
mod status;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;
use wrenn_agent_api::proto::process::ProcessConfig;

use crate::reaper::{Child, Gone, Reaper};
use input::Input;
pub(crate) use launch::Launch;
use outlet::{Follower, Outlet};
pub(crate) use service::ProcessService;

/// How long a command can still be attached to after its end, to learn of it.
const REMEMBERED: Duration = Duration::from_secs(30);

/// The commands that this agent started, running or ended a moment ago.
pub(crate) struct Processes {
    reaper: Reaper,
    list: Mutex<Vec<Arc<Process>>>,
}

/// One command.
struct Process {
    config: ProcessConfig,
    tag: Option<String>,
    child: Child,
    input: Input,
    outlet: Outlet,
    /// Set before it is killed for having run too long.
    timed_out: AtomicBool,
}

impl Process {
    fn pid(&self) -> u32 {
        // A pid is positive.
        self.child.pid().as_raw_nonzero().get() as u32
    }

    fn runs(&self) -> bool {
        self.child.exit().is_none()
    }

    /// Signals the command's whole process group: a shell that is killed can't pass it on.
    fn signal(&self, signal: Signal) -> Result<(), Gone> {
        self.child.signal_group(signal)
    }
}

impl Processes {
    pub(crate) fn new(reaper: Reaper) -> Arc<Self> {
        Arc::new(Self { reaper, list: Mutex::default() })
    }

    /// Starts a command with one stream attached to it, and kills its group at `deadline`.
    ///
    /// If the future is dropped the command starts nevertheless, with nobody attached.
    async fn start(
        self: &Arc<Self>,
        launch: Launch,
        config: ProcessConfig,
        tag: Option<String>,
        deadline: Option<Instant>,
    ) -> std::io::Result<(Arc<Process>, Follower)> {
        let this = self.clone();
        let start = async move {
            let (child, ends) = this.reaper.spawn(move || launch.fork()).await?;
            let (input, output) = match ends.into_async() {
                Ok(both) => both,
                Err(e) => {
                    // It runs, but nobody could ever hear of it.
                    let _ = child.signal_group(Signal::KILL);
                    return Err(e);
                }
            };
            let (outlet, stream) = Outlet::with_stream();
            let process =
                Arc::new(Process { config, tag, child, input, outlet, timed_out: AtomicBool::new(false) });
            this.lock().push(process.clone());
            tokio::spawn(this.clone().attend(process.clone(), output, deadline));
            Ok((process, stream))
        };
        tokio::spawn(start).await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
    }

    /// Sees a command through to its end, and forgets it after a while.
    async fn attend(
        self: Arc<Self>,
        process: Arc<Process>,
        output: output::Output,
        deadline: Option<Instant>,
    ) {
        if let Some(deadline) = deadline {
            tokio::spawn(kill_at(deadline, process.clone()));
        }
        pump::run(&process, output).await;
        tokio::time::sleep(REMEMBERED).await;
        self.lock().retain(|other| !Arc::ptr_eq(other, &process));
    }

    /// The commands that run.
    fn running(&self) -> Vec<Arc<Process>> {
        self.lock().iter().filter(|process| process.runs()).cloned().collect()
    }

    /// The command that `matches`: one that runs if there is one, else the last that ended.
    fn find(&self, matches: impl Fn(&Process) -> bool) -> Option<Arc<Process>> {
        let list = self.lock();
        let mut found = list.iter().rev().filter(|process| matches(process));
        let latest = found.next()?;
        if latest.runs() {
            return Some(latest.clone());
        }
        Some(found.find(|process| process.runs()).unwrap_or(latest).clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Process>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn kill_at(deadline: Instant, process: Arc<Process>) {
    let mut child = process.child.clone();
    tokio::select! {
        _ = child.wait() => {}
        () = tokio::time::sleep_until(deadline) => {
            process.timed_out.store(true, Ordering::Relaxed);
            // If it is gone by now, its status says so, and it made it after all.
            let _ = process.signal(Signal::KILL);
        }
    }
}

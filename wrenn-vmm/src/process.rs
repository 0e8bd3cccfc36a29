//! One running monitor.
//!
//! ```text
//! spawn ──> starting ──wait_ready──> ready ──(guest ends, monitor fails, shutdown)──> ended, collected
//!              └──────────────────────(dies, shutdown)──────────────────────────────────┘
//! ```
//!
//! - A failed `spawn` leaves no process.
//! - After a failed `wait_ready` the process may still run: `shutdown` or the undo list ends it.
//! - Dropping a [`MonitorProcess`] does *not* end the process: the undo list that was given to `spawn` does. The
//!   process is collected in any case.

use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::Pid;
use tokio::time::{Instant, timeout};
use wrenn_base::{Bytes, Deadline, ProcessIdentity, SandboxId, UndoList};

use crate::api::{InstanceInfo, SavedMemory};
use crate::cgroup::{CgroupTree, Limits};
use crate::client::{Client, Timeouts};
use crate::console::Console;
use crate::error::VmmError;
use crate::exit::ExitReport;
use crate::launch::{ApiDir, Spawned, absolute, check_containment, clear_socket, launch};
use crate::memory::{GuestMemory, MemoryError};
use crate::spec::MonitorSpec;
use crate::watch::{ExitWatch, Watched};

/// How long a process may take to disappear after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A monitor that an earlier process started; see [`MonitorProcess::take_over`].
#[derive(Debug, Clone)]
pub struct MonitorTakeOver {
    /// Whose monitor it is.
    pub id: SandboxId,
    /// The process.
    pub process: ProcessIdentity,
    /// The Unix socket that it listens on.
    pub api_socket: PathBuf,
    /// The file that its output is appended to.
    pub console_log: PathBuf,
    /// The user that it runs as, where it is contained.
    pub user: Option<u32>,
    /// Where its cgroup is, if it has one, and the limits that it was given.
    pub cgroup: Option<(CgroupTree, Limits)>,
}

/// A monitor's process, from its start until it is collected.
#[derive(Debug)]
pub struct MonitorProcess {
    watched: Arc<Watched>,
    exit: ExitWatch,
    client: Client,
    console_log: PathBuf,
    /// The user of a contained monitor.
    user: Option<u32>,
    api_dir: Option<ApiDir>,
}

impl MonitorProcess {
    /// Starts a monitor in its namespaces. It is ready once [`wait_ready`](Self::wait_ready) says so.
    ///
    /// Blocks for the few milliseconds that fork, mounts and exec take. The monitor runs in `/`, in a session of its
    /// own, with nearly no environment, no core dumps, and no descriptors but its output. `undo` gets a step that
    /// ends and collects the process, then one for its cgroup if it is to have one, then one that removes the socket.
    ///
    /// # Errors
    /// Whatever is missing, by name, or the step of the setup that failed; no process is left then, and `undo` has
    /// at most steps that find nothing to do. The console log may have been created.
    pub fn spawn(spec: MonitorSpec, undo: &mut UndoList) -> Result<Self, VmmError> {
        let spec = absolute(spec)?;
        // Before anything is registered: an undo must not remove a file that was somebody else's.
        clear_socket(&spec.api_socket)?;
        check_containment(&spec)?;
        let api_dir = ApiDir::of(&spec)?;
        let (socket, lent) = (spec.api_socket.clone(), api_dir.clone());
        undo.push("the monitor's API socket", move |_| {
            lent.as_ref().map_or(Ok(()), ApiDir::take_back)?;
            Ok(clear_socket(&socket)?)
        });
        let cgroup = match spec.containment.as_ref().and_then(|it| it.cgroup.as_ref()) {
            Some((tree, limits)) => Some(tree.create(&spec.id, limits, undo)?),
            None => None,
        };
        let started = Arc::new(OnceLock::<Arc<Watched>>::new());
        let to_stop = Arc::clone(&started);
        undo.push(format!("the monitor of sandbox {}", spec.id), move |deadline: Deadline| {
            match to_stop.get() {
                Some(watched) => Ok(watched.stop_blocking(deadline)?),
                None => Ok(()),
            }
        });
        let user = spec.containment.as_ref().map(|it| it.user);
        let (process, console) = launch(&spec, cgroup.as_ref(), api_dir.as_ref())?;
        let watched = Watched::start(spec.id.clone(), process, user.is_some(), cgroup, console)?;
        let watched = Arc::clone(started.get_or_init(|| watched));
        tracing::debug!(sandbox = %spec.id, pid = watched.pid(), program = %spec.program.path().display(), "monitor started");
        let exit = watched.exit_watch();
        let client = Client::watched(spec.api_socket, spec.timeouts, exit.clone());
        Ok(Self { watched, exit, client, console_log: spec.console_log, user, api_dir })
    }

    /// Takes over a monitor that an earlier process started and that runs still: from here on `undo` ends it, as it would have
    /// ended one of [`spawn`](Self::spawn). How it ends cannot be known, as only a parent is told.
    ///
    /// Blocks for less than a millisecond.
    ///
    /// # Errors
    /// [`VmmError::Gone`] where it has ended; [`VmmError::Cgroup`], [`VmmError::Prepare`] and [`VmmError::Watch`], and it has
    /// been sent SIGKILL.
    pub fn take_over(spec: MonitorTakeOver, undo: &mut UndoList) -> Result<Self, VmmError> {
        let MonitorTakeOver { id, process, api_socket, console_log, user, cgroup } = spec;
        let socket = api_socket.clone();
        undo.push("the monitor's API socket", move |_| Ok(clear_socket(&socket)?));
        // Whatever comes of it, its undo is registered, and so it goes with the rest.
        let cgroup = match &cgroup {
            Some((tree, limits)) => tree.take_over(&id, limits, undo),
            None => Ok(None),
        };
        let pid = process.pid();
        let held = process.open().map_err(|source| VmmError::Watch { source })?;
        let pidfd = held.ok_or_else(|| VmmError::Gone { id: id.clone(), pid })?;
        let process = Spawned { pid: Pid::from_raw(pid).expect("it was just found by this number"), pidfd };
        let prepare = || {
            let path = || console_log.clone();
            let failed = |source| VmmError::Prepare { what: "the console log", path: path(), source };
            Ok::<_, VmmError>((cgroup?, Console::open(&console_log).map_err(failed)?))
        };
        let (cgroup, console) = prepare().inspect_err(|_| process.abandon())?;
        let watched = Watched::start(id.clone(), process, user.is_some(), cgroup, console)?;
        let stopped = Arc::clone(&watched);
        undo.push(format!("the monitor of sandbox {id}"), move |deadline| {
            Ok(stopped.stop_blocking(deadline)?)
        });
        let exit = watched.exit_watch();
        let client = Client::watched(api_socket, Timeouts::default(), exit.clone());
        Ok(Self { watched, exit, client, console_log, user, api_dir: None })
    }

    /// Waits until the monitor answers on its API socket, at most `limit`, and returns what it says it is.
    ///
    /// Cancel safe; needs a Tokio runtime with time and I/O.
    ///
    /// # Errors
    /// [`VmmError::Exited`] as soon as the process ends, [`VmmError::NotReady`] after `limit` (the process still runs
    /// then), or what is wrong with the answer.
    pub async fn wait_ready(&self, limit: Duration) -> Result<InstanceInfo, VmmError> {
        let not_ready = |_| VmmError::NotReady {
            id: self.exit.id().clone(),
            socket: self.client.socket().to_owned(),
            limit,
            console_log: self.console_log.clone(),
        };
        let answer = tokio::select! {
            biased;
            answer = timeout(limit, self.poll_ready(Instant::now())) => answer.map_err(not_ready)?,
            report = self.exit.exited() => return Err(self.exit.ended(report, "startup")),
        };
        match answer {
            Ok(info) => {
                self.api_dir.as_ref().map_or(Ok(()), ApiDir::take_back)?;
                Ok(info)
            }
            Err(error) => Err(self.exit.explain(error, "startup").await),
        }
    }

    async fn poll_ready(&self, started: Instant) -> Result<InstanceInfo, VmmError> {
        loop {
            match self.client.probe().await {
                Err(VmmError::NotListening { .. }) => {}
                answer => return answer,
            }
            // A pause that grows with the time already spent: at most an eighth of the start-up is lost to it.
            let pause = started.elapsed() / 8;
            tokio::time::sleep(pause.clamp(Duration::from_millis(1), Duration::from_millis(20))).await;
        }
    }

    /// The REST API of this monitor. Its calls notice the monitor's end, see [`VmmError::Exited`].
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits until the monitor has ended and is collected. Any number may wait; cancel safe.
    pub async fn exited(&self) -> ExitReport {
        self.exit.exited().await
    }

    /// As [`exited`](Self::exited), for who does not keep the process: nothing of it is held meanwhile.
    pub fn exit(&self) -> impl Future<Output = ExitReport> + Send + use<> {
        let exit = self.exit.clone();
        async move { exit.exited().await }
    }

    /// How the monitor ended, if it has.
    pub fn exit_report(&self) -> Option<ExitReport> {
        self.exit.now()
    }

    /// The memory of the guest, which must be paused for as long as this is used.
    ///
    /// # Errors
    /// Those of reading another process's memory, and [`MemoryError::Gone`](crate::MemoryError::Gone).
    pub fn guest_memory(&self, saved: SavedMemory) -> Result<GuestMemory, MemoryError> {
        let life = self
            .watched
            .life()
            .map_err(|source| MemoryError::System { action: "hold on to the monitor's process", source })?;
        GuestMemory::new(self.watched.process(), life, saved.regions)
    }

    /// Makes the file or socket at `path` the monitor's user's: to be read, written or connected to by it. Of a monitor
    /// that is not contained nothing is asked.
    ///
    /// The path must lie where the monitor cannot put something else in its place, and is not followed if it is a link.
    ///
    /// # Errors
    /// [`VmmError::Prepare`].
    pub fn give(&self, path: &Path) -> Result<(), VmmError> {
        let Some(user) = self.user else { return Ok(()) };
        let failed = |source| VmmError::Prepare { what: "for the monitor", path: path.to_owned(), source };
        lchown(path, Some(user), Some(user)).map_err(failed)
    }

    /// The user that the monitor runs as, where it is contained.
    pub fn user(&self) -> Option<u32> {
        self.user
    }

    /// Lets the monitor have `more` memory beyond its cgroup's limit, until [`Self::settle_memory`]: a frozen copy of it
    /// takes a page for each one that the guest writes to meanwhile. Without a limit there is nothing to do.
    ///
    /// # Errors
    /// [`VmmError::Cgroup`].
    pub fn extend_memory(&self, more: Bytes) -> Result<(), VmmError> {
        Ok(self.watched.cgroup().map_or(Ok(()), |cgroup| cgroup.extend_memory(more.get()))?)
    }

    /// Puts the limit of its memory in force again, once no frozen copy of the monitor is left; waits for that. Blocks.
    ///
    /// # Errors
    /// [`VmmError::Cgroup`], if there still is one after `limit`; the limit then stays where it is.
    pub fn settle_memory(&self, limit: Duration) -> Result<(), VmmError> {
        let deadline = Deadline::after(limit);
        Ok(self.watched.cgroup().map_or(Ok(()), |cgroup| cgroup.settle_memory(deadline))?)
    }

    /// A handle that ends the monitor from any thread, without waiting for it.
    pub fn killer(&self) -> Killer {
        Killer(Arc::clone(&self.watched))
    }

    /// The process's number.
    pub fn pid(&self) -> i32 {
        self.watched.pid()
    }

    /// The file that holds the monitor's and the guest's output.
    pub fn console_log(&self) -> &Path {
        &self.console_log
    }

    /// Ends the monitor: SIGTERM, then SIGKILL after `grace`; SIGKILL at once where it is contained, as PID 1 of a
    /// namespace hears no SIGTERM that it has no handler for. Returns when it is collected.
    ///
    /// A monitor that has already ended is no error. The guest is not asked: to it this is a power cut. Cancelled,
    /// it can be called again; a SIGTERM may have been sent by then.
    ///
    /// # Errors
    /// [`VmmError::Unkillable`] where the process is still there ten seconds after SIGKILL.
    pub async fn shutdown(&self, grace: Duration) -> Result<ExitReport, VmmError> {
        self.watched.terminate();
        match timeout(grace, self.exited()).await {
            Ok(report) => Ok(report),
            Err(_) => self.kill().await,
        }
    }

    /// Ends the monitor with SIGKILL. Returns when it is collected. Cancel safe: the signal is sent first.
    ///
    /// # Errors
    /// [`VmmError::Unkillable`] where the process is still there ten seconds later.
    pub async fn kill(&self) -> Result<ExitReport, VmmError> {
        self.watched.kill();
        timeout(KILL_LIMIT, self.exited()).await.map_err(|_| self.watched.unkillable(KILL_LIMIT))
    }
}

/// Ends one monitor from any thread; made by [`MonitorProcess::killer`].
#[derive(Debug, Clone)]
pub struct Killer(Arc<Watched>);

impl Killer {
    /// Sends SIGKILL and returns at once. A monitor that has already ended is fine.
    pub fn kill(&self) {
        self.0.kill();
    }
}

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

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, timeout};
use wrenn_base::{Deadline, UndoList};

use crate::api::{InstanceInfo, SavedMemory};
use crate::client::Client;
use crate::error::VmmError;
use crate::exit::ExitReport;
use crate::launch::{absolute, clear_socket, launch};
use crate::memory::{GuestMemory, MemoryError};
use crate::spec::MonitorSpec;
use crate::watch::{ExitWatch, Watched};

/// How long a process may take to disappear after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A monitor's process, from its start until it is collected.
#[derive(Debug)]
pub struct MonitorProcess {
    watched: Arc<Watched>,
    exit: ExitWatch,
    client: Client,
    console_log: PathBuf,
}

impl MonitorProcess {
    /// Starts a monitor in its namespaces. It is ready once [`wait_ready`](Self::wait_ready) says so.
    ///
    /// Blocks for the few milliseconds that fork, mounts and exec take. The monitor runs in `/`, in a session of its
    /// own, with nearly no environment, no core dumps, and no descriptors but its output. `undo` gets two steps:
    /// one ends and collects the process, the other removes the socket.
    ///
    /// # Errors
    /// Whatever is missing, by name, or the step of the setup that failed; no process is left then, and `undo` has
    /// at most steps that find nothing to do. The console log may have been created.
    pub fn spawn(spec: MonitorSpec, undo: &mut UndoList) -> Result<Self, VmmError> {
        let spec = absolute(spec)?;
        // Before anything is registered: an undo must not remove a file that was somebody else's.
        clear_socket(&spec.api_socket)?;
        let socket = spec.api_socket.clone();
        undo.push("the monitor's API socket", move |_| Ok(clear_socket(&socket)?));
        let started = Arc::new(OnceLock::<Arc<Watched>>::new());
        let to_stop = Arc::clone(&started);
        undo.push(format!("the monitor of sandbox {}", spec.id), move |deadline: Deadline| {
            match to_stop.get() {
                Some(watched) => Ok(watched.stop_blocking(deadline)?),
                None => Ok(()),
            }
        });
        let (child, console) = launch(&spec)?;
        let watched = Watched::start(spec.id.clone(), child, console)?;
        let watched = Arc::clone(started.get_or_init(|| watched));
        tracing::debug!(sandbox = %spec.id, pid = watched.pid(), program = %spec.program.path().display(), "monitor started");
        let exit = watched.exit_watch();
        let client = Client::watched(spec.api_socket, spec.timeouts, exit.clone());
        Ok(Self { watched, exit, client, console_log: spec.console_log })
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
            Ok(info) => Ok(info),
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

    /// Ends the monitor: SIGTERM, then SIGKILL after `grace`. Returns when it is collected.
    ///
    /// A monitor that has already ended is no error. The guest is not asked: to it this is a power cut. Cancelled,
    /// it can be called again; a SIGTERM may have been sent by then.
    ///
    /// # Errors
    /// [`VmmError::Unkillable`] where the process is still there ten seconds after SIGKILL.
    pub async fn shutdown(&self, grace: Duration) -> Result<ExitReport, VmmError> {
        self.watched.signal(Signal::TERM);
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
        self.watched.signal(Signal::KILL);
        timeout(KILL_LIMIT, self.exited()).await.map_err(|_| self.watched.unkillable(KILL_LIMIT))
    }
}

/// Ends one monitor from any thread; made by [`MonitorProcess::killer`].
#[derive(Debug, Clone)]
pub struct Killer(Arc<Watched>);

impl Killer {
    /// Sends SIGKILL and returns at once. A monitor that has already ended is fine.
    pub fn kill(&self) {
        self.0.signal(Signal::KILL);
    }
}

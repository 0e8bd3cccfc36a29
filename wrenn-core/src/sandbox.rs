//! A running sandbox.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Mutex;
use wrenn_base::{Bytes, SandboxId, TemplateName};
use wrenn_storage::MemoryImage;
use wrenn_uffd::FaultStats;
use wrenn_vmm::ExitReport;

use crate::capture;
use crate::command::{Command, Output};
use crate::error::{Cause, Error};
use crate::files::Files;
use crate::host::HostInner;
use crate::machine::Machine;
use crate::paused::PausedSandbox;
use crate::restore::RestoreTimings;
use crate::running::{Capture, capture_running};
use crate::step::blocking;
use crate::stored::Stored;
use crate::template::{self, Changes, StagedTemplate, TakenSnapshot, Template};

/// A guest that runs: commands can be run in it and files moved.
///
/// Dropping it ends the guest and removes everything it stands on, in the background. A snapshot that it was resumed
/// from stays, and can be had again with [`Host::paused`](crate::Host::paused); a sandbox that was never paused is
/// gone. [`destroy`](Self::destroy) does the same in the foreground and removes the snapshot too.
pub struct Sandbox {
    host: Arc<HostInner>,
    machine: Machine,
    /// The snapshot that this sandbox was resumed from.
    origin: Option<Origin>,
    /// Whether the monitor's log has every page written since `origin`: a failed pause, and a snapshot of the running
    /// guest, may have made it forget. Without meaning where guest memory is read instead.
    dirty_pages_known: AtomicBool,
    /// Held while the guest is captured and runs on.
    capturing: Mutex<()>,
}

/// A snapshot that a running sandbox came from. Its layers may still be read by page faults.
pub(crate) struct Origin {
    /// Which of the sandbox's own snapshots it is; 0 for another's.
    pub(crate) generation: u64,
    pub(crate) memory: MemoryImage,
}

/// A pause that failed: why, and the sandbox, running as before, unless its guest has ended.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox could not be paused")]
#[non_exhaustive]
pub struct PauseError {
    /// Why.
    pub source: Error,
    /// The running sandbox; absent where its guest ended.
    pub sandbox: Option<Box<Sandbox>>,
}

impl Sandbox {
    pub(crate) fn booted(host: Arc<HostInner>, machine: Machine) -> Self {
        Self {
            host,
            machine,
            origin: None,
            dirty_pages_known: AtomicBool::new(false),
            capturing: Mutex::default(),
        }
    }

    pub(crate) fn resumed(host: Arc<HostInner>, machine: Machine, origin: Origin) -> Self {
        let dirty_pages_known = AtomicBool::new(true);
        Self { host, machine, origin: Some(origin), dirty_pages_known, capturing: Mutex::default() }
    }

    /// The sandbox's id, the same across pauses.
    pub fn id(&self) -> &SandboxId {
        &self.machine.live.identity.id
    }

    /// Begins a command: the program's name or path, with arguments, environment and the rest to be added.
    pub fn command(&self, program: impl Into<String>) -> Command {
        Command::new(Arc::clone(&self.machine.live), program.into())
    }

    /// Runs a line of shell (`/bin/sh -c`) to its end and collects what it prints.
    ///
    /// # Errors
    /// The guest cannot be reached or has no such shell. A line that fails is no error: see [`Output::status`].
    ///
    /// # Cancel safety
    /// A dropped future does not end the command.
    pub async fn exec(&self, line: impl Into<String>) -> Result<Output, Error> {
        self.command("/bin/sh").arg("-c").arg(line).output().await
    }

    /// The guest's files.
    pub fn files(&self) -> Files {
        Files::new(Arc::clone(&self.machine.live))
    }

    /// How the guest's memory has been paged in since the resume; nothing for a sandbox that was booted.
    pub fn fault_stats(&self) -> Option<FaultStats> {
        self.machine.live.fault_stats()
    }

    /// How long its resume took, step by step; nothing for a sandbox that was booted.
    pub fn restore_timings(&self) -> Option<RestoreTimings> {
        self.machine.live.restored.as_ref()?.timings()
    }

    /// The size of the guest's memory.
    pub fn memory(&self) -> Bytes {
        self.machine.live.identity.spec.memory.bytes()
    }

    /// Waits until the guest ends by itself, and says how. Cancel safe.
    pub async fn exited(&self) -> ExitReport {
        self.machine.live.monitor.exited().await
    }

    /// The process number of the sandbox's monitor.
    pub fn monitor_pid(&self) -> i32 {
        self.machine.live.monitor.pid()
    }

    /// Pauses the sandbox to disk: machine state, memory and root disk, as one snapshot, and ends its monitor.
    ///
    /// The first pause writes the guest's whole memory, one after a resume only the pages written since.
    ///
    /// # Errors
    /// [`PauseError`] has the sandbox, running as before, unless its guest ended; an earlier snapshot is untouched in
    /// either case.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the pause: it runs to its end, and the result is then found with
    /// [`Host::paused`](crate::Host::paused).
    pub async fn pause(self) -> Result<PausedSandbox, PauseError> {
        let runtime = self.host.runtime.clone();
        match runtime.spawn(self.pause_to_the_end()).await {
            Ok(result) => result,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }

    async fn pause_to_the_end(self) -> Result<PausedSandbox, PauseError> {
        let generation = self.origin.as_ref().map_or(0, |origin| origin.generation) + 1;
        // Whatever merges the layers of the snapshot that this one builds on has to be done with it.
        self.host.compactions.stop(self.id()).await;
        let captured = match self.base().await {
            Ok((stored, memory)) => {
                capture::capture(&self.machine.live, stored.as_ref(), memory, generation).await
            }
            Err(cause) => Err(cause),
        };
        match captured {
            Ok(stored) => Ok(self.leave_behind(stored).await),
            Err(cause) => {
                self.dirty_pages_known.store(false, Ordering::Relaxed);
                self.drop_orphaned_layers().await;
                let ended = self.machine.live.monitor.exit_report().is_some();
                let sandbox = (!ended).then(|| Box::new(self));
                Err(PauseError { source: cause.into(), sandbox })
            }
        }
    }

    /// What a diff of the guest is a diff of: its own latest snapshot, as it is on disk now, and the memory image that
    /// it came from. Neither, where it was booted; no memory, where what changed since is not known.
    async fn base(&self) -> Result<(Option<Stored>, Option<MemoryImage>), Cause> {
        let Some(origin) = &self.origin else { return Ok((None, None)) };
        let known = self.machine.live.reads_memory || self.dirty_pages_known.load(Ordering::Relaxed);
        if origin.generation == 0 {
            return Ok((None, known.then(|| origin.memory.clone())));
        }
        let store = self.machine.live.identity.dirs.store.clone();
        let stored = blocking(move || Stored::open(&store)).await?;
        let memory = stored.as_ref().map(|stored| stored.memory.clone()).filter(|_| known);
        Ok((stored, memory))
    }

    /// Takes the machine down around a committed snapshot.
    async fn leave_behind(mut self, stored: Stored) -> PausedSandbox {
        self.machine.keep_data();
        let identity = self.machine.live.identity.clone();
        for failure in self.machine.dismantle().await {
            // The snapshot is whole and nothing of it depends on what is left: report it, do not fail the pause.
            tracing::warn!(sandbox = %identity.id, step = %failure.what, error = %failure.source, "left behind by a pause");
        }
        let paused = PausedSandbox::captured(self.host, identity, stored);
        paused.tidy().await;
        paused
    }

    /// After a failed pause: a layer that was written for it, and is part of no image.
    async fn drop_orphaned_layers(&self) {
        let Some(origin) = &self.origin else { return };
        let (store, own, memory) =
            (self.machine.live.identity.dirs.store.clone(), origin.generation > 0, origin.memory.clone());
        let result = blocking(move || {
            let kept = if own { Stored::open(&store)?.map(|stored| stored.memory) } else { Some(memory) };
            capture::drop_orphaned_layers(&store, kept.as_ref())
        });
        if let Err(e) = result.await {
            tracing::warn!(sandbox = %self.id(), error = %e, "could not remove the layers of a failed pause");
        }
    }

    /// Makes a template of the sandbox as it is now, while it runs on.
    ///
    /// Its vCPUs stand still only while the machine's state is saved, its memory frozen and its disk's changes cloned
    /// (a reflink, where the data directory has them); memory is written while it runs. A monitor that cannot freeze
    /// memory, as Firecracker, stands still until all of it is written. [`TakenSnapshot`] says how long it was.
    ///
    /// # Errors
    /// `name` is no valid name, or taken ([`Cause::TemplateExists`](crate::Cause::TemplateExists)), or the guest ended, or
    /// the disk is full. No template is left then, and the sandbox runs on, unless its guest ended.
    ///
    /// # Cancel safety
    /// A dropped future does not stop it: the sandbox runs on, and the template is made.
    pub async fn snapshot(&self, name: &str) -> Result<TakenSnapshot, Error> {
        let name: TemplateName = name.parse()?;
        let _capturing = self.capturing.lock().await;
        let (host, new) = (Arc::clone(&self.host), name.clone());
        let staged = blocking(move || StagedTemplate::create(&host, &new)).await?;
        let (capture, _) = self.capture_into(staged, Some(name.clone())).await?;
        Ok(TakenSnapshot {
            template: Template::new(Arc::clone(&self.host), name),
            stopped: capture.stopped,
            memory_written: capture.stored.record.memory_written,
        })
    }

    /// Makes `count` running sandboxes that begin where this one is now, while it runs on.
    ///
    /// Each has an id, a network slot, a root disk, a token and randomness of its own. Memory is captured as by
    /// [`snapshot`](Self::snapshot), and shared by the children as long as they do not write to it.
    ///
    /// # Errors
    /// The guest ended, the disk is full, or a child could not be made: then none is, and the sandbox runs on, unless
    /// its guest ended.
    ///
    /// # Cancel safety
    /// A dropped future leaves no child; the sandbox runs on.
    pub async fn branch(&self, count: usize) -> Result<Vec<Sandbox>, Error> {
        let _capturing = self.capturing.lock().await;
        let host = Arc::clone(&self.host);
        let staged = blocking(move || StagedTemplate::unnamed(&host)).await?;
        let (capture, staged) = self.capture_into(staged, None).await?;
        template::spawn(&self.host, capture.stored, &Changes::default(), count, staged).await
    }

    /// Captures the running guest into `staged`, and commits that as the template `name` where there is a name: to the
    /// end, whoever waits.
    async fn capture_into(
        &self,
        staged: StagedTemplate,
        name: Option<TemplateName>,
    ) -> Result<(Capture, Option<StagedTemplate>), Error> {
        // The layers that the new image builds on must stay until it has links of its own to them.
        self.host.compactions.stop(self.id()).await;
        let (own, mut memory) = self.base().await?;
        if let (None, Some(origin)) = (&memory, &self.origin) {
            memory = Some(origin.memory.clone());
        }
        self.dirty_pages_known.store(false, Ordering::Relaxed);
        let (host, live) = (Arc::clone(&self.host), Arc::clone(&self.machine.live));
        let task = async move {
            let capture = capture_running(&host, &live, memory, staged.store()).await?;
            if let Some(own) = &own {
                host.compactions.consider(&live.identity.dirs.store, own);
            }
            let staged = blocking(move || match name {
                Some(name) => staged.commit(&host, &name).map(|()| None),
                None => Ok(Some(staged)),
            });
            Ok((capture, staged.await?))
        };
        match self.host.runtime.spawn(task).await {
            Ok(result) => result,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }

    /// Ends the guest and removes the sandbox with its snapshots. Returns when everything is gone.
    ///
    /// # Errors
    /// [`ErrorKind::Cleanup`](crate::ErrorKind::Cleanup): the guest has ended, but something could not be removed.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the removal of the machine; a snapshot's files may stay.
    pub async fn destroy(self) -> Result<(), Error> {
        let what = format!("destroying sandbox {}", self.id());
        let identity = self.machine.live.identity.clone();
        let failures = self.machine.dismantle().await;
        self.host.compactions.stop(&identity.id).await;
        blocking(move || identity.dirs.store.remove()).await?;
        Error::from_cleanup(what, failures)
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("id", self.id()).finish_non_exhaustive()
    }
}

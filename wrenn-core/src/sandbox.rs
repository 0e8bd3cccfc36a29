//! A running sandbox.

use std::fmt;
use std::sync::Arc;

use wrenn_base::{Bytes, SandboxId};
use wrenn_storage::MemoryImage;
use wrenn_uffd::FaultStats;
use wrenn_vmm::ExitReport;

use crate::capture::{self, Captured};
use crate::command::{Command, Output};
use crate::error::Error;
use crate::files::Files;
use crate::host::HostInner;
use crate::machine::Machine;
use crate::paused::PausedSandbox;
use crate::step::blocking;

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
    /// Whether the monitor knows every page written since `origin`: a failed pause may have made it forget.
    dirty_pages_known: bool,
}

/// A snapshot that a running sandbox came from. Its layers may still be read by page faults.
pub(crate) struct Origin {
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
        Self { host, machine, origin: None, dirty_pages_known: false }
    }

    pub(crate) fn resumed(host: Arc<HostInner>, machine: Machine, origin: Origin) -> Self {
        Self { host, machine, origin: Some(origin), dirty_pages_known: true }
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

    async fn pause_to_the_end(mut self) -> Result<PausedSandbox, PauseError> {
        let generation = self.origin.as_ref().map_or(0, |origin| origin.generation) + 1;
        let base = self.origin.as_ref().map(|origin| &origin.memory).filter(|_| self.dirty_pages_known);
        match capture::capture(&self.machine.live, base, generation).await {
            Ok(captured) => Ok(self.leave_behind(captured).await),
            Err(cause) => {
                self.dirty_pages_known = false;
                self.drop_orphaned_layers().await;
                let ended = self.machine.live.monitor.exit_report().is_some();
                let sandbox = (!ended).then(|| Box::new(self));
                Err(PauseError { source: cause.into(), sandbox })
            }
        }
    }

    /// Takes the machine down around a committed snapshot.
    async fn leave_behind(mut self, captured: Captured) -> PausedSandbox {
        self.machine.keep_data();
        let identity = self.machine.live.identity.clone();
        for failure in self.machine.dismantle().await {
            // The snapshot is whole and nothing of it depends on what is left: report it, do not fail the pause.
            tracing::warn!(sandbox = %identity.id, step = %failure.what, error = %failure.source, "left behind by a pause");
        }
        let paused = PausedSandbox::captured(self.host, identity, captured);
        paused.prune().await;
        paused
    }

    /// After a failed pause: a layer that was written for it, and is part of no image.
    async fn drop_orphaned_layers(&self) {
        let dirs = self.machine.live.identity.dirs.clone();
        let kept = self.origin.as_ref().map(|origin| origin.memory.clone());
        let result = blocking(move || capture::drop_orphaned_layers(&dirs, kept.as_ref())).await;
        if let Err(e) = result {
            tracing::warn!(sandbox = %self.id(), error = %e, "could not remove the layers of a failed pause");
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
        let dirs = self.machine.live.identity.dirs.clone();
        let failures = self.machine.dismantle().await;
        blocking(move || dirs.remove_data()).await?;
        Error::from_cleanup(what, failures)
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("id", self.id()).finish_non_exhaustive()
    }
}

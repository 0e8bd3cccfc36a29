//! A running sandbox.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use wrenn_agent_api::AccessToken;
use wrenn_base::{Bytes, SandboxId, TemplateName};
use wrenn_pager::FaultStats;
use wrenn_vmm::ExitReport;

use crate::command::{Command, Output};
use crate::console;
use crate::error::{Cause, Error};
use crate::files::Files;
use crate::host::HostInner;
use crate::instance::{Instance, Origin, pause_held};
use crate::lifecycle::{SandboxState, Step};
use crate::lifetime::OnTimeout;
use crate::machine::{Live, Machine};
use crate::metrics::{Operation, whole};
use crate::paused::PausedSandbox;
use crate::registry::{Entry, Held};
use crate::restore::RestoreTimings;
use crate::running::Capture;
use crate::step::{blocking, to_its_end};
use crate::template::{StagedTemplate, TakenSnapshot, Template};

/// A guest that runs: commands can be run in it and files moved.
///
/// Dropping it ends the guest and removes everything it stands on, in the background. A snapshot that it was resumed
/// from stays, and can be had again with [`Host::paused`](crate::Host::paused); a sandbox that was never paused is
/// gone. [`destroy`](Self::destroy) does the same in the foreground and removes the snapshot too.
///
/// With a [timeout](crate::SandboxBuilder::timeout) the host itself may pause or destroy it: calls then say so
/// ([`Cause::Expired`]), and [`pause`](Self::pause) and `destroy` find it where it is.
pub struct Sandbox {
    host: Arc<HostInner>,
    live: Arc<Live>,
    /// Where the machine is, for whoever works on it.
    entry: Arc<Entry>,
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
    /// Enters a machine that has come to run.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing: the machine goes with it.
    pub(crate) async fn started(
        host: Arc<HostInner>,
        mut machine: Machine,
        entry: Arc<Entry>,
        origin: Option<Origin>,
    ) -> Result<Self, Error> {
        let live = Arc::clone(&machine.live);
        machine.keep_journal(&host.reaper, origin.as_ref().map(|origin| origin.generation)).await?;
        let mut held = entry.hold().await;
        // Its time begins now, however long it took to get here.
        entry.clock.touch();
        host.registry.step(&entry.id, Step::Started)?;
        *held = Some(Instance::new(machine, origin));
        drop(held);
        host.tell_of_end(&live);
        host.registry.look_anew();
        Ok(Self { host, live, entry })
    }

    /// Leaves it running, to be had by [`Host::running`](crate::Host::running).
    pub(crate) fn park(self) {
        self.entry.park();
    }

    /// Takes up one that was left running.
    pub(crate) async fn unpark(host: Arc<HostInner>, entry: Arc<Entry>) -> Result<Self, Cause> {
        let held = entry.hold().await;
        let busy = || Cause::SandboxBusy { id: entry.id.clone() };
        let live = held.as_ref().map(|instance| Arc::clone(instance.live())).ok_or_else(busy)?;
        if !entry.unpark() {
            return Err(busy());
        }
        drop(held);
        Ok(Self { host, live, entry })
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    pub(crate) fn host(&self) -> &Arc<HostInner> {
        &self.host
    }

    /// Waits until nobody else works on the machine.
    pub(crate) async fn hold(&self) -> Held {
        self.entry.hold().await
    }

    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.host.runtime
    }

    /// The sandbox's id, the same across pauses.
    pub fn id(&self) -> &SandboxId {
        &self.live.identity.id
    }

    /// Begins a command: the program's name or path, with arguments, environment and the rest to be added.
    pub fn command(&self, program: impl Into<String>) -> Command {
        Command::new(Arc::clone(&self.live), program.into())
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
        Files::new(Arc::clone(&self.live))
    }

    /// How the guest's memory has been paged in since the resume; nothing for a sandbox that was booted, or has ended.
    ///
    /// # Cancel safety
    /// A dropped future changes nothing.
    pub async fn fault_stats(&self) -> Option<FaultStats> {
        self.live.fault_stats().await
    }

    /// How long its resume took, step by step; nothing for a sandbox that was booted.
    pub fn restore_timings(&self) -> Option<RestoreTimings> {
        self.live.restored.as_ref()?.timings()
    }

    /// What the guest's agent wants to be shown: with it, whoever reaches its port controls the guest.
    pub fn access_token(&self) -> &AccessToken {
        &self.live.identity.token
    }

    /// The last bytes of the guest's console log, at most `most`, as the guest wrote them: they are not safe to print.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn console(&self, most: Bytes) -> Result<Vec<u8>, Error> {
        let path = self.live.monitor.console_log().to_owned();
        let end = blocking(move || {
            console::end(&path, most.get()).map_err(|source| Cause::io("read", &path, source))
        });
        Ok(end.await?)
    }

    /// The size of the guest's memory.
    pub fn memory(&self) -> Bytes {
        self.live.identity.spec.memory.bytes()
    }

    /// Waits until the guest ends by itself, and says how. Cancel safe.
    pub async fn exited(&self) -> ExitReport {
        self.live.monitor.exited().await
    }

    /// The process number of the sandbox's monitor.
    pub fn monitor_pid(&self) -> i32 {
        self.live.monitor.pid()
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
        to_its_end(&runtime, self.pause_to_the_end()).await
    }

    async fn pause_to_the_end(self) -> Result<PausedSandbox, PauseError> {
        let mut held = self.entry.hold().await;
        if held.is_none() && self.live.expired() == Some(OnTimeout::Pause) {
            let paused = PausedSandbox::open(Arc::clone(&self.host), self.id().clone()).await;
            return paused.map_err(|source| PauseError { source, sandbox: None });
        }
        match pause_held(&self.host, &self.entry, &mut held, None).await {
            Ok(paused) => Ok(paused),
            Err(cause) => {
                let source = self.live.expired_or(cause).into();
                let sandbox = held.is_some().then(|| Box::new(self));
                Err(PauseError { source, sandbox })
            }
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
        let held = self.entry.hold().await;
        let (host, new) = (Arc::clone(&self.host), name.clone());
        let staged = blocking(move || StagedTemplate::create(&host, &new)).await?;
        let (capture, _) = self.capture_into(held, staged, Some(name.clone())).await?;
        Ok(TakenSnapshot {
            template: Template::new(Arc::clone(&self.host), name),
            stopped: capture.stopped,
            memory_written: capture.stored.record.memory_written,
        })
    }

    /// Captures the running guest into `staged`, to the end, whoever waits.
    pub(crate) async fn capture_into(
        &self,
        mut held: Held,
        staged: StagedTemplate,
        name: Option<TemplateName>,
    ) -> Result<(Capture, Option<StagedTemplate>), Error> {
        let (host, live, activity) = (Arc::clone(&self.host), Arc::clone(&self.live), self.live.activity());
        let task = async move {
            let _activity = activity;
            match &mut *held {
                Some(instance) => whole(Operation::Snapshot, instance.capture(&host, staged, name)).await,
                None => Err(live.expired_or(Cause::SandboxBusy { id: live.identity.id.clone() })),
            }
        };
        Ok(to_its_end(&self.host.runtime, task).await?)
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
        let instance = self.entry.hold().await.take();
        match (instance, self.live.expired()) {
            (Some(instance), _) => Error::from_cleanup(what, instance.destroy(&self.host, None).await?),
            (None, Some(OnTimeout::Destroy)) => Ok(()),
            (None, _) => {
                PausedSandbox::open(Arc::clone(&self.host), self.id().clone()).await?.destroy().await
            }
        }
    }

    /// What it is doing: while there is this handle, running, unless its timeout has seen to it.
    pub fn state(&self) -> SandboxState {
        self.host.registry.state(self.id()).unwrap_or(SandboxState::Paused)
    }

    /// What it was given to be found by; see [`SandboxBuilder::metadata`](crate::SandboxBuilder::metadata).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.live.identity.spec.metadata
    }

    /// Changes how long it may be idle, counted from now, and what becomes of it then; `None` is for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>, then: OnTimeout) {
        self.live.clock.set_timeout(timeout, then);
        self.host.registry.look_anew();
        let live = Arc::clone(&self.live);
        self.host.runtime.spawn_blocking(move || {
            if let Err(error) = live.journal.refresh(&live) {
                tracing::warn!(sandbox = %live.identity.id, %error, "a new timeout is not written down");
            }
        });
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.entry.is_parked() {
            return;
        }
        self.entry.abandon();
        match self.entry.try_hold() {
            Some(mut held) => drop(held.take()),
            // A capture that goes on has it, or its timeout: whoever it is, the watch takes it from there.
            None => self.host.registry.look_anew(),
        }
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("id", self.id()).finish_non_exhaustive()
    }
}

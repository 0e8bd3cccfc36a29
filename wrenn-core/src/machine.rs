//! A running virtual machine with everything it stands on: disk, network slot, monitor, fault server, agent.
//!
//! There are two ways to get one, and one way to lose it:
//!
//! ```text
//! boot(image) ------\                              /-- destroy, or a drop: the undo list
//!                    >--> Machine (agent answers) <
//! restore(stored) --/                              \-- the guest ends by itself: calls notice, then the undo list
//! ```
//!
//! Whatever fails on the way in, the undo list takes back all that was made, in reverse order, and the first error
//! is returned with the cleanup's beside it.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use wrenn_agent_api::{AccessToken, AgentClient, AgentError, Init};
use wrenn_base::{Reaper, StepId, UndoFailure, UndoList};
use wrenn_pager::FaultStats;
use wrenn_storage::{Digest, MemoryImage, RootDisk};
use wrenn_vmm::MonitorProcess;

use crate::assembly::{Assembly, Built, Identity};
use crate::error::{Cause, Error};
use crate::host::HostInner;
use crate::journal::JournalFile;
use crate::lifetime::{Activity, Clock, OnTimeout};
use crate::metrics::{Operation, whole};
use crate::network::Network;
use crate::paging::Paging;
use crate::registry::Entry;
use crate::restore::{RestoreOptions, Stopwatch};
use crate::spec::SandboxSpec;
use crate::step::{blocking, building, undo_all};
use crate::stored::Stored;

/// How long undoing a whole machine may take.
pub(crate) const UNDO_LIMIT: Duration = Duration::from_secs(30);
/// After a call broke off, how long the guest's end may take to become known as the reason.
const END_GRACE: Duration = Duration::from_millis(500);
/// Between attempts to reach an agent that does not listen yet.
const GREETING_PAUSE: Duration = Duration::from_millis(5);

/// The parts that answer while a machine runs.
pub(crate) struct Live {
    pub(crate) identity: Identity,
    pub(crate) monitor: MonitorProcess,
    pub(crate) disk: RootDisk,
    /// The image under the disk.
    pub(crate) image: Digest,
    pub(crate) network: Network,
    pub(crate) agent: AgentClient,
    pub(crate) paging: Option<Arc<Paging>>,
    /// How that took, where it goes on where a snapshot was taken; nothing where it was booted.
    pub(crate) restored: Option<Stopwatch>,
    /// Whether the monitor lets guest memory be read out of its address space.
    pub(crate) reads_memory: bool,
    pub(crate) clock: Clock,
    /// What a later process would go by.
    pub(crate) journal: Arc<JournalFile>,
    /// What its timeout, or the host's end, has made of it.
    pub(crate) expired: OnceLock<OnTimeout>,
}

/// A machine that has come to run, and the sandbox's place in the registry.
pub(crate) struct Entered {
    pub(crate) machine: Machine,
    pub(crate) entry: Arc<Entry>,
}

/// A running machine; dropping it hands everything it stands on to the reaper.
pub(crate) struct Machine {
    pub(crate) live: Arc<Live>,
    undo: UndoList,
    data_step: Option<StepId>,
}

impl Machine {
    /// Boots a fresh machine from the spec's image and waits until its agent answers.
    pub(crate) async fn boot(host: &Arc<HostInner>, identity: Identity) -> Result<Entered, Error> {
        let mut assembly = Assembly::new(Arc::clone(host), identity, Operation::Create);
        let result = whole(assembly.operation, assembly.boot()).await;
        Self::from_assembly(host, assembly, result).await
    }

    /// Restores a machine from its own snapshot and waits until its agent answers.
    pub(crate) async fn restore(
        host: &Arc<HostInner>,
        identity: Identity,
        stored: &Stored,
        options: RestoreOptions,
    ) -> Result<Entered, Error> {
        let mut assembly = Assembly::new(Arc::clone(host), identity, Operation::Resume);
        let result = whole(assembly.operation, assembly.restore(stored, options)).await;
        Self::from_assembly(host, assembly, result).await
    }

    /// Makes a new machine that goes on where `stored`, the snapshot of another, was taken; also returns its memory
    /// image, whose layers are its own.
    pub(crate) async fn spawn(
        host: &Arc<HostInner>,
        identity: Identity,
        stored: &Stored,
        options: RestoreOptions,
    ) -> Result<(Entered, MemoryImage), Error> {
        let mut assembly = Assembly::new(Arc::clone(host), identity, Operation::Spawn);
        let operation = assembly.operation;
        let spawned = async {
            let own = assembly.adopt(stored).await?;
            Ok((assembly.restore(&own, options).await?, own.memory))
        };
        let (result, memory) = match whole(operation, spawned).await {
            Ok((live, memory)) => (Ok(live), Some(memory)),
            Err(cause) => (Err(cause), None),
        };
        let entered = Self::from_assembly(host, assembly, result).await?;
        Ok((entered, memory.expect("a machine that was restored has adopted its memory")))
    }

    pub(crate) async fn from_assembly(
        host: &HostInner,
        assembly: Assembly,
        result: Result<Live, Cause>,
    ) -> Result<Entered, Error> {
        let Built { mut undo, entry, data_step } = assembly.into_built();
        match (result, entry) {
            (Ok(live), Some(entry)) => {
                host.registry.stop_on_undo(&entry.id, &mut undo);
                Ok(Entered { machine: Self { live: Arc::new(live), undo, data_step }, entry })
            }
            (Ok(_), None) => unreachable!("every way to a machine begins with a claim"),
            (Err(cause), _) => Err(Error::with_cleanup(cause, undo_all(undo, UNDO_LIMIT).await)),
        }
    }

    /// From now on the machine's end leaves the sandbox's data directory: there is a snapshot in it.
    pub(crate) fn keep_data(&mut self) {
        if let Some(step) = self.data_step.take() {
            self.undo.forget(step);
        }
    }

    /// Writes down what a later process has to know to go on with the machine, for as long as it runs; `origin` is the
    /// generation that it was resumed from, 0 for another's snapshot.
    pub(crate) async fn keep_journal(&mut self, reaper: &Reaper, origin: Option<u64>) -> Result<(), Cause> {
        let live = Arc::clone(&self.live);
        building(&mut self.undo, reaper, move |undo| live.journal.keep(&live, origin, undo)).await
    }

    /// Lets go of the machine, and leaves it running.
    pub(crate) fn leave(self) {
        self.undo.commit();
    }

    /// Ends the guest and removes everything the machine stood on; returns what could not be removed.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the removal.
    pub(crate) async fn dismantle(self) -> Vec<UndoFailure> {
        undo_all(self.undo, UNDO_LIMIT).await
    }
}

impl Live {
    /// Waits until the agent answers and tells it what it cannot know by itself: the time, fresh randomness, the
    /// token, the environment.
    ///
    /// A guest of another sandbox's snapshot still has that one's token: `known` is what it wants to be shown.
    pub(crate) async fn greet_agent(&self, known: &AccessToken) -> Result<(), Cause> {
        let limit = self.identity.spec.ready_timeout();
        let mut agent = self.agent.clone().with_token(known.clone());
        let mut shows_own = false;
        let greet = async {
            loop {
                match agent.init(self.greeting()).await {
                    Err(e) if e.is_unreachable() => tokio::time::sleep(GREETING_PAUSE).await,
                    // The answer to an attempt before this one was lost: it has the new token already.
                    Err(AgentError::Unauthenticated { .. }) if !shows_own => {
                        (agent, shows_own) = (self.agent.clone(), true);
                    }
                    result => return Ok(result?),
                }
            }
        };
        let silent = || Cause::AgentSilent {
            id: self.identity.id.clone(),
            waited: limit,
            console: crate::console::tail(self.monitor.console_log()),
        };
        let greeted = async { tokio::time::timeout(limit, greet).await.unwrap_or_else(|_| Err(silent())) };
        self.while_alive(greeted).await?;
        if let Some(watch) = &self.restored {
            watch.agent_is_ready();
        }
        Ok(())
    }

    /// Made anew for each attempt: it holds the time.
    fn greeting(&self) -> Init {
        let Identity { id, spec, token, .. } = &self.identity;
        let name = spec.hostname.as_deref().unwrap_or(id.as_str());
        let init = Init::now().env(spec.env.clone()).hostname(name).token(token.clone());
        if self.restored.is_some() { init.resumed() } else { init }
    }

    /// What it is by now: as it was asked for, with what was changed since.
    pub(crate) fn current_spec(&self) -> SandboxSpec {
        SandboxSpec {
            network: self.network.policy(),
            lifetime: self.clock.lifetime(),
            ..self.identity.spec.clone()
        }
    }

    /// Begins something that keeps the sandbox from being idle.
    pub(crate) fn activity(&self) -> Activity {
        self.clock.activity()
    }

    /// Notes that the guest's end, which follows, is its timeout's doing, if it is.
    pub(crate) fn ends_by_timeout(&self, expired: Option<OnTimeout>) {
        if let Some(then) = expired {
            self.expired.get_or_init(|| then);
        }
    }

    /// What its timeout has made of it, if it has.
    pub(crate) fn expired(&self) -> Option<OnTimeout> {
        self.expired.get().copied()
    }

    /// `cause`, unless the sandbox's timeout explains it.
    pub(crate) fn expired_or(&self, cause: Cause) -> Cause {
        let expired = self.expired().map(|then| Cause::Expired { id: self.identity.id.clone(), then });
        expired.unwrap_or(cause)
    }

    /// Runs a call to the guest's agent.
    pub(crate) async fn ask<T>(&self, call: impl Future<Output = Result<T, AgentError>>) -> Result<T, Error> {
        let _activity = self.activity();
        Ok(self.while_alive(async { call.await.map_err(Cause::from) }).await?)
    }

    /// Runs a call that needs the guest alive; if the guest ends first, that is the error.
    pub(crate) async fn while_alive<T>(
        &self,
        call: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T, Cause> {
        let failed = tokio::select! {
            biased;
            result = call => match result {
                Ok(value) => return Ok(value),
                Err(cause) if cause.may_be_the_guests_end() => cause,
                Err(cause) => return Err(cause),
            },
            _ = self.monitor.exited() => return Err(self.end_of_guest().await),
        };
        // The connection breaks before the process is collected: look once more before blaming the connection.
        match tokio::time::timeout(END_GRACE, self.monitor.exited()).await {
            Ok(_) => Err(self.end_of_guest().await),
            Err(_) => Err(failed),
        }
    }

    /// Why the guest, which has ended or is about to, did so.
    async fn end_of_guest(&self) -> Cause {
        let report = self.monitor.exited().await;
        let id = self.identity.id.clone();
        if let Some(then) = self.expired() {
            return Cause::Expired { id, then };
        }
        let failure = match self.paging.clone() {
            Some(paging) => blocking(move || paging.failure()).await,
            None => None,
        };
        match failure {
            Some(why) => Cause::Paging { id, why },
            None => Cause::GuestEnded { id, status: report.status.to_string(), console: report.console_tail },
        }
    }

    /// What was paged in so far; nothing where the memory was not restored, or nobody can tell.
    pub(crate) async fn fault_stats(&self) -> Option<FaultStats> {
        let paging = self.paging.clone()?;
        blocking(move || paging.stats()).await
    }

    /// To be called when a command was answered.
    pub(crate) fn command_answered(&self) {
        if let Some(paging) = &self.paging {
            paging.answered();
        }
    }
}

//! The sandboxes of a host, and what is done with them.
//!
//! A running sandbox's handle lies in its *slot*. Whoever changes what it is (create, pause, resume, destroy) has the slot
//! for himself; whoever uses it as it is (snapshot, branch, tunnels) shares it. So what is asked of one sandbox at the same
//! time is done one after the other, and nobody finds it half done.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use connectrpc::ConnectError;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use wrenn_base::{SandboxId, TemplateName};
use wrenn_core::{Error, Events, Host, Ports, Sandbox, SandboxState, ShutdownFailure, ShutdownPolicy};

use super::refusal::{no_such_sandbox, not_running, refusal};
use super::request;
use crate::Reason;
use crate::types::{Paused, SandboxRecord, TakenSnapshot, TemplateRecord, Timeout};

/// See above.
pub(super) type Slot = Arc<RwLock<Option<Sandbox>>>;
/// A slot, for whoever changes what is in it.
pub(super) type Changing = OwnedRwLockWriteGuard<Option<Sandbox>>;

/// How long it may take to leave running what could not be paused.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// All of them.
pub(super) struct Sandboxes {
    pub(super) host: Host,
    slots: Mutex<HashMap<SandboxId, Slot>>,
    draining: AtomicBool,
}

/// Whether nothing of it is on the machine any more, though there is a handle.
fn is_over(sandbox: &Sandbox) -> bool {
    sandbox.state() == SandboxState::Paused
}

impl Sandboxes {
    /// Those of `host`, with the running ones that nobody has.
    pub(super) async fn take_over(host: Host) -> Result<Arc<Self>, Error> {
        let mut slots = HashMap::new();
        for found in host.list().await? {
            if found.state != SandboxState::Running {
                continue;
            }
            match host.running(&found.id).await {
                Ok(sandbox) => {
                    tracing::info!(sandbox = %found.id, "runs on, and is this host agent's now");
                    slots.insert(found.id, Arc::new(RwLock::new(Some(sandbox))));
                }
                Err(error) => tracing::info!(sandbox = %found.id, %error, "is somebody else's"),
            }
        }
        Ok(Arc::new(Self { host, slots: Mutex::new(slots), draining: AtomicBool::new(false) }))
    }

    pub(super) fn events(&self) -> Events {
        self.host.events()
    }

    pub(super) fn set_draining(&self, drain: bool) {
        self.draining.store(drain, Ordering::SeqCst);
        tracing::info!(drain, "takes new sandboxes, or not");
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Refuses what would be a new machine, where the host drains.
    pub(super) fn check_open(&self) -> Result<(), ConnectError> {
        match self.is_draining() {
            false => Ok(()),
            true => Err(Reason::Draining.error("this host drains, and takes no new sandboxes")),
        }
    }

    /// Each change is whole, so a panic elsewhere leaves them sound.
    fn slots(&self) -> MutexGuard<'_, HashMap<SandboxId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether none runs, and nothing is being done with any.
    pub(super) fn is_at_rest(&self) -> bool {
        self.slots().values().all(|slot| slot.try_read().is_ok_and(|held| held.as_ref().is_none_or(is_over)))
    }

    /// The slot of a sandbox, for oneself; one that is not there is made.
    pub(super) async fn change(&self, id: &SandboxId) -> Changing {
        let slot = Arc::clone(self.slots().entry(id.clone()).or_default());
        slot.write_owned().await
    }

    /// The slot of a sandbox that is running, shared.
    pub(super) async fn share(
        &self,
        id: &SandboxId,
    ) -> Result<OwnedRwLockReadGuard<Option<Sandbox>, Sandbox>, ConnectError> {
        let slot = self.slots().get(id).cloned();
        if let Some(slot) = slot {
            let held = slot.read_owned().await;
            if let Ok(held) = OwnedRwLockReadGuard::try_map(held, Option::as_ref) {
                return Ok(held);
            }
        }
        match self.host.get(id).await {
            Ok(_) => Err(not_running(id)),
            Err(error) => Err(refusal(&error)),
        }
    }

    /// Lets go of sandboxes that their timeouts have seen to, and forgets slots that nothing is in and that nobody uses.
    pub(super) fn tidy(&self) {
        self.slots().retain(|_, slot| {
            let Ok(mut held) = slot.try_write() else { return true };
            if held.as_ref().is_some_and(is_over) {
                *held = None;
            }
            held.is_some() || Arc::strong_count(slot) > 1
        });
    }

    pub(super) async fn pause(&self, id: &SandboxId) -> Result<Paused, ConnectError> {
        let mut held = self.change(id).await;
        let (paused, wrote) = match held.take() {
            Some(sandbox) => match sandbox.pause().await {
                Ok(paused) => (paused, true),
                Err(failed) => {
                    *held = failed.sandbox.map(|sandbox| *sandbox);
                    return Err(refusal(&failed.source));
                }
            },
            None => (self.host.paused(id).await.map_err(|error| refusal(&error))?, false),
        };
        let snapshot = paused.snapshot();
        drop((paused, held));
        Ok(Paused {
            sandbox: self.get(id).await?,
            generation: snapshot.generation,
            memory_written: if wrote { snapshot.memory_written } else { wrenn_base::Bytes(0) },
        })
    }

    pub(super) async fn resume(
        &self,
        id: &SandboxId,
        timeout: Option<Timeout>,
    ) -> Result<SandboxRecord, ConnectError> {
        let mut held = self.change(id).await;
        let state = held.as_ref().map(Sandbox::state);
        match state {
            Some(SandboxState::Running) => {}
            // Its timeout sees to it. To let go of the handle now would be to let go of the sandbox, should that fail.
            Some(SandboxState::Pausing | SandboxState::Stopping) => {
                return Err(Reason::Busy.error(format!("sandbox {id} is just being paused or removed")));
            }
            _ => {
                self.check_open()?;
                // What its timeout has paused is no more than a name.
                drop(held.take());
                let paused = self.host.paused(id).await.map_err(|error| refusal(&error))?;
                *held = Some(paused.resume().await.map_err(|failed| refusal(&failed.source))?);
            }
        }
        if let (Some(sandbox), Some(timeout)) = (&*held, timeout) {
            let (after, then) = request::timeout(timeout);
            sandbox.set_timeout(after, then);
        }
        self.get(id).await
    }

    pub(super) async fn destroy(&self, id: &SandboxId) -> Result<(), ConnectError> {
        let mut held = self.change(id).await;
        let destroyed = match held.take() {
            Some(sandbox) => sandbox.destroy().await,
            // Not opened, which one that is damaged could not be.
            None => self.host.remove_paused(id).await,
        };
        destroyed.map_err(|error| refusal(&error))
    }

    pub(super) async fn set_timeout(
        &self,
        id: &SandboxId,
        timeout: Timeout,
    ) -> Result<SandboxRecord, ConnectError> {
        let sandbox = self.share(id).await?;
        let (after, then) = request::timeout(timeout);
        sandbox.set_timeout(after, then);
        self.get(id).await
    }

    pub(super) async fn snapshot(
        &self,
        id: &SandboxId,
        name: &TemplateName,
    ) -> Result<TakenSnapshot, ConnectError> {
        let sandbox = self.share(id).await?;
        let taken = sandbox.snapshot(name.as_str()).await.map_err(|error| refusal(&error))?;
        let info = taken.template.info().await.map_err(|error| refusal(&error))?;
        Ok(TakenSnapshot {
            template: TemplateRecord::from(info),
            stopped: taken.stopped,
            memory_written: taken.memory_written,
        })
    }

    pub(super) async fn ports(&self, id: &SandboxId) -> Result<Ports, ConnectError> {
        Ok(self.share(id).await?.ports())
    }

    /// Lets go of a sandbox whose guest has ended by itself: it goes back to its latest snapshot, or is no more.
    pub(super) async fn let_go_if_ended(&self, id: &SandboxId) {
        // Nobody makes a slot for it.
        let Some(slot) = self.slots().get(id).cloned() else { return };
        let mut held = slot.write_owned().await;
        let ended = match &*held {
            Some(sandbox) => tokio::time::timeout(Duration::ZERO, sandbox.exited()).await.is_ok(),
            None => false,
        };
        if ended {
            tracing::info!(sandbox = %id, "its guest has ended");
            drop(held.take());
        }
    }

    /// The ids of all that have a slot.
    pub(super) fn held(&self) -> Vec<SandboxId> {
        self.slots().keys().cloned().collect()
    }

    /// Ends the running ones as `policy` says, and lets go of all.
    pub(super) async fn shut_down(&self, policy: ShutdownPolicy, limit: Duration) -> Vec<ShutdownFailure> {
        let failures = self.host.shutdown(policy, limit).await;
        if policy == ShutdownPolicy::PauseAll && !failures.is_empty() {
            // To let go of what could not be paused would be to end it: it is left for a later host agent.
            drop(self.host.shutdown(ShutdownPolicy::LeaveRunning, LEAVE_LIMIT).await);
        }
        self.slots().clear();
        failures
    }

    /// Whether there is no such sandbox, once whatever is being done with it is done: what is kept of one that is destroyed
    /// goes last.
    pub(super) async fn missing(&self, id: &SandboxId) -> Result<bool, ConnectError> {
        let slot = self.slots().get(id).cloned();
        if let Some(slot) = slot {
            drop(slot.read().await);
        }
        match self.get(id).await {
            Ok(_) => Ok(false),
            Err(error) if Reason::of(&error) == Reason::NoSuchSandbox => Ok(true),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn get(&self, id: &SandboxId) -> Result<SandboxRecord, ConnectError> {
        match self.host.get(id).await {
            Ok(info) => Ok(super::look::record(&self.host, info)),
            Err(error) if matches!(error.cause(), wrenn_core::Cause::NoSuchSandbox { .. }) => {
                Err(no_such_sandbox(id))
            }
            Err(error) => Err(refusal(&error)),
        }
    }
}

//! The sandboxes that have a machine, or are getting or losing one: one user at a time for each, in this process.
//!
//! A sandbox is entered by an undo step that is registered before everything else, and so is taken out after everything
//! else is gone: it cannot be resumed while the reaper still clears away its last machine. Its state changes here and
//! nowhere else, by the rules of [`lifecycle`](crate::lifecycle).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, OwnedMutexGuard};
use wrenn_agent_api::AccessToken;
use wrenn_base::{SandboxId, UndoList};

use crate::assembly::Identity;
use crate::error::Cause;
use crate::events::{EventKind, EventSource, Events};
use crate::instance::Instance;
use crate::lifecycle::{SandboxState, Step, next};
use crate::lifetime::Clock;
use crate::metrics;
use crate::spec::SandboxSpec;

/// A running sandbox's machine, for the one who works on it; nothing where somebody else has taken it.
pub(crate) type Held = OwnedMutexGuard<Option<Instance>>;

/// A sandbox that is not at rest.
pub(crate) struct Entry {
    pub(crate) id: SandboxId,
    pub(crate) spec: SandboxSpec,
    pub(crate) token: AccessToken,
    pub(crate) clock: Clock,
    /// Whoever has it locked decides what becomes of the machine: its user, or its timeout.
    instance: Arc<tokio::sync::Mutex<Option<Instance>>>,
    /// Its user has let go of it.
    abandoned: AtomicBool,
    /// It is to run on without a user, whatever becomes of this host.
    parked: AtomicBool,
}

impl Entry {
    /// Waits until nobody else works on the machine.
    pub(crate) async fn hold(&self) -> Held {
        Arc::clone(&self.instance).lock_owned().await
    }

    /// As [`hold`](Self::hold), but only where that is at once.
    pub(crate) fn try_hold(&self) -> Option<Held> {
        Arc::clone(&self.instance).try_lock_owned().ok()
    }

    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    pub(crate) fn park(&self) {
        self.parked.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.parked.load(Ordering::SeqCst)
    }

    /// Whether it was parked: who is told so, once, is its user from then on.
    pub(crate) fn unpark(&self) -> bool {
        self.parked.swap(false, Ordering::SeqCst)
    }

    /// Whether it was abandoned: who is told so, once, has to let go of the machine.
    pub(crate) fn take_up(&self) -> bool {
        self.abandoned.swap(false, Ordering::SeqCst)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("id", &self.id).finish_non_exhaustive()
    }
}

/// All of them. Clones are the same registry.
#[derive(Debug, Default, Clone)]
pub(crate) struct Registry(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    entries: Mutex<BTreeMap<SandboxId, (SandboxState, Arc<Entry>)>>,
    events: EventSource,
    /// Somebody has something new to expire, or to let go of.
    changed: Notify,
}

impl Registry {
    /// Enters a sandbox that was at rest, until `undo` has run.
    pub(crate) fn enter(
        &self,
        identity: &Identity,
        step: Step,
        undo: &mut UndoList,
    ) -> Result<Arc<Entry>, Cause> {
        let (id, spec) = (identity.id.clone(), identity.spec.clone());
        let entry = Arc::new(Entry {
            id: id.clone(),
            clock: Clock::new(spec.lifetime),
            spec,
            token: identity.token.clone(),
            instance: Arc::default(),
            abandoned: AtomicBool::new(false),
            parked: AtomicBool::new(false),
        });
        self.0.enter(&entry, step)?;
        self.on_undo("the claim on the sandbox", &id, Step::Released, undo);
        Ok(entry)
    }

    /// Tells of a running sandbox's end as soon as `undo` begins to run: to be called when all else is registered.
    pub(crate) fn stop_on_undo(&self, id: &SandboxId, undo: &mut UndoList) {
        self.on_undo("the sandbox's state", id, Step::Stop, undo);
    }

    fn on_undo(&self, what: &'static str, id: &SandboxId, step: Step, undo: &mut UndoList) {
        // Weak, as an undo list lies in an entry of this very registry.
        let (registry, id) = (Arc::downgrade(&self.0), id.clone());
        undo.push(what, move |_| {
            if let Some(shared) = Weak::upgrade(&registry) {
                // One that never came to be entered, or was taken out, is as it should be.
                let _ = shared.step(&id, step);
            }
            Ok(())
        });
    }

    /// Takes a sandbox a step on.
    pub(crate) fn step(&self, id: &SandboxId, step: Step) -> Result<(), Cause> {
        self.0.step(id, step)
    }

    /// The state of a sandbox that is not at rest.
    pub(crate) fn state(&self, id: &SandboxId) -> Option<SandboxState> {
        self.0.entries().get(id).map(|(state, _)| *state)
    }

    /// A sandbox that is not at rest.
    pub(crate) fn entry(&self, id: &SandboxId) -> Option<(SandboxState, Arc<Entry>)> {
        self.0.entries().get(id).cloned()
    }

    /// All that are not at rest, in the order of their ids.
    pub(crate) fn entries(&self) -> Vec<(SandboxState, Arc<Entry>)> {
        self.0.entries().values().cloned().collect()
    }

    pub(crate) fn events(&self) -> Events {
        self.0.events.listen()
    }

    pub(crate) fn tell(&self, id: &SandboxId, kind: EventKind) {
        self.0.events.tell(id, kind);
    }

    /// Has the watch over timeouts look anew.
    pub(crate) fn look_anew(&self) {
        self.0.changed.notify_one();
    }

    /// Waits for [`look_anew`](Self::look_anew).
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Lets go of every machine that nobody works on; those that are parked are left running. Returns whether there are
    /// such.
    pub(crate) fn abandon_all(&self) -> bool {
        let mut leaves = false;
        for (_, entry) in self.entries() {
            let instance = entry.try_hold().and_then(|mut held| held.take());
            match instance {
                Some(instance) if entry.is_parked() => {
                    instance.leave();
                    leaves = true;
                }
                instance => {
                    entry.abandon();
                    drop(instance);
                }
            }
        }
        leaves
    }
}

impl Shared {
    /// Every change is one insert, remove or assignment, so a panic elsewhere leaves them sound.
    fn entries(&self) -> MutexGuard<'_, BTreeMap<SandboxId, (SandboxState, Arc<Entry>)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, entry: &Arc<Entry>, step: Step) -> Result<(), Cause> {
        let mut entries = self.entries();
        let from = entries.get(&entry.id).map(|(state, _)| *state);
        let busy = |_| Cause::SandboxBusy { id: entry.id.clone() };
        let Some(to) = next(from, step).map_err(busy)? else { return Ok(()) };
        entries.insert(entry.id.clone(), (to, Arc::clone(entry)));
        metrics::moved(from, Some(to));
        self.events.tell(&entry.id, EventKind::State { from, to: Some(to) });
        Ok(())
    }

    fn step(&self, id: &SandboxId, step: Step) -> Result<(), Cause> {
        let mut entries = self.entries();
        let from = entries.get(id).map(|(state, _)| *state);
        let to = next(from, step).map_err(|_| Cause::SandboxBusy { id: id.clone() })?;
        match (to, entries.get_mut(id)) {
            (Some(to), Some((state, _))) => *state = to,
            _ => drop(entries.remove(id)),
        }
        metrics::moved(from, to);
        // Within the lock, so that events come in the order of the changes.
        self.events.tell(id, EventKind::State { from, to });
        Ok(())
    }
}

//! Who is working on what: each sandbox and each network slot has one user at a time in this process.
//!
//! A claim is released by an undo step that is registered before everything else, and so runs after everything
//! else is gone. A sandbox can therefore not be resumed while the reaper still clears away its last machine.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use wrenn_base::{SandboxId, UndoList};

use crate::error::Cause;

#[derive(Debug, Clone)]
struct Taken<T>(Arc<Mutex<BTreeSet<T>>>);

impl<T> Default for Taken<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Ord + Clone + Send + 'static> Taken<T> {
    fn with<R>(&self, change: impl FnOnce(&mut BTreeSet<T>) -> R) -> R {
        // Every change is one insert or remove, so a panic elsewhere leaves the set sound.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn release_on_undo(&self, what: &'static str, value: T, undo: &mut UndoList) {
        let taken = self.clone();
        undo.push(what, move |_| {
            taken.with(|set| set.remove(&value));
            Ok(())
        });
    }
}

/// The sandboxes that have a machine, or are getting or losing one.
#[derive(Debug, Default, Clone)]
pub(crate) struct ActiveSandboxes(Taken<SandboxId>);

impl ActiveSandboxes {
    /// Claims `id` until `undo` has run.
    pub(crate) fn claim(&self, id: &SandboxId, undo: &mut UndoList) -> Result<(), Cause> {
        if !self.0.with(|set| set.insert(id.clone())) {
            return Err(Cause::SandboxBusy { id: id.clone() });
        }
        self.0.release_on_undo("the claim on the sandbox", id.clone(), undo);
        Ok(())
    }
}

/// The indices of network slots in use.
#[derive(Debug, Clone)]
pub(crate) struct SlotIndices {
    taken: Taken<u16>,
    last: u16,
}

impl SlotIndices {
    /// Indices from 1 to `last`, all of them free.
    pub(crate) fn up_to(last: u16) -> Self {
        Self { taken: Taken::default(), last }
    }

    /// Claims the lowest free index above `tried` until `undo` has run.
    pub(crate) fn claim(&self, tried: u16, undo: &mut UndoList) -> Result<u16, Cause> {
        let free = |set: &mut BTreeSet<u16>| {
            let index = (tried.saturating_add(1)..=self.last).find(|index| !set.contains(index))?;
            set.insert(index);
            Some(index)
        };
        let index = self.taken.with(free).ok_or(Cause::NoFreeSlot { last: self.last })?;
        self.taken.release_on_undo("the network slot's index", index, undo);
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wrenn_base::Reaper;

    use super::*;

    #[test]
    fn a_claim_lasts_until_its_list_has_run() {
        let (reaper, active, id) = (Reaper::start(), ActiveSandboxes::default(), SandboxId::random());
        let mut undo = UndoList::new(&reaper);
        active.claim(&id, &mut undo).unwrap();
        let mut other = UndoList::new(&reaper);
        assert!(matches!(active.claim(&id, &mut other), Err(Cause::SandboxBusy { .. })));
        assert!(other.is_empty());
        active.claim(&SandboxId::random(), &mut other).unwrap();
        assert!(undo.run(Duration::from_secs(1)).is_empty());
        active.claim(&id, &mut other).unwrap();
    }

    #[test]
    fn slot_indices_are_the_lowest_free_ones() {
        let (reaper, slots) = (Reaper::start(), SlotIndices::up_to(3));
        let (mut undo, mut second) = (UndoList::new(&reaper), UndoList::new(&reaper));
        assert_eq!(slots.claim(0, &mut undo).unwrap(), 1);
        assert_eq!(slots.claim(0, &mut second).unwrap(), 2);
        assert_eq!(slots.claim(2, &mut undo).unwrap(), 3);
        assert!(matches!(slots.claim(0, &mut undo), Err(Cause::NoFreeSlot { last: 3 })));
        second.run(Duration::from_secs(1));
        assert_eq!(slots.claim(0, &mut undo).unwrap(), 2);
    }
}

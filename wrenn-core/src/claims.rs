//! Who is working on what: each sandbox and each network slot has one user at a time in this process.
//!
//! A claim is released by an undo step that is registered before everything else, and so runs after everything
//! else is gone. A sandbox can therefore not be resumed while the reaper still clears away its last machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wrenn_base::{SandboxId, TemplateName, UndoList};

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

/// The templates that sandboxes are being made from at this moment.
#[derive(Debug, Default, Clone)]
pub(crate) struct TemplatesInUse(Arc<Mutex<BTreeMap<TemplateName, usize>>>);

/// Keeps a template from being removed.
#[derive(Debug)]
pub(crate) struct TemplateUse {
    all: TemplatesInUse,
    name: TemplateName,
}

impl TemplatesInUse {
    pub(crate) fn begin_use(&self, name: &TemplateName) -> TemplateUse {
        *self.lock().entry(name.clone()).or_default() += 1;
        TemplateUse { all: self.clone(), name: name.clone() }
    }

    /// Runs `remove` while nobody can begin to use the template.
    pub(crate) fn unless_used(
        &self,
        name: &TemplateName,
        remove: impl FnOnce() -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let users = self.lock();
        if users.contains_key(name) {
            return Err(Cause::TemplateBusy { name: name.clone() });
        }
        remove()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TemplateName, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TemplateUse {
    fn drop(&mut self) {
        let mut users = self.all.lock();
        if let Some(count) = users.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.name);
            }
        }
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
    fn a_template_in_use_is_not_removed() {
        let (templates, name) = (TemplatesInUse::default(), "t".parse().unwrap());
        let (first, second) = (templates.begin_use(&name), templates.begin_use(&name));
        drop(first);
        let never = || panic!("it is in use");
        assert!(matches!(templates.unless_used(&name, never), Err(Cause::TemplateBusy { .. })));
        drop(second);
        let mut removed = false;
        let remove = || {
            removed = true;
            Ok(())
        };
        templates.unless_used(&name, remove).unwrap();
        assert!(removed);
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

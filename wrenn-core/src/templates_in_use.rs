//! Which templates are in use: one that sandboxes are being made of is not removed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wrenn_base::TemplateName;

use crate::error::Cause;

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
    use super::*;

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
}

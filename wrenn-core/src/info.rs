//! What there is: the sandboxes of a host, running and paused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wrenn_agent_api::AccessToken;
use wrenn_base::{ImageName, MiB, SandboxId, TemplateName};

use crate::error::{Cause, Error};
use crate::events::Events;
use crate::host::{Host, HostInner, stored_sandboxes};
use crate::lifecycle::SandboxState;
use crate::lifetime::{Lifetime, OnTimeout};
use crate::registry::Entry;
use crate::spec::SandboxSpec;
use crate::step::blocking;
use crate::stored::Record;

/// A sandbox as it is at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SandboxInfo {
    /// Its id.
    pub id: SandboxId,
    /// What it is doing.
    pub state: SandboxState,
    /// The image that it was made of.
    pub image: ImageName,
    /// The template that it, or the sandbox that it was branched from, was made from.
    pub template: Option<TemplateName>,
    /// When it was asked for; `None` for one from before that was noted.
    pub created: Option<SystemTime>,
    /// The guest's host name, if it is another than the id.
    pub hostname: Option<String>,
    /// Its virtual CPUs.
    pub vcpus: u8,
    /// Its memory.
    pub memory: MiB,
    /// What it was given to be found by.
    pub metadata: BTreeMap<String, String>,
    /// How long it may be idle; `None` is for ever.
    pub timeout: Option<Duration>,
    /// What becomes of it then.
    pub on_timeout: OnTimeout,
    /// In what time that is, if nothing happens; `None` where it has no timeout, is at work, or is paused.
    pub expires_in: Option<Duration>,
}

impl SandboxInfo {
    fn of_entry(state: SandboxState, entry: &Entry) -> Self {
        let expires = entry.clock.expires();
        let expires_in = expires.map(|at| at.saturating_duration_since(Instant::now()));
        Self { expires_in, ..Self::new(entry.id.clone(), state, &entry.spec, entry.clock.lifetime()) }
    }

    fn of_record(record: &Record) -> Self {
        Self::new(record.id.clone(), SandboxState::Paused, &record.spec, record.spec.lifetime)
    }

    fn new(id: SandboxId, state: SandboxState, spec: &SandboxSpec, lifetime: Lifetime) -> Self {
        Self {
            id,
            state,
            image: spec.image.clone(),
            template: spec.template.clone(),
            created: spec.created_ms.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms))),
            hostname: spec.hostname.clone(),
            vcpus: spec.vcpus,
            memory: spec.memory,
            metadata: spec.metadata.clone(),
            timeout: lifetime.timeout(),
            on_timeout: lifetime.on_timeout,
            expires_in: None,
        }
    }
}

impl Host {
    /// Listens to what happens to the sandboxes of this host from now on.
    ///
    /// ```no_run
    /// # async fn example(host: wrenn_core::Host) -> Result<(), wrenn_core::EventsLost> {
    /// let mut events = host.events();
    /// while let Some(event) = events.next().await? {
    ///     println!("{}: {:?}", event.sandbox, event.kind);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn events(&self) -> Events {
        self.inner.registry.events()
    }

    /// All sandboxes of this host, in the order of their ids: those with a machine, and those on disk.
    ///
    /// # Errors
    /// The data directory cannot be read. A sandbox whose snapshot is damaged is not listed, which is logged.
    pub async fn list(&self) -> Result<Vec<SandboxInfo>, Error> {
        let inner = Arc::clone(&self.inner);
        Ok(blocking(move || list(&inner)).await?)
    }

    /// A sandbox as it is at the moment.
    ///
    /// # Errors
    /// There is no such sandbox, or its snapshot is damaged.
    pub async fn get(&self, id: &SandboxId) -> Result<SandboxInfo, Error> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        Ok(blocking(move || get(&inner, id)).await?)
    }
}

impl Host {
    /// What the agent of a running sandbox wants to be shown, whoever has the sandbox; nothing where it does not run.
    pub fn access_token(&self, id: &SandboxId) -> Option<AccessToken> {
        let (state, entry) = self.inner.registry.entry(id)?;
        (state == SandboxState::Running).then(|| entry.token.clone())
    }
}

fn list(host: &HostInner) -> Result<Vec<SandboxInfo>, Cause> {
    // In this order: one that comes to rest between the two looks is in the second.
    let active = host.registry.entries();
    let mut all: BTreeMap<SandboxId, SandboxInfo> = active
        .iter()
        .map(|(state, entry)| (entry.id.clone(), SandboxInfo::of_entry(*state, entry)))
        .collect();
    for id in stored_sandboxes(&host.layout)? {
        if all.contains_key(&id) {
            continue;
        }
        match record(host, &id) {
            Ok(Some(record)) => drop(all.insert(id, SandboxInfo::of_record(&record))),
            // It was removed meanwhile.
            Ok(None) => {}
            Err(e) => tracing::warn!(sandbox = %id, error = %e, "a sandbox cannot be listed"),
        }
    }
    Ok(all.into_values().collect())
}

fn get(host: &HostInner, id: SandboxId) -> Result<SandboxInfo, Cause> {
    if let Some((state, entry)) = host.registry.entry(&id) {
        return Ok(SandboxInfo::of_entry(state, &entry));
    }
    match record(host, &id)? {
        Some(record) => Ok(SandboxInfo::of_record(&record)),
        None => Err(Cause::NoSuchSandbox { id }),
    }
}

/// What the latest snapshot of a sandbox remembers.
pub(crate) fn record(host: &HostInner, id: &SandboxId) -> Result<Option<Record>, Cause> {
    let snapshots = host.layout.sandbox(id).store.snapshots();
    let Some(generation) = snapshots.latest()? else { return Ok(None) };
    Ok(Some(snapshots.open::<Record>(generation)?.1))
}

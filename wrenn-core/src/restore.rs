//! How a guest's memory comes back, and how long that takes.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Where a restored guest's memory comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreMode {
    /// A fault server brings each page when the guest first touches it, whatever the snapshot's chain of layers. With
    /// `wrenn-monitor`, sandboxes that come from one snapshot share the pages that they only read.
    #[default]
    Uffd,
    /// The kernel maps the one file that holds all of the memory, which all sandboxes of the snapshot share. Only for a
    /// snapshot whose memory is in one layer: a full one, or one that was compacted.
    File,
}

/// What a resume pages in without being asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prefetch {
    /// The pages that an earlier resume of the snapshot needed until its first command was answered, in that order;
    /// nothing where that is not known yet.
    #[default]
    WorkingSet,
    /// Nothing.
    None,
    /// Everything.
    All,
}

/// How a sandbox is resumed, or made from a template.
///
/// ```
/// use wrenn_core::{Prefetch, RestoreOptions};
/// let cold = RestoreOptions { prefetch: Prefetch::None, ..RestoreOptions::default() };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Where memory comes from.
    pub mode: RestoreMode,
    /// What is paged in ahead. Without effect for [`RestoreMode::File`], where the kernel reads ahead.
    pub prefetch: Prefetch,
    /// How many bytes are paged in ahead at most; 256 MiB by default.
    pub prefetch_limit: u64,
    /// Whether the sandbox shares the pages that it only reads with others that come from the same snapshot, as it does
    /// by default. A guest that has taken over its monitor could disturb what it shares, though not unnoticed for
    /// long: for sandboxes of one snapshot that must not trust each other even then, set it to false.
    pub share_memory: bool,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            mode: RestoreMode::default(),
            prefetch: Prefetch::default(),
            prefetch_limit: 256 << 20,
            share_memory: true,
        }
    }
}

/// How far a resume had come when, counted from its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreTimings {
    /// The root disk and the network were there, and the monitor answered.
    pub monitor_ready: Duration,
    /// The monitor had loaded the snapshot, and the vCPUs ran.
    pub loaded: Duration,
    /// The guest showed that it runs: its kernel had accepted a connection.
    pub first_contact: Duration,
    /// The guest's agent had answered, which is when the call returned.
    pub agent_ready: Duration,
}

/// What is known of the timings while a machine is being restored.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    started: Instant,
    monitor_ready: OnceLock<Duration>,
    loaded: OnceLock<Duration>,
    pub(crate) contact: Contact,
    agent_ready: OnceLock<Duration>,
}

/// Notes when a guest accepted its first connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contact(Arc<OnceLock<Instant>>);

impl Contact {
    pub(crate) fn made(&self) {
        let _ = self.0.set(Instant::now());
    }
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
            monitor_ready: OnceLock::new(),
            loaded: OnceLock::new(),
            contact: Contact::default(),
            agent_ready: OnceLock::new(),
        }
    }

    pub(crate) fn monitor_is_ready(&self) {
        let _ = self.monitor_ready.set(self.started.elapsed());
    }

    pub(crate) fn is_loaded(&self) {
        let _ = self.loaded.set(self.started.elapsed());
    }

    pub(crate) fn agent_is_ready(&self) {
        let _ = self.agent_ready.set(self.started.elapsed());
    }

    /// All of them, once there are all.
    pub(crate) fn timings(&self) -> Option<RestoreTimings> {
        Some(RestoreTimings {
            monitor_ready: *self.monitor_ready.get()?,
            loaded: *self.loaded.get()?,
            first_contact: self.contact.0.get()?.saturating_duration_since(self.started),
            agent_ready: *self.agent_ready.get()?,
        })
    }
}

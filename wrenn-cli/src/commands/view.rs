//! What `--json` prints, and its words for people.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use wrenn_core::SandboxId;
use wrenn_host::{OnTimeout, SandboxRecord, SandboxState};

use crate::output::span;

/// A sandbox that was made or changed.
#[derive(Debug, Serialize)]
pub(crate) struct Made<'a> {
    pub(crate) id: &'a SandboxId,
}

pub(crate) fn id_alone(made: &Made<'_>) -> String {
    format!("{}\n", made.id)
}

/// A sandbox that was paused.
#[derive(Debug, Serialize)]
pub(crate) struct Paused<'a> {
    pub(crate) id: &'a SandboxId,
    pub(crate) generation: u64,
    pub(crate) memory_written_bytes: u64,
}

/// A sandbox as `ps` shows it. Its token is not among that.
#[derive(Debug, Serialize)]
pub(crate) struct View<'a> {
    pub(crate) id: &'a SandboxId,
    pub(crate) state: &'static str,
    pub(crate) image: &'a str,
    pub(crate) template: Option<String>,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) labels: &'a BTreeMap<String, String>,
    /// Seconds since 1970.
    created: Option<u64>,
    expires: Option<u64>,
    timeout_seconds: Option<u64>,
    on_timeout: Option<&'static str>,
}

impl<'a> View<'a> {
    pub(crate) fn of(sandbox: &'a SandboxRecord) -> Self {
        let timeout = sandbox.timeout.after;
        Self {
            id: &sandbox.id,
            state: state(sandbox.state),
            image: sandbox.image.as_str(),
            template: sandbox.template.as_ref().map(ToString::to_string),
            vcpus: sandbox.vcpus,
            memory_mib: sandbox.memory.0.into(),
            labels: &sandbox.metadata,
            created: sandbox.created.map(seconds),
            expires: sandbox.expires.map(seconds),
            timeout_seconds: timeout.map(|after| after.as_secs()),
            on_timeout: timeout.map(|_| match sandbox.timeout.then {
                OnTimeout::Pause => "pause",
                OnTimeout::Destroy => "destroy",
            }),
        }
    }

    /// Whether it has a label: `NAME=VALUE`, or `NAME` for any value.
    pub(crate) fn has(&self, label: &str) -> bool {
        match label.split_once('=') {
            Some((name, value)) => self.labels.get(name).is_some_and(|found| found == value),
            None => self.labels.contains_key(label),
        }
    }

    pub(crate) fn labels(&self) -> String {
        let labels: Vec<_> = self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        labels.join(",")
    }

    pub(crate) fn age(&self) -> String {
        self.created.map_or_else(String::new, |at| span(seconds(SystemTime::now()).saturating_sub(at)))
    }

    /// When it expires, and what then; with `idle`, what its time would be once nobody uses it.
    pub(crate) fn expires(&self) -> String {
        let how = self.on_timeout.unwrap_or_default();
        match (self.expires, self.timeout_seconds) {
            (Some(at), _) => format!("{how} in {}", span(at.saturating_sub(seconds(SystemTime::now())))),
            (None, Some(after)) => format!("{how} after {}", span(after)),
            (None, None) => "never".into(),
        }
    }
}

/// Its word for people and programs.
pub(crate) fn state(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Starting => "starting",
        SandboxState::Resuming => "resuming",
        SandboxState::Running => "running",
        SandboxState::Pausing => "pausing",
        SandboxState::Stopping => "stopping",
        SandboxState::Working => "working",
        SandboxState::Paused => "paused",
        _ => "unknown",
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

//! What a host tells of its own work, through the facade of the [`metrics`](https://docs.rs/metrics) crate.
//!
//! A program that installs a recorder (Prometheus, StatsD, …) gets all of it; without one it costs next to nothing. Every
//! operation and phase is a [`tracing`] span too.
//!
//! | name | kind | labels |
//! |---|---|---|
//! | [`OPERATION_SECONDS`] | histogram | `operation`: create, spawn, resume, pause, snapshot, destroy, take_over; `outcome`: ok, error |
//! | [`PHASE_SECONDS`] | histogram | `operation`; `phase`: disk, network, monitor, load, agent, capture, dismantle; `outcome` |
//! | [`SANDBOXES`] | gauge | `state`, as [`SandboxState`] has them, but for paused ones, which are files and no more |
//! | [`SLOTS_READY`] | gauge | |
//! | [`FAULTS`], [`FAULT_PAGES`], [`FAULT_BYTES`] | counter | counted when a sandbox's machine goes |
//! | [`MEMORY_WRITTEN_BYTES`] | counter | `kind`: full, diff |
//!
//! A call that is dropped half-way is not in the histograms.

use std::future::Future;
use std::time::Instant;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tracing::Instrument;
use wrenn_base::Bytes;
use wrenn_pager::FaultStats;

use crate::lifecycle::SandboxState;
use crate::stored::SnapshotKind;

/// How long whole operations take, in seconds.
pub const OPERATION_SECONDS: &str = "wrenn_operation_seconds";
/// How long each phase of an operation takes, in seconds; some phases run side by side.
pub const PHASE_SECONDS: &str = "wrenn_phase_seconds";
/// How many sandboxes have a machine, or are getting or losing one, by state.
pub const SANDBOXES: &str = "wrenn_sandboxes";
/// How many network slots are ready to be taken.
pub const SLOTS_READY: &str = "wrenn_slots_ready";
/// How many page faults were answered.
pub const FAULTS: &str = "wrenn_faults_total";
/// How many pages came to be there, by faults and ahead of them.
pub const FAULT_PAGES: &str = "wrenn_fault_pages_total";
/// How many bytes were copied for them.
pub const FAULT_BYTES: &str = "wrenn_fault_bytes_total";
/// How many bytes of guest memory snapshots have written.
pub const MEMORY_WRITTEN_BYTES: &str = "wrenn_memory_written_bytes_total";

/// Tells the recorder that is installed what each name means. Needed by no recorder, shown by some.
pub fn describe() {
    describe_histogram!(OPERATION_SECONDS, Unit::Seconds, "How long whole operations take");
    describe_histogram!(PHASE_SECONDS, Unit::Seconds, "How long the phases of operations take");
    describe_gauge!(SANDBOXES, "Sandboxes that have a machine, or are getting or losing one");
    describe_gauge!(SLOTS_READY, "Network slots that are ready to be taken");
    describe_counter!(FAULTS, "Page faults of restored guests that were answered");
    describe_counter!(FAULT_PAGES, "Pages of restored guests that came to be there");
    describe_counter!(FAULT_BYTES, Unit::Bytes, "Bytes that were copied for them");
    describe_counter!(MEMORY_WRITTEN_BYTES, Unit::Bytes, "Bytes of guest memory that snapshots have written");
}

/// What a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Spawn,
    Resume,
    Pause,
    Snapshot,
    Destroy,
    TakeOver,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Spawn => "spawn",
            Self::Resume => "resume",
            Self::Pause => "pause",
            Self::Snapshot => "snapshot",
            Self::Destroy => "destroy",
            Self::TakeOver => "take_over",
        }
    }
}

/// Measures a whole operation.
pub(crate) async fn whole<T, E>(
    operation: Operation,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let (begun, name) = (Instant::now(), operation.name());
    let result = work.instrument(tracing::info_span!("operation", operation = name)).await;
    histogram!(OPERATION_SECONDS, "operation" => name, "outcome" => outcome(&result)).record(begun.elapsed());
    result
}

/// Measures a part of an operation.
pub(crate) async fn phase<T, E>(
    operation: Operation,
    phase: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let (begun, name) = (Instant::now(), operation.name());
    let result = work.instrument(tracing::info_span!("phase", phase)).await;
    histogram!(PHASE_SECONDS, "operation" => name, "phase" => phase, "outcome" => outcome(&result))
        .record(begun.elapsed());
    result
}

fn outcome<T, E>(result: &Result<T, E>) -> &'static str {
    if result.is_ok() { "ok" } else { "error" }
}

/// A sandbox's state has changed; nothing stands for rest.
pub(crate) fn moved(from: Option<SandboxState>, to: Option<SandboxState>) {
    if let Some(from) = from {
        gauge!(SANDBOXES, "state" => from.name()).decrement(1.0);
    }
    if let Some(to) = to {
        gauge!(SANDBOXES, "state" => to.name()).increment(1.0);
    }
}

pub(crate) fn slots_ready(count: usize) {
    gauge!(SLOTS_READY).set(count as f64);
}

/// A machine has gone that had its memory by page faults.
pub(crate) fn faulted(stats: &FaultStats) {
    counter!(FAULTS).increment(stats.faults);
    counter!(FAULT_PAGES).increment(stats.pages);
    counter!(FAULT_BYTES).increment(stats.bytes_copied);
}

pub(crate) fn memory_written(kind: SnapshotKind, bytes: Bytes) {
    let kind = match kind {
        SnapshotKind::Full => "full",
        SnapshotKind::Diff => "diff",
    };
    counter!(MEMORY_WRITTEN_BYTES, "kind" => kind).increment(bytes.get());
}

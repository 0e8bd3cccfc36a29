//! Images, copy-on-write root disks, layered memory images and the snapshot store.

pub mod durable;
mod snapshot;

pub use snapshot::{Snapshot, SnapshotError, SnapshotStore, StagedSnapshot};

//! A complete snapshot on disk: what a pause, a snapshot of a running sandbox and a template have in common.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wrenn_agent_api::AccessToken;
use wrenn_base::{Bytes, SandboxId};
use wrenn_storage::{Digest, Image, ImageRegistry, MemoryError, MemoryImage, Snapshot, WorkingSet};

use crate::error::Cause;
use crate::layout::StoreDir;
use crate::spec::SandboxSpec;

/// The machine's state but for its memory.
pub(crate) const STATE: &str = "vmstate";
/// The memory image's manifest. It checks itself, and is replaced when its layers are compacted, so the snapshot's
/// index does not list it.
pub(crate) const MEMORY: &str = "memory.manifest";
/// The root disk's changes.
pub(crate) const DISK: &str = "disk.cow";
/// The pages that a resume needs first. It may be missing, and comes after the snapshot was committed.
pub(crate) const WORKING_SET: &str = "working-set";

/// How often a snapshot is opened anew that was compacted while it was being opened.
const OPEN_ATTEMPTS: usize = 3;

/// Whether a snapshot wrote the whole of the guest's memory or what changed since the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SnapshotKind {
    /// The whole memory, zero pages left out.
    Full,
    /// The pages written since the snapshot that the guest was resumed from.
    Diff,
}

/// What a snapshot remembers beside its files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The sandbox that was captured.
    pub(crate) id: SandboxId,
    pub(crate) spec: SandboxSpec,
    /// The root image: the disk's changes fit no other.
    pub(crate) image: Digest,
    /// What the guest's agent wants to be shown.
    pub(crate) token: AccessToken,
    pub(crate) kind: SnapshotKind,
    pub(crate) memory_written: Bytes,
}

/// A committed snapshot with its memory image.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) snapshot: Snapshot,
    pub(crate) record: Record,
    pub(crate) memory: MemoryImage,
}

impl Stored {
    /// Reads the latest snapshot in `store`, checking everything that can be checked without reading all of it;
    /// nothing where there is none.
    pub(crate) fn open(store: &StoreDir) -> Result<Option<Self>, Cause> {
        let snapshots = store.snapshots();
        let Some(generation) = snapshots.latest()? else { return Ok(None) };
        let (snapshot, record) = snapshots.open::<Record>(generation)?;
        let memory = open_memory(store, &snapshot)?;
        Ok(Some(Self { snapshot, record, memory }))
    }

    /// Reads to their end the files that the machine is restored from, and compares them with their checksums.
    pub(crate) fn verify(&self) -> Result<(), Cause> {
        Ok([STATE, DISK].into_iter().try_for_each(|name| self.snapshot.verify(name))?)
    }

    /// The image that the disk's changes fit.
    pub(crate) fn image(&self, images: &ImageRegistry) -> Result<Image, Cause> {
        let Record { id, spec, image: expected, .. } = &self.record;
        let image = images.get(&spec.image)?;
        if image.digest != *expected {
            let (id, expected) = (id.clone(), expected.clone());
            return Err(Cause::OtherImage { id, image: image.name, expected, found: image.digest });
        }
        Ok(image)
    }

    pub(crate) fn file(&self, name: &'static str) -> PathBuf {
        self.snapshot.file(name)
    }

    /// The pages that a resume needs first, if that is known. A file that cannot be used is only worth a warning.
    pub(crate) fn working_set(&self) -> Option<WorkingSet> {
        let found = WorkingSet::load(&self.file(WORKING_SET)).unwrap_or_else(|e| {
            tracing::warn!(sandbox = %self.record.id, error = %e, "the working set cannot be used");
            None
        });
        found.filter(|set| set.guest_size() == self.memory.guest_size())
    }
}

/// The memory image of `snapshot` as it is now: compaction may replace manifest and layers at any time, but for the
/// layers of the image that is open.
pub(crate) fn open_memory(store: &StoreDir, snapshot: &Snapshot) -> Result<MemoryImage, Cause> {
    let layers = store.open_layers()?;
    let mut attempt = 1;
    loop {
        match MemoryImage::open(&snapshot.file(MEMORY), &layers) {
            Err(e) if is_missing(&e) && attempt < OPEN_ATTEMPTS => attempt += 1,
            result => return Ok(result?),
        }
    }
}

fn is_missing(error: &MemoryError) -> bool {
    matches!(error, MemoryError::MissingLayer { .. })
}

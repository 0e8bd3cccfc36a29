//! A complete snapshot on disk: what a pause, a snapshot of a running sandbox and a template have in common.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wrenn_agent_api::AccessToken;
use wrenn_base::{Bytes, SandboxId};
use wrenn_storage::{Digest, Image, ImageRegistry, MemoryImage, Snapshot};

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
    /// Where the memory image's manifest is.
    pub(crate) manifest: PathBuf,
}

impl Stored {
    /// Reads the latest snapshot in `store`, checking everything that can be checked without reading all of it;
    /// nothing where there is none.
    pub(crate) fn open(store: &StoreDir) -> Result<Option<Self>, Cause> {
        let snapshots = store.snapshots();
        let Some(generation) = snapshots.latest()? else { return Ok(None) };
        let (snapshot, record) = snapshots.open::<Record>(generation)?;
        let manifest = snapshot.file(MEMORY);
        let memory = MemoryImage::open(&manifest, &store.open_layers()?)?;
        Ok(Some(Self { snapshot, record, memory, manifest }))
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
}

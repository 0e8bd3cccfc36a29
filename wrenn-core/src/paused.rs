//! A sandbox on disk.

use std::fmt;
use std::sync::Arc;

use wrenn_base::{Bytes, SandboxId, UndoList};
use wrenn_storage::{Digest, MemoryImage, Snapshot};

use crate::assembly::Identity;
use crate::capture::{self, Captured, DISK, MEMORY, Record, STATE, SnapshotKind};
use crate::error::{Cause, Error};
use crate::host::HostInner;
use crate::layout::SandboxDirs;
use crate::machine::{Machine, RestorePoint};
use crate::sandbox::{Origin, Sandbox};
use crate::step::blocking;

/// A sandbox that is paused: one complete snapshot on disk, and no process, device or network.
///
/// Dropping it leaves the snapshot where it is, to be had again with [`Host::paused`](crate::Host::paused).
pub struct PausedSandbox {
    host: Arc<HostInner>,
    identity: Identity,
    snapshot: Snapshot,
    image: Digest,
    memory: MemoryImage,
    info: SnapshotInfo,
}

/// What a pause wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Whether it was the whole memory or the difference to the snapshot before.
    pub kind: SnapshotKind,
    /// How many bytes of memory were written to disk.
    pub memory_written: Bytes,
    /// How many snapshots this sandbox has had, this one included.
    pub generation: u64,
}

/// A resume that failed: why, and the paused sandbox, as it was.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox could not be resumed")]
#[non_exhaustive]
pub struct ResumeError {
    /// Why.
    pub source: Error,
    /// The paused sandbox; resuming can be tried again.
    pub paused: Box<PausedSandbox>,
}

impl PausedSandbox {
    pub(crate) fn captured(host: Arc<HostInner>, identity: Identity, captured: Captured) -> Self {
        let info = SnapshotInfo::new(&captured.record, &captured.snapshot);
        let Captured { snapshot, memory, record } = captured;
        Self { host, identity, snapshot, image: record.image, memory, info }
    }

    pub(crate) async fn open(host: Arc<HostInner>, id: SandboxId) -> Result<Self, Error> {
        let dirs = host.layout.sandbox(&id);
        let (snapshot, record, memory) = {
            let dirs = dirs.clone();
            let id = id.clone();
            blocking(move || read(&dirs, id)).await?
        };
        let info = SnapshotInfo::new(&record, &snapshot);
        let identity = Identity { id, dirs, spec: record.spec, token: record.token };
        Ok(Self { host, identity, snapshot, image: record.image, memory, info })
    }

    /// The sandbox's id.
    pub fn id(&self) -> &SandboxId {
        &self.identity.id
    }

    /// What the latest pause wrote.
    pub fn snapshot(&self) -> SnapshotInfo {
        self.info
    }

    /// Resumes the sandbox: its memory is paged in as the guest touches it, and the call returns once the guest's
    /// agent has answered and knows the time, fresh randomness and its token.
    ///
    /// # Errors
    /// [`ResumeError`] has the paused sandbox, as it was; what had been made is undone.
    ///
    /// # Cancel safety
    /// A dropped future leaves the snapshot whole. What was made is removed in the background; until then the
    /// sandbox is [`Busy`](crate::ErrorKind::Busy).
    pub async fn resume(self) -> Result<Sandbox, ResumeError> {
        match self.restore().await {
            Ok(machine) => {
                let origin = Origin { generation: self.snapshot.generation(), memory: self.memory };
                Ok(Sandbox::resumed(self.host, machine, origin))
            }
            Err(source) => Err(ResumeError { source, paused: Box::new(self) }),
        }
    }

    async fn restore(&self) -> Result<Machine, Error> {
        let snapshot = self.snapshot.clone();
        blocking(move || [STATE, DISK].into_iter().try_for_each(|name| snapshot.verify(name)))
            .await
            .map_err(Cause::from)?;
        let point = RestorePoint {
            state: self.snapshot.file(STATE),
            disk: self.snapshot.file(DISK),
            image: self.image.clone(),
            memory: self.memory.clone(),
        };
        Machine::restore(&self.host, self.identity.clone(), point).await
    }

    /// Removes the sandbox from disk.
    ///
    /// # Errors
    /// It is being resumed or taken down elsewhere ([`Busy`](crate::ErrorKind::Busy)), or a file could not be removed.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the removal.
    pub async fn destroy(self) -> Result<(), Error> {
        let mut claim = UndoList::new(&self.host.reaper);
        self.host.active.claim(&self.identity.id, &mut claim)?;
        let dirs = self.identity.dirs;
        Ok(blocking(move || {
            let _claim = claim;
            dirs.remove_data()
        })
        .await?)
    }

    /// Removes what the snapshot has replaced. A failure costs disk space only, so it is reported, not returned.
    pub(crate) async fn prune(&self) {
        let (dirs, snapshot, memory) =
            (self.identity.dirs.clone(), self.snapshot.clone(), self.memory.clone());
        if let Err(e) = blocking(move || capture::prune(&dirs, &snapshot, &memory)).await {
            tracing::warn!(sandbox = %self.id(), error = %e, "could not remove an outdated snapshot");
        }
    }
}

impl SnapshotInfo {
    fn new(record: &Record, snapshot: &Snapshot) -> Self {
        Self { kind: record.kind, memory_written: record.memory_written, generation: snapshot.generation() }
    }
}

/// Reads the latest snapshot of a sandbox, checking everything that can be checked without reading all of it.
fn read(dirs: &SandboxDirs, id: SandboxId) -> Result<(Snapshot, Record, MemoryImage), Cause> {
    let store = dirs.snapshots();
    let Some(generation) = store.latest()? else { return Err(Cause::NoSuchSandbox { id }) };
    let (snapshot, record) = store.open::<Record>(generation)?;
    if record.id != id {
        let why = format!("it belongs to sandbox {}", record.id);
        return Err(Cause::BadSnapshot { path: snapshot.file(STATE), why });
    }
    let memory = MemoryImage::open(&snapshot.file(MEMORY), &dirs.open_layers()?)?;
    Ok((snapshot, record, memory))
}

impl fmt::Debug for PausedSandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PausedSandbox")
            .field("id", self.id())
            .field("snapshot", &self.info)
            .finish_non_exhaustive()
    }
}

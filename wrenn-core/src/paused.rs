//! A sandbox on disk.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use wrenn_agent_api::AccessToken;
use wrenn_base::{Bytes, ImageName, SandboxId, TemplateName, UndoList};
use wrenn_storage::{Collision, DiskSpec, Image, ImageDetails, ImageError, ImageUsage};

use crate::assembly::Identity;
use crate::capture;
use crate::error::{Cause, Error};
use crate::host::HostInner;
use crate::info;
use crate::instance::Origin;
use crate::layout::SandboxDirs;
use crate::lifecycle::Step;
use crate::machine::{Entered, Machine, UNDO_LIMIT};
use crate::restore::RestoreOptions;
use crate::sandbox::Sandbox;
use crate::spec::SandboxSpec;
use crate::step::{blocking, undo_all};
use crate::stored::{DISK, Record, STATE, SnapshotKind, Stored};
use crate::template::{self, Template};

/// A sandbox that is paused: one complete snapshot on disk, and no process, device or network.
///
/// Dropping it leaves the snapshot where it is, to be had again with [`Host::paused`](crate::Host::paused).
pub struct PausedSandbox {
    host: Arc<HostInner>,
    identity: Identity,
    stored: Stored,
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
    /// The sandbox that `stored`, a snapshot of its own, is of.
    pub(crate) fn of(host: Arc<HostInner>, stored: Stored) -> Self {
        let Record { id, spec, token, .. } = stored.record.clone();
        let identity = Identity { dirs: host.layout.sandbox(&id), id, spec, token };
        let info = SnapshotInfo::new(&stored);
        Self { host, identity, stored, info }
    }

    pub(crate) async fn open(host: Arc<HostInner>, id: SandboxId) -> Result<Self, Error> {
        let dirs = host.layout.sandbox(&id);
        let stored = blocking(move || open(&dirs, id)).await?;
        Ok(Self::of(host, stored))
    }

    /// The sandbox's id.
    pub fn id(&self) -> &SandboxId {
        &self.identity.id
    }

    /// What the latest pause wrote.
    pub fn snapshot(&self) -> SnapshotInfo {
        self.info
    }

    /// What the snapshot takes: its memory, layer by layer.
    ///
    /// # Errors
    /// A layer cannot be looked at.
    pub async fn memory_usage(&self) -> Result<ImageUsage, Error> {
        let (dirs, id) = (self.identity.dirs.clone(), self.identity.id.clone());
        let usage = blocking(move || open(&dirs, id).and_then(|stored| Ok(stored.memory.usage()?))).await;
        Ok(usage?)
    }

    /// Resumes the sandbox with the default [`RestoreOptions`]: its memory is paged in as the guest touches it, ahead
    /// where an earlier resume tells what will be, and the call returns once the guest's agent has answered and knows
    /// the time, fresh randomness and its token.
    ///
    /// # Errors
    /// [`ResumeError`] has the paused sandbox, as it was; what had been made is undone.
    ///
    /// # Cancel safety
    /// A dropped future leaves the snapshot whole. What was made is removed in the background; until then the
    /// sandbox is [`Busy`](crate::ErrorKind::Busy).
    pub async fn resume(self) -> Result<Sandbox, ResumeError> {
        self.resume_with(RestoreOptions::default()).await
    }

    /// Resumes the sandbox as `options` say.
    ///
    /// # Errors
    /// As [`resume`](Self::resume); and [`RestoreMode::File`](crate::RestoreMode::File) is refused for a snapshot of
    /// several layers ([`Cause::NotOneLayer`]).
    ///
    /// # Cancel safety
    /// As for [`resume`](Self::resume).
    pub async fn resume_with(self, options: RestoreOptions) -> Result<Sandbox, ResumeError> {
        let sandbox = self.restore(options).await;
        sandbox.map_err(|source| ResumeError { source, paused: Box::new(self) })
    }

    async fn restore(&self, options: RestoreOptions) -> Result<Sandbox, Error> {
        // Its layers may have been merged since this handle was made.
        let (dirs, id) = (self.identity.dirs.clone(), self.identity.id.clone());
        let stored = blocking(move || open(&dirs, id)).await?;
        let Entered { machine, entry } =
            Machine::restore(&self.host, self.identity.clone(), &stored, options).await?;
        let origin = Origin { generation: stored.snapshot.generation(), memory: stored.memory };
        Sandbox::started(Arc::clone(&self.host), machine, entry, Some(origin)).await
    }

    /// Makes a template of the sandbox, which stays as it is. Nothing is copied: both hold on to the same files.
    ///
    /// # Errors
    /// `name` is no valid name, or taken ([`Cause::TemplateExists`]); the sandbox is being resumed elsewhere; or the
    /// disk is full: no template is left then.
    ///
    /// # Cancel safety
    /// A dropped future leaves the whole template or none.
    pub async fn to_template(&self, name: &str) -> Result<Template, Error> {
        let name: TemplateName = name.parse()?;
        let claim = self.claim()?;
        self.host.compactions.stop(&self.identity.id).await;
        let (host, dirs, id) = (Arc::clone(&self.host), self.identity.dirs.clone(), self.identity.id.clone());
        let new = name.clone();
        let made = blocking(move || {
            let stored = open(&dirs, id)?;
            template::of_stored(&host, &stored, &new)?;
            host.compactions.consider(&dirs.store, &stored);
            Ok::<_, Cause>(claim)
        })
        .await?;
        undo_all(made, UNDO_LIMIT).await;
        Ok(Template::new(Arc::clone(&self.host), name))
    }

    /// Makes an image of the sandbox's disk, for sandboxes that boot from what was installed there; it stays as it is.
    ///
    /// Only what the guest had written to its disk is in it: have it `sync` before the pause.
    ///
    /// ```no_run
    /// # async fn example(sandbox: wrenn_core::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// sandbox.exec("apt-get install -y git && sync").await?;
    /// let image = sandbox.pause().await?.to_image("with-git").await?;
    /// println!("{}: {} on disk", image.name, image.allocated()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `name` is no valid name, or taken ([`Busy`](crate::ErrorKind::Busy)); the sandbox is being resumed elsewhere; its
    /// own image is gone or another by now; or the disk is full: no image is left then.
    ///
    /// # Cancel safety
    /// A dropped future leaves the whole image or none.
    pub async fn to_image(&self, name: &str) -> Result<Image, Error> {
        let name: ImageName = name.parse()?;
        let claim = self.claim()?;
        let (host, dirs, id) = (Arc::clone(&self.host), self.identity.dirs.clone(), self.identity.id.clone());
        let waiting = Arc::new(());
        let still_waiting = Arc::downgrade(&waiting);
        let (image, claim) = blocking(move || {
            let wanted = || still_waiting.strong_count() > 0;
            Ok::<_, Cause>((make_image(&host, &open(&dirs, id)?, &name, wanted)?, claim))
        })
        .await?;
        drop(waiting);
        undo_all(claim, UNDO_LIMIT).await;
        Ok(image)
    }

    /// Keeps everybody else from the sandbox until what is returned has run.
    fn claim(&self) -> Result<UndoList, Cause> {
        claim(&self.host, &self.identity)
    }

    /// Begins merging the layers of the sandbox's memory in the background, if there are more than the host's
    /// [`CompactionPolicy`](crate::CompactionPolicy) allows: what every pause does by itself.
    pub fn compact(&self) {
        self.host.compactions.consider(&self.identity.dirs.store, &self.stored);
    }

    /// Waits until the layers of the sandbox's memory have been merged, if that is under way.
    pub async fn compacted(&self) {
        self.host.compactions.finish(&self.identity.id).await;
    }

    /// Removes the sandbox from disk.
    ///
    /// # Errors
    /// It is being resumed or taken down elsewhere ([`Busy`](crate::ErrorKind::Busy)), or a file could not be removed.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the removal.
    pub async fn destroy(self) -> Result<(), Error> {
        remove(&self.host, self.identity).await
    }

    /// Removes what the snapshot has replaced, and sees to chains that have become long. A failure costs disk space
    /// only, so it is reported, not returned.
    pub(crate) async fn tidy(&self) {
        let (store, stored) = (self.identity.dirs.store.clone(), self.stored.clone());
        if let Err(e) = blocking(move || capture::prune(&store, &stored)).await {
            tracing::warn!(sandbox = %self.id(), error = %e, "could not remove an outdated snapshot");
        }
        self.host.compactions.consider(&self.identity.dirs.store, &self.stored);
    }
}

impl SnapshotInfo {
    fn new(stored: &Stored) -> Self {
        let Stored { snapshot, record, .. } = stored;
        Self { kind: record.kind, memory_written: record.memory_written, generation: snapshot.generation() }
    }
}

/// Makes an image of a snapshot's disk, for as long as it is `wanted`.
fn make_image(
    host: &HostInner,
    stored: &Stored,
    name: &ImageName,
    wanted: impl Fn() -> bool,
) -> Result<Image, Cause> {
    let Record { id, spec, .. } = &stored.record;
    if host.images.get(name).is_ok() {
        return Err(ImageError::AlreadyRegistered { name: name.clone() }.into());
    }
    let base = stored.image(&host.images)?;
    let staged = host.images.stage(name)?;
    let disk = DiskSpec { sandbox: id, image: &base.rootfs, cow: &stored.file(DISK), size: spec.disk };
    host.disks.flatten(&disk, &staged.rootfs(), |_| match wanted() {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    })?;
    let details = ImageDetails { source: format!("the disk of sandbox {id}"), ..base.details };
    Ok(host.images.register(staged, details, Collision::Refuse, &mut |_| {})?)
}

fn claim(host: &HostInner, identity: &Identity) -> Result<UndoList, Cause> {
    let mut claim = UndoList::new(&host.reaper);
    host.registry.enter(identity, Step::Work, &mut claim)?;
    Ok(claim)
}

/// Removes a sandbox from disk that is at rest.
async fn remove(host: &HostInner, identity: Identity) -> Result<(), Error> {
    let claim = claim(host, &identity)?;
    host.compactions.stop(&identity.id).await;
    let store = identity.dirs.store;
    Ok(blocking(move || {
        let _claim = claim;
        store.remove()
    })
    .await?)
}

/// Removes a sandbox from disk that is at rest, without opening it.
pub(crate) async fn remove_unopened(host: Arc<HostInner>, id: SandboxId) -> Result<(), Error> {
    let (inner, dirs) = (Arc::clone(&host), host.layout.sandbox(&id));
    let identity = blocking(move || {
        // Without a snapshot it is none, as everywhere else.
        if dirs.store.snapshots().latest()?.is_none() {
            return Err(Cause::NoSuchSandbox { id });
        }
        // While it is being removed it is listed as what it was, or, where that cannot be read, as nothing much.
        let spec = info::record(&inner, &id).ok().flatten().map(|record| record.spec);
        Ok(Identity {
            spec: spec.unwrap_or_else(SandboxSpec::unreadable),
            token: AccessToken::random(),
            id,
            dirs,
        })
    })
    .await?;
    remove(&host, identity).await
}

/// Opens the latest snapshot of a sandbox.
fn open(dirs: &SandboxDirs, id: SandboxId) -> Result<Stored, Cause> {
    let Some(stored) = Stored::open(&dirs.store)? else { return Err(Cause::NoSuchSandbox { id }) };
    if stored.record.id != id {
        let why = format!("it belongs to sandbox {}", stored.record.id);
        return Err(Cause::BadSnapshot { path: stored.file(STATE), why });
    }
    Ok(stored)
}

impl fmt::Debug for PausedSandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PausedSandbox")
            .field("id", self.id())
            .field("snapshot", &self.info)
            .finish_non_exhaustive()
    }
}

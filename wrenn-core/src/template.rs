//! Templates: named snapshots that any number of sandboxes are made from.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use wrenn_agent_api::AccessToken;
use wrenn_base::{Bytes, ImageName, MiB, SandboxId, TemplateName};
use wrenn_net::{Bandwidth, EgressPolicy};
use wrenn_storage::durable::{self, StagedDir};

use crate::assembly::Identity;
use crate::changes::Changes;
use crate::error::{Cause, Error};
use crate::host::HostInner;
use crate::instance::Origin;
use crate::layout::StoreDir;
use crate::lifetime::{Lifetime, OnTimeout};
use crate::machine::{Entered, Machine};
use crate::restore::RestoreOptions;
use crate::sandbox::Sandbox;
use crate::step::{blocking, checkpoint};
use crate::stored::{DISK, MEMORY, STATE, Stored, WORKING_SET};

/// A template: a snapshot with a name, of which sandboxes are made that go on where it was taken.
///
/// The handle is only the name, and keeps its host open: whether there is such a template is seen when it is used. A
/// template keeps its own hold on all it consists of, and so does every sandbox made from it: removing either never
/// breaks the other.
#[derive(Clone)]
pub struct Template {
    host: Arc<HostInner>,
    name: TemplateName,
}

/// What a template holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TemplateInfo {
    /// Its name.
    pub name: TemplateName,
    /// The image of its root disk.
    pub image: ImageName,
    /// The number of vCPUs of every sandbox made from it.
    pub vcpus: u8,
    /// The memory of every sandbox made from it.
    pub memory: MiB,
    /// Disk space that its memory and its disk's changes take; what it shares with sandboxes is counted for each.
    pub allocated: Bytes,
}

/// A template that was just made of a running sandbox.
#[derive(Debug)]
#[non_exhaustive]
pub struct TakenSnapshot {
    /// The template.
    pub template: Template,
    /// How long the sandbox stood still.
    pub stopped: Duration,
    /// How many bytes of memory were written to disk.
    pub memory_written: Bytes,
}

/// Sandboxes that are to be made from a template; made by [`Template::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `spawn` is awaited"]
pub struct TemplateBuilder {
    template: Template,
    changes: Changes,
}

impl Template {
    pub(crate) fn new(host: Arc<HostInner>, name: TemplateName) -> Self {
        Self { host, name }
    }

    /// Its name.
    pub fn name(&self) -> &TemplateName {
        &self.name
    }

    /// Makes `count` running sandboxes that go on where the template was taken.
    ///
    /// Each has an id, a network slot, a root disk, a token and randomness of its own, and the right time. Short for
    /// `builder().spawn(count)`.
    ///
    /// # Errors
    /// As [`TemplateBuilder::spawn`].
    pub async fn spawn(&self, count: usize) -> Result<Vec<Sandbox>, Error> {
        self.builder().spawn(count).await
    }

    /// Begins sandboxes of this template that differ from it.
    pub fn builder(&self) -> TemplateBuilder {
        TemplateBuilder { template: self.clone(), changes: Changes::default() }
    }

    /// What it holds.
    ///
    /// # Errors
    /// There is no such template ([`NotFound`](crate::ErrorKind::NotFound)), or it is damaged.
    pub async fn info(&self) -> Result<TemplateInfo, Error> {
        let (host, name) = (Arc::clone(&self.host), self.name.clone());
        Ok(blocking(move || info(&host, name)).await?)
    }

    /// Removes the template. Sandboxes that were made from it, and their snapshots, stay whole.
    ///
    /// # Errors
    /// There is no such template; sandboxes are being made from it at this moment
    /// ([`Busy`](crate::ErrorKind::Busy)), and it stays; or a file could not be removed, and the template is gone by
    /// then.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the removal.
    pub async fn delete(&self) -> Result<(), Error> {
        let (host, name) = (Arc::clone(&self.host), self.name.clone());
        Ok(blocking(move || delete(&host, &name)).await?)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Template").field(&self.name.as_str()).finish()
    }
}

impl TemplateBuilder {
    /// The number of vCPUs, which the template decides: another number is an error of [`spawn`](Self::spawn).
    pub fn vcpus(mut self, count: u8) -> Self {
        self.changes.vcpus = Some(count);
        self
    }

    /// The guest's memory, which the template decides: another size is an error of [`spawn`](Self::spawn).
    pub fn memory(mut self, size: MiB) -> Self {
        self.changes.memory = Some(size);
        self
    }

    /// Sets a variable in the environment of every command; the template's others stay.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.changes.env.push((name.into(), value.into()));
        self
    }

    /// The guests' host name; as it was in the template where not set, which is where it was not set either the
    /// sandbox's id.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.changes.hostname = Some(name.into());
        self
    }

    /// How long a sandbox may take until its agent answers; the template's own limit where not set.
    pub fn ready_timeout(mut self, limit: Duration) -> Self {
        self.changes.ready_timeout = Some(limit);
        self
    }

    /// Gives each something to be found by; the template's own stays beside it.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.changes.metadata.insert(key.into(), value.into());
        self
    }

    /// How long each may be idle, and what becomes of it then; as it was in the template where not set.
    pub fn timeout(mut self, timeout: Option<Duration>, then: OnTimeout) -> Self {
        self.changes.lifetime = Some(Lifetime::new(timeout, then));
        self
    }

    /// What the guests may reach; what the template's could, where not set.
    pub fn egress(mut self, policy: EgressPolicy) -> Self {
        self.changes.egress = Some(policy);
        self
    }

    /// Bounds what passes between each guest and the network; the template's own bound where not set.
    pub fn bandwidth(mut self, bound: Bandwidth) -> Self {
        self.changes.bandwidth = Some(bound);
        self
    }

    /// How memory comes back.
    pub fn restore(mut self, options: RestoreOptions) -> Self {
        self.changes.restore = options;
        self
    }

    /// Makes `count` running sandboxes, several at a time, and returns once the agents of all answer.
    ///
    /// # Errors
    /// There is no such template, or it is damaged, or its image is gone; vCPUs or memory are not the template's
    /// ([`Cause::FixedBySnapshot`]); or one of the sandboxes could not be made: then none is, and the error is that of
    /// the first.
    ///
    /// # Cancel safety
    /// A dropped future leaves no sandbox: what was made is removed in the background.
    pub async fn spawn(self, count: usize) -> Result<Vec<Sandbox>, Error> {
        self.spawn_with_ids(random_ids(count)).await
    }

    /// As [`spawn`](Self::spawn), one sandbox for each of `ids`, in their order.
    ///
    /// # Errors
    /// As `spawn`; and an id is named twice, or taken ([`Cause::SandboxExists`]): nothing is touched then.
    ///
    /// # Cancel safety
    /// As `spawn`.
    pub async fn spawn_with_ids(self, ids: Vec<SandboxId>) -> Result<Vec<Sandbox>, Error> {
        let Self { template: Template { host, name }, mut changes } = self;
        changes.template = Some(name.clone());
        let used = host.templates.begin_use(&name);
        let store = host.layout.template(&name);
        let stored = blocking(move || Stored::open(&store)).await?;
        let stored = stored.ok_or_else(|| Cause::NoSuchTemplate { name: name.clone() })?;
        spawn(&host, stored, &changes, ids, used).await
    }
}

/// So many ids that nobody has.
pub(crate) fn random_ids(count: usize) -> Vec<SandboxId> {
    std::iter::repeat_with(SandboxId::random).take(count).collect()
}

/// Makes the sandboxes `ids`, which go on where `stored` was taken, all or none; `_held` stays until they run.
pub(crate) async fn spawn<H>(
    host: &Arc<HostInner>,
    stored: Stored,
    changes: &Changes,
    ids: Vec<SandboxId>,
    _held: H,
) -> Result<Vec<Sandbox>, Error> {
    host.check_free(&ids)?;
    changes.check(&stored)?;
    // As many at a time as the machine can work on, with a few that wait for their disks.
    let at_once = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    let children = ids.into_iter().map(|id| child(host, id, &stored, changes));
    let results: Vec<_> = stream::iter(children).buffered(at_once).collect().await;
    let (made, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let made: Vec<Sandbox> = made.into_iter().flatten().collect();
    let Some(error) = failed.into_iter().find_map(Result::err) else { return Ok(made) };
    for sandbox in made {
        if let Err(e) = sandbox.destroy().await {
            tracing::warn!(error = %e, "a sandbox whose sibling failed could not be removed");
        }
    }
    Err(error)
}

async fn child(
    host: &Arc<HostInner>,
    id: SandboxId,
    stored: &Stored,
    changes: &Changes,
) -> Result<Sandbox, Error> {
    let identity = Identity {
        dirs: host.layout.sandbox(&id),
        id,
        spec: changes.applied_to(stored),
        token: AccessToken::random(),
    };
    let (entered, memory) = Machine::spawn(host, identity, stored, changes.restore).await?;
    let Entered { machine, entry } = entered;
    Sandbox::started(Arc::clone(host), machine, entry, Some(Origin { generation: 0, memory })).await
}

/// A template being made: a store that vanishes unless it is committed.
pub(crate) struct StagedTemplate(StagedDir);

impl StagedTemplate {
    /// Begins the store of the template `name`, which must not be there.
    pub(crate) fn create(host: &HostInner, name: &TemplateName) -> Result<Self, Cause> {
        let target = host.layout.template(name);
        if target.path().exists() {
            return Err(Cause::TemplateExists { name: name.clone() });
        }
        Self::at(target.path())
    }

    /// Begins a store for children of a running sandbox, which is never committed.
    pub(crate) fn unnamed(host: &HostInner) -> Result<Self, Cause> {
        Self::at(&host.layout.branches().join(SandboxId::random().as_str()))
    }

    fn at(target: &Path) -> Result<Self, Cause> {
        let staged = StagedDir::create(target).map_err(|source| Cause::io("create", target, source))?;
        checkpoint("template.staged")?;
        Ok(Self(staged))
    }

    pub(crate) fn store(&self) -> StoreDir {
        StoreDir::at(self.0.path())
    }

    /// Gives the store its name. Somebody else's template of that name stays.
    pub(crate) fn commit(self, host: &HostInner, name: &TemplateName) -> Result<(), Cause> {
        checkpoint("template.filled")?;
        let path = host.layout.template(name).path().to_owned();
        self.0.commit().map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Cause::TemplateExists { name: name.clone() },
            _ => Cause::io("commit", &path, source),
        })
    }
}

/// Makes a template of a snapshot: everything in it is linked, nothing copied.
pub(crate) fn of_stored(host: &HostInner, stored: &Stored, name: &TemplateName) -> Result<(), Cause> {
    let template = StagedTemplate::create(host, name)?;
    let store = template.store();
    let memory = stored.memory.link_into(&store.open_layers()?)?;
    checkpoint("template.layers-linked")?;
    let staged = store.snapshots().stage(1)?;
    for part in [STATE, DISK] {
        let to = staged.file(part);
        fs::hard_link(stored.file(part), &to).map_err(|source| Cause::io("link", &to, source))?;
    }
    // It may not be there, and is only a hint.
    let _ = fs::hard_link(stored.file(WORKING_SET), staged.file(WORKING_SET));
    memory.save(&staged.file(MEMORY))?;
    staged.commit(&[STATE, DISK], &stored.record)?;
    checkpoint("template.snapshot-committed")?;
    template.commit(host, name)
}

fn info(host: &HostInner, name: TemplateName) -> Result<TemplateInfo, Cause> {
    let stored = Stored::open(&host.layout.template(&name))?;
    let stored = stored.ok_or_else(|| Cause::NoSuchTemplate { name: name.clone() })?;
    let disk = stored.file(DISK);
    let blocks = |meta: fs::Metadata| std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
    let disk = fs::metadata(&disk).map(blocks).map_err(|source| Cause::io("look at", &disk, source))?;
    let spec = stored.record.spec;
    Ok(TemplateInfo {
        name,
        image: spec.image,
        vcpus: spec.vcpus,
        memory: spec.memory,
        allocated: Bytes(stored.memory.usage()?.allocated.get() + disk),
    })
}

/// The names of all templates.
pub(crate) fn list(host: &HostInner) -> Result<Vec<TemplateName>, Cause> {
    let dir = host.layout.templates();
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).map_err(|source| Cause::io("list", &dir, source))? {
        let name = entry.map_err(|source| Cause::io("list", &dir, source))?.file_name();
        names.extend(name.to_str().and_then(|name| name.parse::<TemplateName>().ok()));
    }
    names.sort();
    Ok(names)
}

fn delete(host: &HostInner, name: &TemplateName) -> Result<(), Cause> {
    let path = host.layout.template(name).path().to_owned();
    // From the rename on it is gone, whatever becomes of its files: they are swept when the host opens again.
    let unnamed = path.with_file_name(format!("{}{}-{name}", durable::STAGING_PREFIX, SandboxId::random()));
    host.templates.unless_used(name, || {
        fs::rename(&path, &unnamed).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Cause::NoSuchTemplate { name: name.clone() },
            _ => Cause::io("remove", &path, source),
        })
    })?;
    checkpoint("template.unnamed")?;
    fs::remove_dir_all(&unnamed).map_err(|source| Cause::io("remove", &unnamed, source))?;
    durable::sync_parent(&path).map_err(|source| Cause::io("sync", &path, source))
}

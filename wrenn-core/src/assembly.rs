//! Building a machine, step by step, each with its undo.
//!
//! Things are made in the reverse of the order in which they must go: directories, disk, network slot, fault
//! server (its place in that order at least), monitor. The monitor is thus collected before its disk and its network
//! go, and before the fault server stops, so that it never hangs in a page fault nobody serves.

mod data_dir;
mod load;
mod takeover;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use wrenn_agent_api::AccessToken;
use wrenn_base::{SandboxId, StepId, UndoList};
use wrenn_net::Slot;
use wrenn_storage::{Digest, DiskSpec, Image, RootDisk, clone_file};
use wrenn_vmm::api::CachedLoad;
use wrenn_vmm::{DiskMount, MonitorProcess, MonitorSpec};

use self::load::{flat_layer, show_layer, snapshot_load};
use crate::configure::configure;
use crate::containment::copy_in;
use crate::error::Cause;
use crate::host::HostInner;
use crate::journal::JournalFile;
use crate::layout::SandboxDirs;
use crate::lifecycle::Step;
use crate::lifetime::Clock;
use crate::machine::Live;
use crate::metrics::{Operation, phase};
use crate::network::Network;
use crate::paging::{Paging, Reserved};
use crate::preflight::devices;
use crate::registry::Entry;
use crate::restore::{RestoreMode, RestoreOptions, Stopwatch};
use crate::spec::SandboxSpec;
use crate::step::{blocking, building, checkpoint, unless_missing};
use crate::stored::{DISK, STATE, Stored};

/// What the monitor sees a state to be loaded as.
const LOADED_STATE: &str = "loaded.vmstate";
/// How long the monitor's API may take to come up.
const API_LIMIT: Duration = Duration::from_secs(20);

/// What identifies a machine, whichever way it comes to be.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) id: SandboxId,
    pub(crate) dirs: SandboxDirs,
    pub(crate) spec: SandboxSpec,
    pub(crate) token: AccessToken,
}

/// A machine being built: the undo list always covers what there is of it.
pub(crate) struct Assembly {
    host: Arc<HostInner>,
    identity: Identity,
    undo: UndoList,
    /// Its place in the registry, once it has one.
    entry: Option<Arc<Entry>>,
    /// The step that removes the data directory again; a committed snapshot makes it void.
    data_step: Option<StepId>,
    watch: Stopwatch,
    /// What it is built for.
    pub(crate) operation: Operation,
}

impl Assembly {
    pub(crate) fn new(host: Arc<HostInner>, identity: Identity, operation: Operation) -> Self {
        let undo = UndoList::new(&host.reaper);
        Self { host, identity, undo, entry: None, data_step: None, watch: Stopwatch::start(), operation }
    }

    /// What takes back all that was built.
    pub(crate) fn into_built(self) -> Built {
        let Self { undo, entry, data_step, .. } = self;
        Built { undo, entry, data_step }
    }

    pub(crate) async fn boot(&mut self) -> Result<Live, Cause> {
        devices::kvm()?;
        self.claim(Step::Create)?;
        let image = self.host.images.get(&self.identity.spec.image)?;
        let digest = image.digest.clone();
        let guest = self.host.guest_files()?;
        self.data_dir().await?;
        self.run_dir().await?;
        let disk = self.disk(image, None).await?;
        let slot = self.network().await?;
        let shown = vec![guest.kernel.clone(), guest.initramfs.clone()];
        let (monitor, reads_memory) = self.monitor(&disk, &slot, shown).await?;
        configure(&monitor, &self.identity, &guest, &slot, !reads_memory).await?;
        monitor.client().start_instance().await?;
        let parts = Parts { monitor, disk, image: digest, slot, reads_memory };
        let live = self.live(parts, None, None);
        phase(self.operation, "agent", live.greet_agent(&self.identity.token)).await?;
        Ok(live)
    }

    /// Takes over the snapshot of another sandbox: its layers become this one's too.
    pub(crate) async fn adopt(&mut self, stored: &Stored) -> Result<Stored, Cause> {
        self.data_dir().await?;
        checkpoint("spawn.data-made")?;
        let (dirs, stored) = (self.identity.dirs.clone(), stored.clone());
        let own = blocking(move || {
            let memory = stored.memory.link_into(&dirs.store.open_layers()?)?;
            // For whoever has to open it anew before this sandbox has a snapshot of its own.
            let manifest = dirs.store.origin();
            fs::hard_link(&stored.manifest, &manifest)
                .map_err(|source| Cause::io("link", &manifest, source))?;
            Ok::<_, Cause>(Stored { memory, manifest, ..stored })
        })
        .await?;
        checkpoint("spawn.layers-linked")?;
        Ok(own)
    }

    pub(crate) async fn restore(&mut self, from: &Stored, options: RestoreOptions) -> Result<Live, Cause> {
        devices::kvm()?;
        devices::userfaultfd()?;
        self.claim(Step::Resume)?;
        let image = from.image(&self.host.images)?;
        // Reading files takes longer than making all the rest, so it goes on beside that: memory as far as it is known
        // what the guest needs first, and state and disk to their ends, before which the guest does not run.
        let (host, stored) = (Arc::clone(&self.host), from.clone());
        let paging = Reserved::new(&self.identity.id, &mut self.undo);
        let paging = async {
            match options.mode {
                RestoreMode::Uffd => {
                    blocking(move || paging.begin(&host.pagers, &stored, options)).await.map(Some)
                }
                RestoreMode::File => Ok(None),
            }
        };
        let stored = from.clone();
        let verified = blocking(move || stored.verify());
        let (paging, verified, parts) =
            tokio::join!(paging, verified, self.restore_parts(image, from, options.mode));
        verified?;
        let (parts, paging) = (parts?, paging?.map(Arc::new));
        self.watch.monitor_is_ready();
        let operation = self.operation;
        phase(operation, "load", self.load(&parts, from, options, paging.as_ref())).await?;
        self.watch.is_loaded();
        checkpoint("resume.loaded")?;
        let watch = std::mem::replace(&mut self.watch, Stopwatch::start());
        let live = self.live(parts, paging, Some(watch));
        phase(operation, "agent", live.greet_agent(&from.record.token)).await?;
        checkpoint("resume.greeted")?;
        Ok(live)
    }

    /// Everything that a machine stands on but its memory.
    async fn restore_parts(
        &mut self,
        image: Image,
        from: &Stored,
        mode: RestoreMode,
    ) -> Result<Parts, Cause> {
        let shown = match mode {
            RestoreMode::Uffd => Vec::new(),
            RestoreMode::File => vec![show_layer(from)?],
        };
        self.run_dir().await?;
        checkpoint("resume.run-dir")?;
        let disk = self.disk(image, Some(from.file(DISK))).await?;
        checkpoint("resume.disk")?;
        let slot = self.network().await?;
        checkpoint("resume.network")?;
        let (monitor, reads_memory) = self.monitor(&disk, &slot, shown).await?;
        checkpoint("resume.monitor")?;
        Ok(Parts { monitor, disk, image: from.record.image.clone(), slot, reads_memory })
    }

    /// Has the monitor load the snapshot and run it.
    async fn load(
        &mut self,
        parts: &Parts,
        from: &Stored,
        options: RestoreOptions,
        paging: Option<&Arc<Paging>>,
    ) -> Result<(), Cause> {
        let (dirs, saved) = (self.identity.dirs.clone(), from.file(STATE));
        let state = blocking(move || copy_in(&dirs, &saved, LOADED_STATE)).await?;
        parts.monitor.give(&state)?;
        let loaded = state.clone();
        let backend = match paging.cloned() {
            None => flat_layer(from)?,
            Some(paging) => {
                let socket = self.identity.dirs.fault_socket();
                let (at, cached, killer) = (socket.clone(), parts.reads_memory, parts.monitor.killer());
                blocking(move || paging.serve(&at, cached, killer)).await?;
                parts.monitor.give(&socket)?;
                socket
            }
        };
        checkpoint("resume.fault-server")?;
        let client = parts.monitor.client();
        let result = match (options.mode, parts.reads_memory) {
            (RestoreMode::Uffd, true) => {
                let load = CachedLoad {
                    snapshot_path: state,
                    cache_socket: backend,
                    resume_vm: true,
                    network_overrides: Vec::new(),
                };
                client.load_cached(&load).await
            }
            (mode, reads_memory) => {
                client.load_snapshot(&snapshot_load(state, mode, backend, reads_memory)).await
            }
        };
        // The monitor has read it, or never will.
        let _ = blocking(move || fs::remove_file(loaded)).await;
        let (Err(error), Some(paging)) = (&result, paging.cloned()) else { return Ok(result?) };
        // Of a fault server that failed the monitor knows only that it is gone.
        match blocking(move || paging.failure()).await {
            Some(why) => Err(Cause::Paging { id: self.identity.id.clone(), why }),
            None => {
                tracing::debug!(%error, "a snapshot was not loaded");
                Ok(result?)
            }
        }
    }

    fn claim(&mut self, step: Step) -> Result<(), Cause> {
        self.entry = Some(self.host.registry.enter(&self.identity, step, &mut self.undo)?);
        Ok(())
    }

    /// The directory of a new sandbox's durable data, which must not be there: it would be another's of the same id.
    async fn data_dir(&mut self) -> Result<(), Cause> {
        let (id, dir) = (self.identity.id.clone(), self.identity.dirs.store.path().to_owned());
        let reaper = self.host.reaper.clone();
        let made = building(&mut self.undo, &reaper, move |undo| data_dir::new_data_dir(id, dir, undo));
        self.data_step = Some(made.await?);
        Ok(())
    }

    /// The directories of the running sandbox: for sockets, and for what its monitor writes.
    async fn run_dir(&mut self) -> Result<(), Cause> {
        let dir = self.identity.dirs.run().to_owned();
        self.directory("the sandbox's runtime directory", dir, 0o711).await?;
        // The monitor finds what it is told of, and can neither list nor change what is there.
        let exchange = self.identity.dirs.exchange();
        self.directory("the directory of the monitor's files", exchange, 0o711).await.map(drop)
    }

    /// Makes a directory, unless it is there.
    async fn directory(&mut self, what: &'static str, dir: PathBuf, mode: u32) -> Result<StepId, Cause> {
        let reaper = self.host.reaper.clone();
        building(&mut self.undo, &reaper, move |undo| {
            let tree = dir.clone();
            let step = undo.push(what, move |_| Ok(unless_missing(fs::remove_dir_all(tree))?));
            fs::create_dir_all(&dir)
                .and_then(|()| fs::set_permissions(&dir, Permissions::from_mode(mode)))
                .map_err(|source| Cause::io("create", &dir, source))?;
            Ok(step)
        })
        .await
    }

    /// The root disk: a fresh one, or one with the changes in `saved`, which are copied and never written to.
    async fn disk(&mut self, image: Image, saved: Option<PathBuf>) -> Result<RootDisk, Cause> {
        let (host, identity, reaper) =
            (Arc::clone(&self.host), self.identity.clone(), self.host.reaper.clone());
        let attached = building(&mut self.undo, &reaper, move |undo| {
            let cow = disk_changes(&identity.dirs, undo);
            if let Some(saved) = saved {
                clone_file(&saved, &cow).map_err(|source| Cause::io("copy", &saved, source))?;
            }
            let spec =
                DiskSpec { sandbox: &identity.id, image: &image.rootfs, cow: &cow, size: identity.spec.disk };
            Ok(host.disks.attach(&spec, undo)?)
        });
        phase(self.operation, "disk", attached).await
    }

    /// A slot with the policy in force.
    async fn network(&mut self) -> Result<Slot, Cause> {
        let (host, policy) = (Arc::clone(&self.host), self.identity.spec.network.clone());
        let reaper = self.host.reaper.clone();
        let taken = building(&mut self.undo, &reaper, move |undo| {
            let slot = host.slots().take(&policy.egress, undo)?;
            if policy.bandwidth.is_some() {
                slot.set_bandwidth(policy.bandwidth)?;
            }
            Ok(slot)
        });
        phase(self.operation, "network", taken).await
    }

    /// The monitor, which is to read `shown`, and whether it lets guest memory be read.
    async fn monitor(
        &mut self,
        disk: &RootDisk,
        slot: &Slot,
        shown: Vec<PathBuf>,
    ) -> Result<(MonitorProcess, bool), Cause> {
        let dirs = &self.identity.dirs;
        let id = self.identity.id.clone();
        let mut spec = MonitorSpec::new(self.host.monitor.clone(), id, dirs.api_socket(), dirs.console());
        spec.netns = Some(slot.netns().to_owned());
        spec.disk = Some(DiskMount { source: disk.device().to_owned() });
        spec.containment = self.host.cells.of(&self.identity.spec, dirs, slot, shown);
        let reaper = self.host.reaper.clone();
        let started = async {
            let spawn = move |undo: &mut UndoList| MonitorProcess::spawn(spec, undo);
            let monitor = building(&mut self.undo, &reaper, spawn).await?;
            monitor.wait_ready(API_LIMIT).await?;
            Ok::<_, Cause>(monitor)
        };
        let monitor = phase(self.operation, "monitor", started).await?;
        let reads_memory = monitor.client().extensions().await?.is_some_and(|offered| offered.version >= 1);
        Ok((monitor, reads_memory))
    }

    fn live(&self, parts: Parts, paging: Option<Arc<Paging>>, restored: Option<Stopwatch>) -> Live {
        let Parts { monitor, disk, image, slot, reads_memory } = parts;
        let contact = restored.as_ref().map(|watch| watch.contact.clone()).unwrap_or_default();
        let identity = self.identity.clone();
        let network = Network::new(slot, identity.spec.network.clone());
        let agent = network.agent(contact, &identity.token);
        let clock = match &self.entry {
            Some(entry) => entry.clock.clone(),
            None => Clock::new(identity.spec.lifetime),
        };
        Live {
            identity,
            monitor,
            disk,
            image,
            network,
            agent,
            paging,
            restored,
            reads_memory,
            clock,
            journal: JournalFile::new(&self.identity.dirs),
            expired: OnceLock::new(),
        }
    }
}

/// What takes back all that an assembly built, and what it is known by.
pub(crate) struct Built {
    pub(crate) undo: UndoList,
    /// Nothing where the sandbox belongs to somebody else.
    pub(crate) entry: Option<Arc<Entry>>,
    /// The step that removes the sandbox's data.
    pub(crate) data_step: Option<StepId>,
}

/// What a machine stands on.
struct Parts {
    monitor: MonitorProcess,
    disk: RootDisk,
    /// The image under the disk.
    image: Digest,
    slot: Slot,
    reads_memory: bool,
}

/// Where the root disk's changes are, with their removal registered.
fn disk_changes(dirs: &SandboxDirs, undo: &mut UndoList) -> PathBuf {
    let changes = dirs.disk();
    let path = changes.clone();
    undo.push("the root disk's changes", move |_| Ok(unless_missing(fs::remove_file(path))?));
    changes
}

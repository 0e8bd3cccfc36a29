//! Opening a host: where it keeps what, and that nobody else has it open.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use wrenn_base::{HostId, Reaper, UndoList};
use wrenn_net::{HostNet, HostNetSpec, SlotPool};
use wrenn_pager::{PagerError, PagerProgram};
use wrenn_storage::{BackendChoice, ImageRegistry, RootDisks, durable};
use wrenn_vmm::{CgroupTreeSpec, MonitorProgram, VM_DIR, VmmError};

use crate::compaction::{CompactionPolicy, Compactions};
use crate::containment::{Cells, ContainmentPolicy};
use crate::error::{Cause, Error};
use crate::expiry;
use crate::host::{Host, HostInner};
use crate::layout::Layout;
use crate::metrics;
use crate::paging::Pagers;
use crate::preflight::{self, Preflight};
use crate::recovery::{self, Survivor};
use crate::registry::Registry;
use crate::step::{blocking, to_its_end, unless_missing};
use crate::sweep;
use crate::templates_in_use::TemplatesInUse;

const DEFAULT_DATA: &str = "/var/lib/wrenn";
const DEFAULT_RUN: &str = "/run/wrenn";
const FORMAT: u32 = 1;
/// How long the lock of a data directory is waited for: one who has just been killed may have been starting a process, which
/// holds all that was open until it is the program that it is to be.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// How many network slots are kept ready where it was not said: a burst of sandboxes, and little on the machine.
const DEFAULT_READY_SLOTS: usize = 4;

/// How a host is to be opened; see [`Host::builder`].
#[derive(Debug, Clone, Default)]
pub struct HostBuilder {
    data: Option<PathBuf>,
    run: Option<PathBuf>,
    monitor: Option<MonitorChoice>,
    pager: Option<PagerChoice>,
    disks: BackendChoice,
    compaction: CompactionPolicy,
    ready_slots: Option<usize>,
    nameservers: Option<Vec<Ipv4Addr>>,
    containment: ContainmentPolicy,
}

#[derive(Debug, Clone)]
enum MonitorChoice {
    Named(PathBuf),
    Program(MonitorProgram),
}

#[derive(Debug, Clone)]
enum PagerChoice {
    Named(PathBuf),
    Program(PagerProgram),
}

impl HostBuilder {
    /// Where everything durable is kept; `$WRENN_DATA`, else `/var/lib/wrenn`, where not set.
    ///
    /// A file system with reflinks (xfs, btrfs) makes resume fast for large disks.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data = Some(dir.into());
        self
    }

    /// Where sockets and namespaces are kept; `/run/wrenn` where not set.
    ///
    /// Keep it short: a socket's path has at most 107 bytes.
    pub fn run_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.run = Some(dir.into());
        self
    }

    /// The monitor program: a path, or a name on `PATH` such as `firecracker`.
    ///
    /// Where not set: `$WRENN_MONITOR`, else `wrenn-monitor` beside the running executable or on `PATH`.
    pub fn monitor(mut self, program: impl Into<PathBuf>) -> Self {
        self.monitor = Some(MonitorChoice::Named(program.into()));
        self
    }

    /// The monitor as a program that was found, or made, by other means: for example the running program itself.
    pub fn monitor_program(mut self, program: MonitorProgram) -> Self {
        self.monitor = Some(MonitorChoice::Program(program));
        self
    }

    /// The program that pages the memory of resumed sandboxes in: a path, or a name on `PATH`.
    ///
    /// It is a process of its own, one per host, so that sandboxes live on when this program is killed. Where not set:
    /// `$WRENN_PAGER`, else `wrenn-pager` beside the running executable or on `PATH`.
    pub fn pager(mut self, program: impl Into<PathBuf>) -> Self {
        self.pager = Some(PagerChoice::Named(program.into()));
        self
    }

    /// That program as one that was made by other means: for example the running program itself.
    pub fn pager_program(mut self, program: PagerProgram) -> Self {
        self.pager = Some(PagerChoice::Program(program));
        self
    }

    /// How root disks are made; the best that this machine has, where not set.
    pub fn disk_backend(mut self, backend: BackendChoice) -> Self {
        self.disks = backend;
        self
    }

    /// When and how fast long chains of memory layers are merged in the background.
    pub fn compaction(mut self, policy: CompactionPolicy) -> Self {
        self.compaction = policy;
        self
    }

    /// How many network slots are made ahead, so that sandboxes need not wait for theirs; 4 where not set.
    ///
    /// Each is a network namespace with two interfaces. With 0, a slot is made when a sandbox needs it.
    pub fn ready_slots(mut self, count: usize) -> Self {
        self.ready_slots = Some(count);
        self
    }

    /// The guests' DNS servers; 1.1.1.1 and 8.8.8.8 where not set.
    ///
    /// Guests may ask them wherever they are, whatever their egress policies say. For a guest whose policy has names, this
    /// process asks them. A sandbox that is resumed still asks those that it was created with; with names in its policy it
    /// is answered by these.
    pub fn nameservers(mut self, servers: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        self.nameservers = Some(servers.into_iter().collect());
        self
    }

    /// How monitors are contained; in all that there is, where not set.
    pub fn containment(mut self, policy: ContainmentPolicy) -> Self {
        self.containment = policy;
        self
    }

    /// Opens the host, takes over the sandboxes that a killed process left running, and removes what else it left of this
    /// data directory's sandboxes on the machine.
    ///
    /// What runs on is had by [`Host::running`]. A sandbox whose monitor has ended goes back to its latest snapshot; one
    /// without a snapshot is removed.
    ///
    /// Must be called within a Tokio runtime with time and I/O, which the host keeps using.
    ///
    /// # Errors
    /// The directory cannot be made or is open in another process, the monitor is not found, or the network cannot
    /// be set up. Nothing is left behind but the empty data directory.
    ///
    /// # Cancel safety
    /// A dropped future leaves at most the empty data directory. Sandboxes that a killed process left running
    /// run on.
    pub async fn open(self) -> Result<Host, Error> {
        let runtime = tokio::runtime::Handle::current();
        let (inner, survivors) = blocking(move || self.open_blocking(runtime)).await?;
        let inner = Arc::new(inner);
        let host = Arc::clone(&inner);
        to_its_end(&inner.runtime, async move { recovery::take_over(&host, survivors).await }).await;
        inner.runtime.spawn(expiry::watch(Arc::downgrade(&inner), inner.registry.clone()));
        Ok(Host { inner })
    }

    /// Looks at everything that this host needs of the machine, opened or not; nothing stays changed.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), wrenn_core::Error> {
    /// for check in wrenn_core::Host::builder().preflight().await?.checks() {
    ///     println!("{}: {}, {}", check.subject, check.verdict, check.found);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The current directory, which a relative path is relative to, cannot be told. What the machine lacks is no error.
    pub async fn preflight(&self) -> Result<Preflight, Error> {
        let inputs =
            preflight::Inputs { data: self.data()?, monitor: self.find_monitor(), pager: self.find_pager() };
        Ok(blocking(move || preflight::look(inputs)).await)
    }

    fn find_monitor(&self) -> Result<MonitorProgram, VmmError> {
        match &self.monitor {
            Some(MonitorChoice::Program(program)) => Ok(program.clone()),
            Some(MonitorChoice::Named(path)) => MonitorProgram::discover(Some(path)),
            None => MonitorProgram::discover(None),
        }
    }

    fn find_pager(&self) -> Result<PagerProgram, PagerError> {
        match &self.pager {
            Some(PagerChoice::Program(program)) => Ok(program.clone()),
            Some(PagerChoice::Named(path)) => PagerProgram::discover(Some(path)),
            None => PagerProgram::discover(None),
        }
    }

    fn data(&self) -> Result<PathBuf, Cause> {
        let from_env = || std::env::var_os("WRENN_DATA").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        absolute(&self.data.clone().or_else(from_env).unwrap_or_else(|| DEFAULT_DATA.into()))
    }

    fn run(&self) -> Result<PathBuf, Cause> {
        absolute(self.run.as_deref().unwrap_or(Path::new(DEFAULT_RUN)))
    }

    fn open_blocking(self, runtime: tokio::runtime::Handle) -> Result<(HostInner, Vec<Survivor>), Cause> {
        let (monitor, pager) = (self.find_monitor()?, self.find_pager()?);
        let (data, run) = (self.data()?, self.run()?);
        make_dir(&data)?;
        let lock = lock(&data)?;
        let id = host_id(&data)?;
        let layout = Layout::new(data.clone(), &run, &id);
        for dir in [layout.sandboxes(), layout.templates(), layout.branches()] {
            make_dir(&dir)?;
        }
        make_dir(Path::new(VM_DIR))?;
        let disks = RootDisks::probe(&id, self.disks)?;
        let reaper = Reaper::start();
        let mut undo = UndoList::new(&reaper);
        let run = layout.run().to_owned();
        undo.push("the host's runtime directory", move |_| Ok(unless_missing(fs::remove_dir(run))?));
        make_dir(layout.run())?;
        let socket = layout.pager_socket();
        undo.push("the pager's socket", move |_| Ok(unless_missing(fs::remove_file(socket))?));
        let cells = Cells::open(self.containment, CgroupTreeSpec::new(id.clone()), &mut undo)?;
        let mut net = HostNetSpec::new(id.clone(), layout.netns());
        if let Some(servers) = self.nameservers {
            net.dns = servers;
        }
        let last_slot = net.pool.last_index();
        let net = HostNet::open(net, &mut undo)?;
        let pagers = Pagers::open(pager, layout.pager_socket(), layout.pager_log(), cells.cgroups().cloned());
        let survivors = recovery::survivors(&layout, pagers.found().as_deref());
        sweep::sweep(&layout, &disks, &net, cells.cgroups(), &survivors);
        pagers.forget_all_but(&survivors);
        let ready = self.ready_slots.unwrap_or(DEFAULT_READY_SLOTS);
        let slots = SlotPool::start_telling(&net, 1..=last_slot, ready, &reaper, metrics::slots_ready)?;
        let inner = HostInner {
            id,
            images: ImageRegistry::open(&data)?,
            data: data.clone(),
            layout,
            reaper,
            disks,
            slots: Some(slots),
            registry: Registry::default(),
            templates: TemplatesInUse::default(),
            pagers,
            compactions: Compactions::new(self.compaction),
            monitor,
            cells,
            runtime,
            undo: Some(undo),
            _lock: lock,
        };
        Ok((inner, survivors))
    }
}

fn lock(data: &Path) -> Result<File, Cause> {
    let path = data.join("lock");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|source| Cause::io("open", &path, source))?;
    let given_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < given_up => thread::sleep(LOCK_PAUSE),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Cause::DataDirBusy { path: data.to_owned() }),
            Err(e) => return Err(Cause::io("lock", &path, e.into())),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct HostRecord {
    format: u32,
    id: HostId,
}

/// The id stored in `data`, or a new one that is stored there.
fn host_id(data: &Path) -> Result<HostId, Cause> {
    let path = data.join("host.json");
    let bad = |why: String| Cause::BadHostFile { path: path.clone(), why };
    match fs::read(&path) {
        Ok(bytes) => {
            let record: HostRecord = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
            if record.format > FORMAT {
                return Err(bad(format!(
                    "its format {} is newer than this program's {FORMAT}",
                    record.format
                )));
            }
            Ok(record.id)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let record = HostRecord { format: FORMAT, id: HostId::random() };
            let json = serde_json::to_vec(&record).map_err(|e| bad(e.to_string()))?;
            durable::write(&path, &json).map_err(|source| Cause::io("write", &path, source))?;
            Ok(record.id)
        }
        Err(source) => Err(Cause::io("read", &path, source)),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Cause> {
    std::path::absolute(path).map_err(|source| Cause::io("resolve", path, source))
}

fn make_dir(dir: &Path) -> Result<(), Cause> {
    fs::create_dir_all(dir).map_err(|source| Cause::io("create", dir, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_keeps_its_host_id() {
        let dir = tempfile::tempdir().unwrap();
        let id = host_id(dir.path()).unwrap();
        assert_eq!(host_id(dir.path()).unwrap(), id);
        for bad in ["", "{}", r#"{"format":1,"id":"../../"}"#, r#"{"format":2,"id":"abcdef"}"#] {
            fs::write(dir.path().join("host.json"), bad).unwrap();
            assert!(matches!(host_id(dir.path()), Err(Cause::BadHostFile { .. })), "{bad}");
        }
    }

    #[test]
    fn a_data_directory_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(Cause::DataDirBusy { .. })));
        drop(held);
        lock(dir.path()).unwrap();
    }
}

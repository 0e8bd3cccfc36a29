//! The host: one data directory, and what all sandboxes in it share.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use wrenn_base::{HostId, ImageName, Reaper, SandboxId, TemplateName, UndoList};
use wrenn_net::{HostNet, HostNetSpec};
use wrenn_storage::{BackendChoice, GuestFiles, ImageRegistry, RootDisks, durable};
use wrenn_vmm::{MonitorProgram, VM_DIR};

use crate::builder::SandboxBuilder;
use crate::caches::PageCaches;
use crate::claims::{ActiveSandboxes, SlotIndices, TemplatesInUse};
use crate::compaction::{CompactionPolicy, Compactions};
use crate::error::{Cause, Error};
use crate::layout::Layout;
use crate::machine::UNDO_LIMIT;
use crate::paused::PausedSandbox;
use crate::step::{blocking, undo_all, unless_missing};
use crate::sweep;
use crate::template::{self, Template};

const DEFAULT_DATA: &str = "/var/lib/wrenn";
const DEFAULT_RUN: &str = "/run/wrenn";
const FORMAT: u32 = 1;
/// How long a host that is being closed waits for calls that were cancelled.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// A data directory opened for use: the entry point to everything.
///
/// Clones share it. One process at a time can have a data directory open. Sandboxes keep their host open; what the
/// host itself put on the machine (an nftables table) goes when the last of them is gone, or with [`close`](Self::close).
/// Dropping the last of them blocks, for at most 30 seconds, until everything that was dropped before it is gone from
/// the machine: a program leaves nothing behind, however it returns from `main`. In asynchronous code, prefer `close`.
#[derive(Clone)]
pub struct Host {
    pub(crate) inner: Arc<HostInner>,
}

pub(crate) struct HostInner {
    pub(crate) layout: Layout,
    pub(crate) reaper: Reaper,
    pub(crate) images: ImageRegistry,
    pub(crate) disks: RootDisks,
    pub(crate) net: HostNet,
    pub(crate) slots: SlotIndices,
    pub(crate) active: ActiveSandboxes,
    pub(crate) templates: TemplatesInUse,
    pub(crate) caches: PageCaches,
    pub(crate) compactions: Compactions,
    pub(crate) monitor: MonitorProgram,
    pub(crate) runtime: tokio::runtime::Handle,
    data: PathBuf,
    /// What the host itself put on the machine.
    undo: Option<UndoList>,
    /// Holds the data directory for this process.
    _lock: File,
}

impl HostInner {
    pub(crate) fn guest_files(&self) -> Result<GuestFiles, Cause> {
        Ok(GuestFiles::open(&self.data)?)
    }
}

impl Drop for HostInner {
    /// Waits for the reaper: a program that ends, perhaps on an error, would else leave its last monitors behind.
    fn drop(&mut self) {
        drop(self.undo.take());
        if !self.reaper.wait_idle(UNDO_LIMIT) {
            tracing::warn!("what the last sandboxes stood on is still being removed");
        }
    }
}

/// How a host is to be opened; see [`Host::builder`].
#[derive(Debug, Clone, Default)]
pub struct HostBuilder {
    data: Option<PathBuf>,
    run: Option<PathBuf>,
    monitor: Option<MonitorChoice>,
    disks: BackendChoice,
    compaction: CompactionPolicy,
}

#[derive(Debug, Clone)]
enum MonitorChoice {
    Named(PathBuf),
    Program(MonitorProgram),
}

impl Host {
    /// Begins opening a host.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), wrenn_core::Error> {
    /// let host = wrenn_core::Host::builder().data_dir("/srv/sandboxes").open().await?;
    /// let sandbox = host.sandbox("debian")?.create().await?;
    /// println!("{}", sandbox.exec("uname -r").await?.stdout_text());
    /// sandbox.destroy().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.inner.data
    }

    /// Begins a sandbox of the registered image `image`.
    ///
    /// # Errors
    /// `image` is no valid image name ([`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput)). Whether there
    /// is such an image is seen when the sandbox is created.
    pub fn sandbox(&self, image: &str) -> Result<SandboxBuilder, Error> {
        Ok(SandboxBuilder::new(self.clone(), image.parse::<ImageName>()?))
    }

    /// Opens a sandbox that was paused, in this process or an earlier one.
    ///
    /// # Errors
    /// There is no such sandbox, or its latest snapshot is damaged; nothing is changed.
    pub async fn paused(&self, id: &SandboxId) -> Result<PausedSandbox, Error> {
        PausedSandbox::open(Arc::clone(&self.inner), id.clone()).await
    }

    /// The ids of all sandboxes with a complete snapshot, those that are running again included.
    ///
    /// # Errors
    /// The data directory cannot be read.
    pub async fn stored(&self) -> Result<Vec<SandboxId>, Error> {
        let layout = self.inner.layout.clone();
        blocking(move || stored_sandboxes(&layout)).await.map_err(Error::from)
    }

    /// The template `name`; whether there is one is seen when it is used.
    ///
    /// # Errors
    /// `name` is no valid template name ([`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput)).
    pub fn template(&self, name: &str) -> Result<Template, Error> {
        Ok(Template::new(Arc::clone(&self.inner), name.parse::<TemplateName>()?))
    }

    /// The names of all templates.
    ///
    /// # Errors
    /// The data directory cannot be read.
    pub async fn templates(&self) -> Result<Vec<TemplateName>, Error> {
        let inner = Arc::clone(&self.inner);
        Ok(blocking(move || template::list(&inner)).await?)
    }

    /// Closes the host: waits until everything that was being removed is gone, then removes what the host itself
    /// put on the machine.
    ///
    /// # Errors
    /// A sandbox or a clone of the host is still there after ten seconds, in which cancelled calls come to their end
    /// ([`ErrorKind::Busy`](crate::ErrorKind::Busy)): the host then goes with the last of them. Or something could not
    /// be removed.
    pub async fn close(self) -> Result<(), Error> {
        let given_up = Instant::now() + CLOSE_LIMIT;
        while Arc::strong_count(&self.inner) > 1 && Instant::now() < given_up {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.inner.compactions.stop_all().await;
        let reaper = self.inner.reaper.clone();
        blocking(move || reaper.wait_idle(UNDO_LIMIT)).await;
        let mut inner = Arc::into_inner(self.inner).ok_or(Cause::HostInUse)?;
        let undo = inner.undo.take().expect("only a drop takes it before");
        Error::from_cleanup("closing the host", undo_all(undo, UNDO_LIMIT).await)
    }
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

    /// Opens the host, and removes what a killed process left running or mounted of this data directory's sandboxes.
    ///
    /// Sandboxes that such a process had running go back to their latest snapshot; those without one are removed.
    ///
    /// Must be called within a Tokio runtime with time and I/O, which the host keeps using.
    ///
    /// # Errors
    /// The directory cannot be made or is open in another process, the monitor is not found, or the network cannot
    /// be set up. Nothing is left behind but the empty data directory.
    ///
    /// # Cancel safety
    /// A dropped future leaves at most the empty data directory.
    pub async fn open(self) -> Result<Host, Error> {
        let runtime = tokio::runtime::Handle::current();
        let inner = blocking(move || self.open_blocking(runtime)).await?;
        Ok(Host { inner: Arc::new(inner) })
    }

    fn open_blocking(self, runtime: tokio::runtime::Handle) -> Result<HostInner, Cause> {
        let monitor = match self.monitor {
            Some(MonitorChoice::Program(program)) => program,
            Some(MonitorChoice::Named(path)) => MonitorProgram::discover(Some(&path))?,
            None => MonitorProgram::discover(None)?,
        };
        let from_env = || std::env::var_os("WRENN_DATA").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let data = self.data.or_else(from_env).unwrap_or_else(|| DEFAULT_DATA.into());
        let data = absolute(&data)?;
        make_dir(&data)?;
        let lock = lock(&data)?;
        let id = host_id(&data)?;
        let run = absolute(&self.run.unwrap_or_else(|| DEFAULT_RUN.into()))?;
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
        let net = HostNetSpec::new(id, layout.netns());
        let last_slot = net.pool.last_index();
        let net = HostNet::open(net, &mut undo)?;
        sweep::sweep(&layout, &disks, &net);
        Ok(HostInner {
            images: ImageRegistry::open(&data)?,
            data: data.clone(),
            layout,
            reaper,
            disks,
            net,
            slots: SlotIndices::up_to(last_slot),
            active: ActiveSandboxes::default(),
            templates: TemplatesInUse::default(),
            caches: PageCaches::default(),
            compactions: Compactions::new(self.compaction),
            monitor,
            runtime,
            undo: Some(undo),
            _lock: lock,
        })
    }
}

fn lock(data: &Path) -> Result<File, Cause> {
    let path = data.join("lock");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|source| Cause::io("open", &path, source))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Cause::DataDirBusy { path: data.to_owned() }),
        Err(e) => Err(Cause::io("lock", &path, e.into())),
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

fn stored_sandboxes(layout: &Layout) -> Result<Vec<SandboxId>, Cause> {
    let dir = layout.sandboxes();
    let mut ids = Vec::new();
    for entry in fs::read_dir(&dir).map_err(|source| Cause::io("list", &dir, source))? {
        let name = entry.map_err(|source| Cause::io("list", &dir, source))?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<SandboxId>().ok()) else { continue };
        if layout.sandbox(&id).store.snapshots().latest()?.is_some() {
            ids.push(id);
        }
    }
    ids.sort();
    Ok(ids)
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

//! The host: one data directory, and what all sandboxes in it share.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wrenn_base::{HostId, ImageName, Reaper, SandboxId, TemplateName, UndoFailure, UndoList};
use wrenn_net::SlotPool;
use wrenn_storage::{GuestFiles, ImageRegistry, RootDisks};
use wrenn_vmm::MonitorProgram;

use crate::builder::SandboxBuilder;
use crate::compaction::Compactions;
use crate::containment::Cells;
use crate::error::{Cause, Error};
use crate::events::EventKind;
use crate::layout::Layout;
use crate::lifecycle::SandboxState;
use crate::machine::{Live, UNDO_LIMIT};
use crate::opening::HostBuilder;
use crate::paging::Pagers;
use crate::paused::{self, PausedSandbox};
use crate::registry::Registry;
use crate::step::blocking;
use crate::template::{self, Template};
use crate::templates_in_use::TemplatesInUse;

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
    pub(crate) id: HostId,
    pub(crate) layout: Layout,
    pub(crate) reaper: Reaper,
    pub(crate) images: ImageRegistry,
    pub(crate) disks: RootDisks,
    /// Ends before the network that it makes slots in, which `undo` removes.
    pub(crate) slots: Option<SlotPool>,
    pub(crate) registry: Registry,
    pub(crate) templates: TemplatesInUse,
    pub(crate) pagers: Pagers,
    pub(crate) compactions: Compactions,
    pub(crate) monitor: MonitorProgram,
    pub(crate) cells: Cells,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) data: PathBuf,
    /// What the host itself put on the machine.
    pub(crate) undo: Option<UndoList>,
    /// Holds the data directory for this process.
    pub(crate) _lock: File,
}

impl HostInner {
    pub(crate) fn slots(&self) -> &SlotPool {
        self.slots.as_ref().expect("it is taken only at the host's end")
    }

    /// Has the end of a guest that ends by itself told.
    pub(crate) fn tell_of_end(&self, live: &Live) {
        let (registry, id, exit) = (self.registry.clone(), live.identity.id.clone(), live.monitor.exit());
        self.runtime.spawn(async move {
            let status = exit.await.status.to_string();
            if registry.state(&id) == Some(SandboxState::Running) {
                registry.tell(&id, EventKind::GuestEnded { status });
            }
        });
    }

    /// Takes everything from the machine that the host has there, or lets go of it where sandboxes are to run on, which
    /// stand on it. Blocks.
    fn end(&self, slots: SlotPool, undo: UndoList) -> Vec<UndoFailure> {
        let leaves = self.registry.abandon_all();
        if !self.reaper.wait_idle(UNDO_LIMIT) {
            tracing::warn!("what the last sandboxes stood on is still being removed");
        }
        // After the last sandbox that it served, and before the cgroup that it is in.
        self.pagers.close();
        if leaves {
            undo.commit();
            return slots.leave(UNDO_LIMIT);
        }
        let mut failures = slots.close(UNDO_LIMIT);
        failures.extend(undo.run(UNDO_LIMIT));
        failures
    }

    /// Refuses ids that are named twice, or that a sandbox has.
    pub(crate) fn check_free(&self, ids: &[SandboxId]) -> Result<(), Cause> {
        for (index, id) in ids.iter().enumerate() {
            if ids[..index].contains(id) {
                return Err(Cause::InvalidSpec { what: "id", why: format!("{id} is named twice") });
            }
            if self.registry.state(id).is_some() || self.layout.sandbox(id).store.path().exists() {
                return Err(Cause::SandboxExists { id: id.clone() });
            }
        }
        Ok(())
    }

    pub(crate) fn guest_files(&self) -> Result<GuestFiles, Cause> {
        Ok(GuestFiles::open(&self.data)?)
    }
}

impl Drop for HostInner {
    /// Waits for the reaper: a program that ends, perhaps on an error, would else leave its last monitors behind.
    fn drop(&mut self) {
        // Its watch over timeouts ends.
        self.registry.look_anew();
        // Nothing is left of a host that was closed.
        let (Some(slots), Some(undo)) = (self.slots.take(), self.undo.take()) else { return };
        for failure in self.end(slots, undo) {
            tracing::warn!(step = %failure.what, error = %failure.source, "could not be removed at the host's end");
        }
    }
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

    /// The identity of the data directory, the same each time it is opened.
    pub fn id(&self) -> &HostId {
        &self.inner.id
    }

    /// The names of the registered images, but for those that are damaged.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub async fn images(&self) -> Result<Vec<ImageName>, Error> {
        let inner = Arc::clone(&self.inner);
        let all = blocking(move || inner.images.list().map_err(Cause::from)).await?;
        Ok(all.into_iter().filter(|(_, image)| image.is_ok()).map(|(name, _)| name).collect())
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

    /// Removes a paused sandbox from disk, also one whose snapshot is damaged, so that [`paused`](Self::paused) fails.
    ///
    /// ```no_run
    /// # async fn example(host: wrenn_core::Host) -> Result<(), wrenn_core::Error> {
    /// for id in host.stored().await? {
    ///     if host.paused(&id).await.is_err_and(|error| error.kind() == wrenn_core::ErrorKind::Corrupt) {
    ///         host.remove_paused(&id).await?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// There is no such sandbox; it runs, or something is being done with it ([`ErrorKind::Busy`](crate::ErrorKind::Busy));
    /// or a file could not be removed.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the removal once it has begun.
    pub async fn remove_paused(&self, id: &SandboxId) -> Result<(), Error> {
        paused::remove_unopened(Arc::clone(&self.inner), id.clone()).await
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
    /// put on the machine. Sandboxes that are to run on ([`ShutdownPolicy::LeaveRunning`](crate::ShutdownPolicy), or found
    /// running and never asked for) are left with what they stand on.
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
        let mut inner = Arc::into_inner(self.inner).ok_or(Cause::HostInUse)?;
        let slots = inner.slots.take().expect("only a drop takes it before");
        let undo = inner.undo.take().expect("only a drop takes it before");
        let failures = blocking(move || inner.end(slots, undo)).await;
        Error::from_cleanup("closing the host", failures)
    }
}

pub(crate) fn stored_sandboxes(layout: &Layout) -> Result<Vec<SandboxId>, Cause> {
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

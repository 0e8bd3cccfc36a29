//! A running virtual machine with everything it stands on: disk, network slot, monitor, fault server, agent.
//!
//! There are two ways to get one, and one way to lose it:
//!
//! ```text
//! boot(image) ----\                              /-- destroy / drop: the undo list
//!                  >--> Machine (agent answers) <
//! restore(snap) --/                              \-- the guest ends by itself: noticed, then the undo list
//! ```
//!
//! Whatever fails on the way in, the undo list takes back all that was made, in reverse order, and the first error
//! is returned with the cleanup's beside it. The order of making is the reverse of what must go first: the
//! directories, the disk, the slot, the fault server, the monitor.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use wrenn_agent_api::{AgentClient, AgentError, Init};
use wrenn_base::{Bytes, SandboxId, UndoList};
use wrenn_net::{Slot, SlotSpec};
use wrenn_storage::{DiskSpec, GuestFiles, MemoryImage, RootDisk};
use wrenn_uffd::{FaultServer, FaultServerOptions, FaultStats};
use wrenn_vmm::api::{
    BootSource, CacheType, Drive, EntropyDevice, MachineConfig, MemBackend, MemBackendType, NetworkInterface,
    SnapshotLoad,
};
use wrenn_vmm::{DiskMount, MonitorProcess, MonitorSpec};

use crate::error::{Cause, Error};
use crate::host::HostInner;
use crate::layout::SandboxDirs;
use crate::source::ImagePages;
use crate::spec::SandboxSpec;
use crate::step::{blocking, building, undo_all};
use crate::token::Token;
use crate::{console, dirs, preflight};

/// How long undoing a whole machine may take.
const UNDO_LIMIT: Duration = Duration::from_secs(30);
/// How long the monitor's API may take to come up.
const API_DEADLINE: Duration = Duration::from_secs(20);
/// After an agent call broke off, how long the end of the guest may take to become known as its reason.
const END_GRACE: Duration = Duration::from_millis(500);
const AGENT_PORT: u16 = 49983;

/// What identifies a machine, whichever way it comes to be.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) id: SandboxId,
    pub(crate) dirs: SandboxDirs,
    pub(crate) spec: SandboxSpec,
    pub(crate) token: Token,
}

/// What a machine is restored from.
pub(crate) struct RestorePoint {
    pub(crate) state: std::path::PathBuf,
    pub(crate) disk: std::path::PathBuf,
    pub(crate) memory: MemoryImage,
}

pub(crate) struct Machine {
    pub(crate) identity: Identity,
    pub(crate) monitor: MonitorProcess,
    pub(crate) disk: RootDisk,
    pub(crate) agent: AgentClient,
    faults: Option<Arc<FaultServer>>,
    undo: UndoList,
}

impl Machine {
    /// Boots a fresh machine from the spec's image and waits until its agent answers.
    pub(crate) async fn boot(host: &Arc<HostInner>, identity: Identity) -> Result<Self, Error> {
        let mut undo = UndoList::new(&host.reaper);
        match Self::try_boot(host, identity, &mut undo).await {
            Ok(machine) => Ok(machine.owning(undo)),
            Err(cause) => Err(Error::with_cleanup(cause, undo_all(undo, UNDO_LIMIT).await)),
        }
    }

    async fn try_boot(host: &Arc<HostInner>, identity: Identity, undo: &mut UndoList) -> Result<Self, Cause> {
        let image = host.images.get(&identity.spec.image)?;
        let guest = host.guest_files()?;
        make_data_dir(host, &identity, undo).await?;
        let disk = attach_disk(host, &identity, image.rootfs(), undo).await?;
        let (slot, monitor) = start_monitor(host, &identity, &disk, undo).await?;
        configure(&monitor, &identity.spec, &guest, &slot, &command_line(&identity.id, &slot)).await?;
        monitor.client().start_instance().await?;
        let machine = Self::assemble(identity, monitor, disk, slot, None);
        machine.wait_for_agent().await?;
        machine.welcome_agent().await?;
        Ok(machine)
    }

    /// Restores a machine from `point`, its memory paged in on demand, and waits until its agent answers.
    pub(crate) async fn restore(
        host: &Arc<HostInner>,
        identity: Identity,
        point: RestorePoint,
    ) -> Result<Self, Error> {
        let mut undo = UndoList::new(&host.reaper);
        match Self::try_restore(host, identity, point, &mut undo).await {
            Ok(machine) => Ok(machine.owning(undo)),
            Err(cause) => Err(Error::with_cleanup(cause, undo_all(undo, UNDO_LIMIT).await)),
        }
    }

    async fn try_restore(
        host: &Arc<HostInner>,
        identity: Identity,
        point: RestorePoint,
        undo: &mut UndoList,
    ) -> Result<Self, Cause> {
        preflight::userfaultfd()?;
        let image = host.images.get(&identity.spec.image)?;
        copy_disk(host, &identity, &point.disk, undo).await?;
        let disk = attach_disk(host, &identity, image.rootfs(), undo).await?;
        let killer = Arc::new(OnceLock::new());
        let faults = serve_faults(host, &identity, &point.memory, &killer, undo).await?;
        let (slot, monitor) = start_monitor(host, &identity, &disk, undo).await?;
        // From here on an unreadable page ends the guest instead of leaving it hanging.
        drop(killer.set(monitor.killer()));
        let load = SnapshotLoad {
            snapshot_path: point.state,
            mem_backend: MemBackend {
                backend_type: MemBackendType::Uffd,
                backend_path: identity.dirs.fault_socket(),
            },
            track_dirty_pages: true,
            resume_vm: true,
            ..Default::default()
        };
        let machine = Self::assemble(identity, monitor, disk, slot, Some(faults));
        machine.guard(async { Ok(machine.monitor.client().load_snapshot(&load).await?) }).await?;
        machine.wait_for_agent().await?;
        machine.welcome_agent().await?;
        Ok(machine)
    }
}

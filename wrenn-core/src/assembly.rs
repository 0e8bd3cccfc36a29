//! Building a machine, step by step, each with its undo.
//!
//! Things are made in the reverse of the order in which they must go: directories, disk, network slot, fault
//! server, monitor. The monitor is thus collected before its disk and its network go, and before the fault server
//! stops, so that it never hangs in a page fault nobody serves.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use wrenn_agent_api::{AGENT_PORT, AccessToken, AgentClient};
use wrenn_base::{SandboxId, StepId, UndoList};
use wrenn_net::{GuestNet, NetError, Slot, SlotSpec};
use wrenn_storage::{Digest, DiskSpec, GuestFiles, Image, MemoryImage, RootDisk, clone_file};
use wrenn_uffd::{FaultServer, FaultServerOptions};
use wrenn_vmm::api::{
    BootSource, CacheType, Drive, EntropyDevice, MachineConfig, MemBackend, MemBackendType, NetworkInterface,
    SnapshotLoad,
};
use wrenn_vmm::{DiskMount, Killer, MonitorProcess, MonitorSpec, ROOT_DISK_PATH};

use crate::error::Cause;
use crate::host::HostInner;
use crate::layout::SandboxDirs;
use crate::machine::{Live, Paging, RestorePoint};
use crate::preflight;
use crate::source::ImagePages;
use crate::spec::SandboxSpec;
use crate::step::{building, unless_missing};

/// How long the monitor's API may take to come up.
const API_LIMIT: Duration = Duration::from_secs(20);
/// How long one attempt to reach the agent may take.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

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
    /// The step that removes the data directory again; a committed snapshot makes it void.
    data_step: Option<StepId>,
}

impl Assembly {
    pub(crate) fn new(host: Arc<HostInner>, identity: Identity) -> Self {
        let undo = UndoList::new(&host.reaper);
        Self { host, identity, undo, data_step: None }
    }

    /// What takes back all that was built, and in it the step that removes the sandbox's data.
    pub(crate) fn into_undo(self) -> (UndoList, Option<StepId>) {
        (self.undo, self.data_step)
    }

    pub(crate) async fn boot(&mut self) -> Result<Live, Cause> {
        preflight::kvm()?;
        self.claim()?;
        let image = self.host.images.get(&self.identity.spec.image)?;
        let digest = image.digest.clone();
        let guest = self.host.guest_files()?;
        self.data_dir().await?;
        self.run_dir().await?;
        let disk = self.disk(image, None).await?;
        let slot = self.network().await?;
        let monitor = self.monitor(&disk, &slot).await?;
        configure(&monitor, &self.identity, &guest, &slot).await?;
        monitor.client().start_instance().await?;
        let live = self.live(monitor, disk, digest, slot, None);
        live.greet_agent().await?;
        Ok(live)
    }

    pub(crate) async fn restore(&mut self, point: RestorePoint) -> Result<Live, Cause> {
        preflight::kvm()?;
        preflight::userfaultfd()?;
        self.claim()?;
        let image = self.host.images.get(&self.identity.spec.image)?;
        if image.digest != point.image {
            let Identity { id, spec, .. } = self.identity.clone();
            return Err(Cause::OtherImage {
                id,
                image: spec.image,
                expected: point.image,
                found: image.digest,
            });
        }
        self.run_dir().await?;
        let disk = self.disk(image, Some(point.disk)).await?;
        let slot = self.network().await?;
        let paging = self.paging(&point.memory).await?;
        let monitor = self.monitor(&disk, &slot).await?;
        let _ = paging.killer.set(monitor.killer());
        let live = self.live(monitor, disk, point.image, slot, Some(paging));
        let load = SnapshotLoad {
            snapshot_path: point.state,
            mem_backend: Some(MemBackend {
                backend_type: MemBackendType::Uffd,
                backend_path: self.identity.dirs.fault_socket(),
            }),
            track_dirty_pages: true,
            resume_vm: true,
            ..SnapshotLoad::default()
        };
        live.while_alive(async { Ok(live.monitor.client().load_snapshot(&load).await?) }).await?;
        live.greet_agent().await?;
        Ok(live)
    }

    fn claim(&mut self) -> Result<(), Cause> {
        self.host.active.claim(&self.identity.id, &mut self.undo)
    }

    /// The directory of a new sandbox's durable data.
    async fn data_dir(&mut self) -> Result<(), Cause> {
        let dir = self.identity.dirs.data().to_owned();
        self.data_step = Some(self.directory("the sandbox's data directory", dir).await?);
        Ok(())
    }

    /// The directory for sockets and the namespace.
    async fn run_dir(&mut self) -> Result<(), Cause> {
        let dir = self.identity.dirs.run().to_owned();
        self.directory("the sandbox's runtime directory", dir).await.map(drop)
    }

    async fn directory(&mut self, what: &'static str, dir: PathBuf) -> Result<StepId, Cause> {
        let reaper = self.host.reaper.clone();
        building(&mut self.undo, &reaper, move |undo| {
            let tree = dir.clone();
            let step = undo.push(what, move |_| Ok(unless_missing(fs::remove_dir_all(tree))?));
            fs::create_dir_all(&dir).map_err(|source| Cause::io("create", &dir, source))?;
            Ok(step)
        })
        .await
    }

    /// The root disk: a fresh one, or one with the changes in `saved`, which are copied and never written to.
    async fn disk(&mut self, image: Image, saved: Option<PathBuf>) -> Result<RootDisk, Cause> {
        let (host, identity, reaper) =
            (Arc::clone(&self.host), self.identity.clone(), self.host.reaper.clone());
        building(&mut self.undo, &reaper, move |undo| {
            let cow = identity.dirs.disk();
            let changes = cow.clone();
            undo.push("the root disk's changes", move |_| Ok(unless_missing(fs::remove_file(changes))?));
            if let Some(saved) = saved {
                clone_file(&saved, &cow).map_err(|source| Cause::io("copy", &saved, source))?;
            }
            let spec =
                DiskSpec { sandbox: &identity.id, image: &image.rootfs, cow: &cow, size: identity.spec.disk };
            Ok(host.disks.attach(&spec, undo)?)
        })
        .await
    }

    async fn network(&mut self) -> Result<Slot, Cause> {
        let (host, identity, reaper) =
            (Arc::clone(&self.host), self.identity.clone(), self.host.reaper.clone());
        building(&mut self.undo, &reaper, move |undo| {
            let mut tried = 0;
            loop {
                tried = host.slots.claim(tried, undo)?;
                match host.net.slot(SlotSpec { sandbox: identity.id.clone(), index: tried }, undo) {
                    // Another host on this machine has it.
                    Err(NetError::IndexTaken { .. }) => continue,
                    result => return Ok(result?),
                }
            }
        })
        .await
    }

    /// The fault server for `memory`. What ends it early ends the guest too.
    async fn paging(&mut self, memory: &MemoryImage) -> Result<Paging, Cause> {
        let pages = ImagePages(memory.reader());
        let socket = self.identity.dirs.fault_socket();
        let (failure, killer) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::<Killer>::new()));
        let (report, end) = (Arc::clone(&failure), Arc::clone(&killer));
        let on_failure = move |error| {
            let _ = report.set(error);
            if let Some(killer) = end.get() {
                killer.kill();
            }
        };
        let options =
            FaultServerOptions { on_failure: Some(Box::new(on_failure)), ..FaultServerOptions::default() };
        let reaper = self.host.reaper.clone();
        let server = building(&mut self.undo, &reaper, move |undo| {
            FaultServer::bind(&socket, Arc::new(pages), options, undo)
        })
        .await?;
        Ok(Paging { server, failure, killer })
    }

    async fn monitor(&mut self, disk: &RootDisk, slot: &Slot) -> Result<MonitorProcess, Cause> {
        let dirs = &self.identity.dirs;
        let id = self.identity.id.clone();
        let mut spec = MonitorSpec::new(self.host.monitor.clone(), id, dirs.api_socket(), dirs.console());
        spec.netns = Some(slot.netns().to_owned());
        spec.disk = Some(DiskMount { source: disk.device().to_owned() });
        let reaper = self.host.reaper.clone();
        let monitor =
            building(&mut self.undo, &reaper, move |undo| MonitorProcess::spawn(spec, undo)).await?;
        monitor.wait_ready(API_LIMIT).await?;
        Ok(monitor)
    }

    fn live(
        &self,
        monitor: MonitorProcess,
        disk: RootDisk,
        image: Digest,
        slot: Slot,
        paging: Option<Paging>,
    ) -> Live {
        let agent = agent_client(slot, &self.identity.token);
        Live { identity: self.identity.clone(), monitor, disk, image, agent, paging }
    }
}

/// Tells a fresh monitor what machine to be.
async fn configure(
    monitor: &MonitorProcess,
    identity: &Identity,
    guest: &GuestFiles,
    slot: &Slot,
) -> Result<(), Cause> {
    let SandboxSpec { vcpus, memory, .. } = &identity.spec;
    let client = monitor.client();
    client
        .put_machine_config(&MachineConfig {
            vcpu_count: *vcpus,
            mem_size_mib: memory.0 as usize,
            // Without it a diff snapshot would hold everything resident.
            track_dirty_pages: true,
            ..MachineConfig::default()
        })
        .await?;
    client
        .put_boot_source(&BootSource {
            kernel_image_path: guest.kernel.clone(),
            initrd_path: Some(guest.initramfs.clone()),
            boot_args: Some(command_line(&identity.id, slot.guest())),
        })
        .await?;
    client
        .put_drive(&Drive {
            drive_id: "root".into(),
            path_on_host: Some(ROOT_DISK_PATH.into()),
            // The initramfs mounts it: the monitor must not add `root=` to the command line.
            is_root_device: false,
            is_read_only: Some(false),
            // A guest's `sync` reaches the disk.
            cache_type: Some(CacheType::Writeback),
            ..Drive::default()
        })
        .await?;
    client
        .put_network_interface(&NetworkInterface {
            iface_id: "eth0".into(),
            host_dev_name: slot.tap().into(),
            guest_mac: Some(slot.guest().mac.to_string()),
            ..NetworkInterface::default()
        })
        .await?;
    client.put_entropy(&EntropyDevice::default()).await?;
    Ok(())
}

/// The kernel's command line: a quiet boot (every byte on the serial console costs a VM exit), no waiting after a
/// panic, and what the agent needs before it can be talked to.
fn command_line(id: &SandboxId, net: &GuestNet) -> String {
    let dns: Vec<String> = net.dns.iter().map(ToString::to_string).collect();
    format!(
        "console=ttyS0 quiet loglevel=1 reboot=k panic=-1 random.trust_cpu=on \
         wrenn.root=/dev/vda wrenn.ip={}/{} wrenn.gw={} wrenn.dns={} wrenn.hostname={id}",
        net.ip,
        net.prefix,
        net.gateway,
        dns.join(","),
    )
}

/// A client whose connections begin inside the sandbox's network namespace.
fn agent_client(slot: Slot, token: &AccessToken) -> AgentClient {
    let slot = Arc::new(slot);
    let dial = move || {
        let slot = Arc::clone(&slot);
        Box::pin(async move { slot.connect(AGENT_PORT, DIAL_LIMIT).await }) as _
    };
    AgentClient::new(Arc::new(dial), token.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_what_the_agent_reads() {
        let id = SandboxId::random();
        let line = command_line(&id, &GuestNet::new(vec![[1, 1, 1, 1].into()]));
        assert!(line.starts_with("console=ttyS0 quiet "));
        assert!(line.contains(" wrenn.ip=169.254.0.21/30 wrenn.gw=169.254.0.22 wrenn.dns="));
        assert!(line.ends_with(&format!("wrenn.hostname={id}")));
        // COMMAND_LINE_SIZE of x86 is 2048; Firecracker adds its own words to ours.
        assert!(line.len() < 1024);
    }
}

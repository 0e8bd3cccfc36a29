//! What has been configured before boot.
//!
//! Everything is checked, and opened, when it is configured: a wrong path or a missing TAP is told then. An entry
//! that is configured again replaces its former self.

use wrenn_vmm::api::{BootSource, Drive, EntropyDevice, HugePages, MachineConfig, NetworkInterface};

use crate::api::VmConfig;
use crate::boot::{self, BootError, Kernel, KernelError};
use crate::devices::{Block, BlockError, Net, NetError, Rng, VirtioDevice};
use crate::file::{FileError, open_to_read};
use crate::limits::{self, LimitError};
use crate::machine::StartPlan;

/// The command line of a kernel that was given none.
const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 quiet";

/// A configuration that cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error("wrenn-monitor does not offer {option}: leave it out")]
    Unsupported { option: &'static str },
    #[error("the boot source cannot be used")]
    Kernel(#[from] KernelError),
    #[error("the boot source's initial RAM disk cannot be used")]
    Initrd(#[from] FileError),
    #[error("the boot source's command line cannot be used")]
    Cmdline(#[from] BootError),
    #[error("the drive cannot be used")]
    Drive(#[from] BlockError),
    #[error("drive {other:?} is the root device already")]
    SecondRoot { other: String },
    #[error("the network interface cannot be used")]
    Network(#[from] NetError),
    #[error("interface {other:?} has the address {mac:?} already")]
    MacTaken { other: String, mac: String },
    #[error("there is nothing to boot: give the microVM a boot source first")]
    NoKernel,
}

/// A device's configuration, and the device while nobody has taken it.
struct Configured<C, D> {
    config: C,
    device: Option<D>,
}

impl<C, D> Configured<C, D> {
    /// The device: the one that was opened to check the configuration, or, if a failed start used that up, another.
    fn take<E>(&mut self, open: impl FnOnce(&C) -> Result<D, E>) -> Result<D, E> {
        self.device.take().map_or_else(|| open(&self.config), Ok)
    }
}

/// Everything that a machine is made from.
#[derive(Default)]
pub(crate) struct Resources {
    machine: MachineConfig,
    machine_configured: bool,
    boot: Option<(BootSource, Kernel)>,
    drives: Vec<Configured<Drive, Block>>,
    networks: Vec<Configured<NetworkInterface, Net>>,
    entropy: Option<EntropyDevice>,
}

impl Resources {
    /// Whether nothing was configured: only then can a snapshot be loaded.
    pub(crate) fn is_untouched(&self) -> bool {
        let Self { machine: _, machine_configured, boot, drives, networks, entropy } = self;
        !machine_configured && boot.is_none() && drives.is_empty() && networks.is_empty() && entropy.is_none()
    }

    /// The machine's configuration.
    pub(crate) fn machine(&self) -> &MachineConfig {
        &self.machine
    }

    /// Everything that was configured.
    pub(crate) fn describe(&self) -> VmConfig {
        VmConfig {
            boot_source: self.boot.as_ref().map(|(source, _)| source.clone()),
            machine_config: self.machine.clone(),
            drives: self.drives.iter().map(|drive| drive.config.clone()).collect(),
            network_interfaces: self.networks.iter().map(|network| network.config.clone()).collect(),
            entropy: self.entropy.clone(),
            logger: None,
        }
    }

    pub(crate) fn set_machine(&mut self, config: MachineConfig) -> Result<(), ConfigError> {
        limits::check_vcpus(config.vcpu_count.into(), config.smt)?;
        limits::check_memory(config.mem_size_mib)?;
        if config.huge_pages.unwrap_or_default() != HugePages::None {
            return Err(ConfigError::Unsupported { option: "huge pages" });
        }
        if config.cpu_template.unwrap_or_default() != Default::default() {
            return Err(ConfigError::Unsupported { option: "CPU templates" });
        }
        self.machine = config;
        self.machine_configured = true;
        Ok(())
    }

    pub(crate) fn set_boot(&mut self, source: BootSource) -> Result<(), ConfigError> {
        let kernel = Kernel::open(&source.kernel_image_path)?;
        if let Some(initrd) = &source.initrd_path {
            open_to_read(initrd)?;
        }
        boot::check_cmdline(source.boot_args.as_deref().unwrap_or_default())?;
        self.boot = Some((source, kernel));
        Ok(())
    }

    pub(crate) fn set_drive(&mut self, drive: Drive) -> Result<(), ConfigError> {
        let others =
            || self.drives.iter().map(|other| &other.config).filter(|it| it.drive_id != drive.drive_id);
        if let Some(other) = others().find(|other| other.is_root_device && drive.is_root_device) {
            return Err(ConfigError::SecondRoot { other: other.drive_id.clone() });
        }
        let place = self.drives.iter().position(|other| other.config.drive_id == drive.drive_id);
        self.check_room(place)?;
        let device = Some(Block::open(&drive)?);
        put(&mut self.drives, place, Configured { config: drive, device });
        Ok(())
    }

    pub(crate) fn set_network(&mut self, network: NetworkInterface) -> Result<(), ConfigError> {
        let same = |other: &&Configured<NetworkInterface, Net>| {
            other.config.iface_id != network.iface_id
                && other.config.guest_mac.is_some()
                && other.config.guest_mac == network.guest_mac
        };
        if let Some(other) = self.networks.iter().find(same) {
            let (other, mac) = (other.config.iface_id.clone(), network.guest_mac.unwrap_or_default());
            return Err(ConfigError::MacTaken { other, mac });
        }
        let place = self.networks.iter().position(|other| other.config.iface_id == network.iface_id);
        self.check_room(place)?;
        // A TAP has one holder: the interface that is replaced lets go of it first.
        if let Some(place) = place {
            self.networks[place].device = None;
        }
        let device = Some(Net::open(&network)?);
        put(&mut self.networks, place, Configured { config: network, device });
        Ok(())
    }

    pub(crate) fn set_entropy(&mut self, entropy: EntropyDevice) -> Result<(), ConfigError> {
        self.check_room(self.entropy.as_ref().map(|_| 0))?;
        self.entropy = Some(entropy);
        Ok(())
    }

    /// Whether there is room for a device that replaces the one at `place`, or else is one more.
    fn check_room(&self, place: Option<usize>) -> Result<(), ConfigError> {
        let count = self.drives.len() + self.networks.len() + usize::from(self.entropy.is_some());
        Ok(limits::check_virtio_devices(count + usize::from(place.is_none()))?)
    }

    /// Hands everything over to be booted by `start`. The devices are used up, the configuration stays.
    pub(crate) fn start<T, E: From<ConfigError>>(
        &mut self,
        start: impl FnOnce(StartPlan<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let virtio = self.take_devices()?;
        let (source, kernel) = self.boot.as_ref().ok_or(ConfigError::NoKernel)?;
        start(StartPlan {
            config: self.machine.clone(),
            kernel,
            initrd: source.initrd_path.as_deref(),
            cmdline: &self.cmdline(source),
            virtio,
        })
    }

    /// The devices, the root drive first, which makes it the guest's `vda`.
    fn take_devices(&mut self) -> Result<Vec<Box<dyn VirtioDevice>>, ConfigError> {
        let mut virtio: Vec<Box<dyn VirtioDevice>> = Vec::new();
        self.drives.sort_by_key(|drive| !drive.config.is_root_device);
        for drive in &mut self.drives {
            virtio.push(Box::new(drive.take(Block::open)?));
        }
        for network in &mut self.networks {
            virtio.push(Box::new(network.take(Net::open)?));
        }
        if let Some(entropy) = &self.entropy {
            virtio.push(Box::new(Rng::new(entropy)));
        }
        Ok(virtio)
    }

    /// The kernel's command line, with the root device that the drives imply.
    fn cmdline(&self, source: &BootSource) -> String {
        let mut cmdline = source.boot_args.clone().unwrap_or_else(|| DEFAULT_CMDLINE.to_owned());
        if let Some(root) = self.drives.iter().map(|drive| &drive.config).find(|drive| drive.is_root_device) {
            let device = match &root.partuuid {
                Some(id) => format!("PARTUUID={id}"),
                None => "/dev/vda".to_owned(),
            };
            let mode = if root.is_read_only.unwrap_or(false) { "ro" } else { "rw" };
            cmdline.push_str(&format!(" root={device} {mode}"));
        }
        cmdline
    }
}

fn put<T>(list: &mut Vec<T>, place: Option<usize>, item: T) {
    match place {
        Some(place) => list[place] = item,
        None => list.push(item),
    }
}

//! Starting a kernel without firmware: load it, tell it about the machine, point the first vCPU at it.

use std::io;
use std::path::{Path, PathBuf};

use crate::file::FileError;
use crate::layout::CMDLINE_SIZE;
use crate::memory::GuestMemory;

mod acpi;
mod kernel;
mod params;

pub(crate) use acpi::SLEEP_TYPE_OFF;
pub(crate) use kernel::{Kernel, KernelError};
pub(crate) use params::check_cmdline;

/// How a kernel expects to be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// 32-bit protected mode, `hvm_start_info` in EBX.
    Pvh,
    /// Long mode, `boot_params` in RSI.
    Linux64,
}

/// Where, and how, the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) protocol: Protocol,
    pub(crate) address: u64,
}

/// A kernel could not be made ready to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("there is no initial RAM disk")]
    InitrdFile(#[from] FileError),
    #[error("the initial RAM disk {path:?} could not be read")]
    Initrd { path: PathBuf, source: io::Error },
    #[error(
        "the initial RAM disk {path:?} of {size} bytes does not fit beside the kernel: give the guest more memory"
    )]
    InitrdTooLarge { path: PathBuf, size: u64 },
    #[error("the kernel's command line has {len} bytes, and {} are the most", CMDLINE_SIZE - 1)]
    CmdlineTooLong { len: usize },
    #[error("the kernel's command line has a NUL in it")]
    CmdlineHasNul,
    #[error("the ACPI tables would take {len} bytes, more than there is room for")]
    AcpiTooLarge { len: usize },
    #[error("guest memory at {address:#x} could not be written: give the guest more memory")]
    Write { address: u64, source: vm_memory::GuestMemoryError },
    #[error("the kernel's parameters could not be written")]
    Params(#[source] linux_loader::configurator::Error),
}

/// What is to be booted.
#[derive(Debug)]
pub(crate) struct BootPlan<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) cmdline: &'a str,
    pub(crate) vcpus: u8,
    pub(crate) virtio_devices: usize,
}

/// Puts the kernel and all that it needs into guest memory, and says where it is to be entered.
pub(crate) fn load(guest: &GuestMemory, plan: &BootPlan<'_>) -> Result<Entry, BootError> {
    let kernel = plan.kernel.load(guest)?;
    let initrd = plan.initrd.map(|path| params::load_initrd(guest, path, &kernel)).transpose()?;
    acpi::write(guest, plan.vcpus, plan.virtio_devices)?;
    params::write(guest, &kernel, plan.cmdline, initrd)?;
    Ok(kernel.entry)
}

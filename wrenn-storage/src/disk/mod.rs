//! Root disks: a sandbox's own writable disk over an image that all share.
//!
//! Two backends, chosen once per host by [`RootDisks::probe`]:
//!
//! - **Device-mapper** ([`BackendKind::DeviceMapper`]): one read-only loop device per image, a sparse file with the
//!   changes per sandbox, and a snapshot device over both. Creating one takes milliseconds whatever the image's size.
//! - **Copy** ([`BackendKind::Copy`]), where there is no device-mapper: the image is cloned (a reflink where the file
//!   system can, else a sparse copy) and the clone is the disk.
//!
//! Both show the same: [`RootDisk::device`] to give to a monitor, [`RootDisk::cow`] the one file that holds the
//! sandbox's changes. The changes fit that one image only, byte for byte.
//!
//! ```text
//!   absent ──attach──> attached ──detach──> detached (the cow file stays) ──attach──> attached …
//! ```
//!
//! Failure paths:
//! - An `attach` that fails leaves no cow file behind that was not there before, and no device once the undo list
//!   has run. Loop devices clear themselves with their last user.
//! - A process that dies leaves its mapped devices. The next `attach` for the same sandbox removes them first;
//!   [`RootDisks::attached`] finds them by name.
//! - `detach` retries "Device or resource busy", and nothing else, until its deadline: the monitor that had the disk
//!   open must have been reaped before.

mod clone;
mod copy;
mod error;
mod inventory;
mod loops;
mod mapper;
mod node;
mod snapshot;
#[allow(unsafe_code)]
mod sys;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use wrenn_base::{Bytes, Deadline, HostId, SandboxId, UndoList};

pub use clone::{CloneKind, clone_file};
pub use error::DiskError;
pub use inventory::{loop_devices_under, mapped_devices_of};

use mapper::Mapper;
use snapshot::Names;

/// Disks are whole blocks of this many bytes: ext4's block, and the unit of copy-on-write.
const BLOCK: u64 = 4096;

/// Which backend [`RootDisks::probe`] is to choose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// Device-mapper where it works, else copies.
    #[default]
    Auto,
    /// Device-mapper, or an error.
    DeviceMapper,
    /// Copies.
    Copy,
}

/// How root disks are made on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendKind {
    /// Device-mapper snapshots over shared images.
    DeviceMapper,
    /// A clone of the image per sandbox.
    Copy,
}

/// Makes root disks for one host. Clones share everything.
///
/// All methods block.
#[derive(Debug, Clone)]
pub struct RootDisks {
    host: HostId,
    /// `None`: the copy backend.
    mapper: Option<Arc<Mapper>>,
}

/// What [`RootDisks::attach`] is to attach.
#[derive(Debug, Clone, Copy)]
pub struct DiskSpec<'a> {
    /// Whose disk it is.
    pub sandbox: &'a SandboxId,
    /// The image's file system; it must not change while a disk over it exists.
    pub image: &'a Path,
    /// The file with the sandbox's changes: made if it is not there, else continued with.
    pub cow: &'a Path,
    /// The disk's size, at least the image's and a multiple of 4 KiB; `None` for the image's own. What lies beyond
    /// the image reads as zeros. A cow file is always attached with the size it was made with.
    pub size: Option<Bytes>,
}

impl RootDisks {
    /// Finds out how root disks are made here.
    ///
    /// Loads the kernel modules of the device-mapper backend if they are modules and not loaded yet.
    ///
    /// # Errors
    /// [`DiskError::NoDeviceMapper`] where device-mapper was asked for and does not work; with
    /// [`BackendChoice::Auto`] that is logged, and copies it is.
    pub fn probe(host: &HostId, choice: BackendChoice) -> Result<Self, DiskError> {
        let mapper = match choice {
            BackendChoice::Copy => None,
            BackendChoice::DeviceMapper => Some(Mapper::probe(host)?),
            BackendChoice::Auto => match Mapper::probe(host) {
                Ok(mapper) => Some(mapper),
                Err(error) => {
                    let reason = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::info!(%error, reason, "root disks will be copies of their images");
                    None
                }
            },
        };
        Ok(Self { host: host.clone(), mapper: mapper.map(Arc::new) })
    }

    /// The backend in use.
    pub fn backend(&self) -> BackendKind {
        if self.mapper.is_some() { BackendKind::DeviceMapper } else { BackendKind::Copy }
    }

    /// Attaches a sandbox's disk.
    ///
    /// Registers its undo, which detaches the disk (without flushing it) and keeps the cow file: that is the caller's,
    /// like the directory it lies in.
    ///
    /// # Errors
    /// [`DiskError::WrongLength`] or [`DiskError::Damaged`] for a cow file that cannot be continued with,
    /// [`DiskError::Busy`] where an earlier disk of the same sandbox is still in use. A cow file that was there is
    /// unchanged, one that was not is not there.
    pub fn attach(&self, spec: &DiskSpec<'_>, undo: &mut UndoList) -> Result<RootDisk, DiskError> {
        let geometry = Geometry::of(spec)?;
        let (device, attachment) = match &self.mapper {
            None => (copy::attach(spec, geometry)?, Arc::new(Attachment::default())),
            Some(mapper) => {
                snapshot::attach(mapper, &Names::of(&self.host, spec.sandbox), spec, geometry, undo)?
            }
        };
        tracing::debug!(sandbox = %spec.sandbox, device = %device.display(), "root disk attached");
        Ok(RootDisk { device, cow: spec.cow.to_owned(), attachment })
    }

    /// The sandboxes of this host that have mapped devices, attached by this process or by one that died.
    ///
    /// # Errors
    /// [`DiskError::Io`] where the kernel's list of block devices cannot be read.
    pub fn attached(&self) -> Result<Vec<SandboxId>, DiskError> {
        let names = mapped_devices_of(&self.host).map_err(DiskError::io("read", Path::new("/sys/block")))?;
        let mut sandboxes: Vec<_> =
            names.iter().filter_map(|name| Names::sandbox_of(&self.host, name)).collect();
        sandboxes.sort();
        sandboxes.dedup();
        Ok(sandboxes)
    }

    /// Removes whatever a process that died left mapped for `sandbox`. Nothing there is fine; files stay.
    ///
    /// # Errors
    /// [`DiskError::Busy`] where something still uses a device when the deadline has passed.
    pub fn remove(&self, sandbox: &SandboxId, deadline: Deadline) -> Result<(), DiskError> {
        match &self.mapper {
            Some(mapper) => Names::of(&self.host, sandbox).remove(mapper, deadline),
            None => Ok(()),
        }
    }
}

/// An attached root disk.
///
/// Dropping it does nothing: [`detach`](Self::detach) it, or run the undo list it was registered with.
#[derive(Debug)]
pub struct RootDisk {
    device: PathBuf,
    cow: PathBuf,
    attachment: Arc<Attachment>,
}

impl RootDisk {
    /// The block device, or plain file, that is the disk.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The file that holds the sandbox's changes: all there is to keep.
    pub fn cow(&self) -> &Path {
        &self.cow
    }

    /// Takes the disk away from the host and makes the changes durable. Doing so twice is fine.
    ///
    /// The monitor must have been reaped. Blocks while the device is busy, and for as long as the changes take to be
    /// written out.
    ///
    /// # Errors
    /// [`DiskError::Busy`] where something still uses it when the deadline has passed: it stays attached and can be
    /// detached again. [`DiskError::Io`] where the changes may not be durable: it is detached.
    pub fn detach(&self, deadline: Deadline) -> Result<(), DiskError> {
        self.attachment.release(deadline)?;
        fs::File::open(&self.cow)
            .and_then(|file| file.sync_all())
            .and_then(|()| crate::durable::sync_parent(&self.cow))
            .map_err(DiskError::io("flush", &self.cow))
    }
}

/// What an attached disk holds in the kernel. Shared by the [`RootDisk`] and its undo: whichever comes first
/// releases it, so that an undo which runs late never takes away the same sandbox's next disk.
#[derive(Debug, Default)]
struct Attachment(Mutex<Option<Mapped>>);

#[derive(Debug)]
struct Mapped {
    mapper: Arc<Mapper>,
    names: Names,
    /// A device node that we made, where the system makes none.
    node: Option<PathBuf>,
}

impl Attachment {
    fn release(&self, deadline: Deadline) -> Result<(), DiskError> {
        let mut mapped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = mapped.as_ref() {
            held.names.remove(&held.mapper, deadline)?;
            if let Some(node) = &held.node {
                crate::durable::remove(node).map_err(DiskError::io("remove", node))?;
            }
        }
        *mapped = None;
        Ok(())
    }
}

/// The sizes of a disk, checked.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    /// The image's bytes, whole blocks, not 0.
    image: u64,
    /// The disk's bytes, whole blocks, at least the image's.
    disk: u64,
}

impl Geometry {
    fn of(spec: &DiskSpec<'_>) -> Result<Self, DiskError> {
        let image = fs::metadata(spec.image).map_err(DiskError::io("open image", spec.image))?.len();
        if image == 0 || !image.is_multiple_of(BLOCK) {
            return Err(DiskError::NotWholeBlocks { image: spec.image.to_owned(), size: Bytes(image) });
        }
        let disk = spec.size.map_or(image, Bytes::get);
        // The largest offset a file can have bounds the disk too.
        if !disk.is_multiple_of(BLOCK) || disk > i64::MAX as u64 / 2 {
            return Err(DiskError::BadSize { asked: Bytes(disk) });
        }
        if disk < image {
            return Err(DiskError::TooSmall {
                image: spec.image.to_owned(),
                asked: Bytes(disk),
                needed: Bytes(image),
            });
        }
        Ok(Self { image, disk })
    }
}

/// Whether a cow file is there; one of another length than `expected` is refused.
fn cow_exists(cow: &Path, expected: u64) -> Result<bool, DiskError> {
    match fs::metadata(cow) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(DiskError::io("open", cow)(e)),
        Ok(meta) if meta.len() == expected => Ok(true),
        Ok(meta) => Err(DiskError::WrongLength { cow: cow.to_owned(), expected, found: meta.len() }),
    }
}

/// Makes the cow file under a passing name and gives it its own once it is whole.
fn create_cow(cow: &Path, fill: impl FnOnce(&fs::File) -> std::io::Result<()>) -> Result<(), DiskError> {
    let mut partial = cow.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    // Not durable yet, and need not be: it is worth keeping only once it was detached, which makes it so.
    let result = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&partial)
        .and_then(|file| fill(&file))
        .and_then(|()| fs::rename(&partial, cow));
    if result.is_err() {
        let _ = fs::remove_file(&partial);
    }
    result.map_err(DiskError::io("create", cow))
}

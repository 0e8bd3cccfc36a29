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
//! sandbox's changes. The changes fit that one image only, byte for byte. `tests/common` has one body of tests for both.
//!
//! The backend is an enum and not a trait: there are these two, nobody brings a third, what they have in common (sizes,
//! the cow file, the undo) is around them, and each of their few operations is one `match` that a new backend could not
//! be forgotten in.
//!
//! ```text
//!   absent ──attach──> attached ──detach──> detached (the cow file stays) ──attach──> attached …
//!                         └──────── flatten ────────┴──> a plain file: an image of its own
//! ```
//!
//! Failure paths:
//! - An `attach` that fails leaves no cow file behind that was not there before, and no device once the undo list
//!   has run. Loop devices clear themselves with their last user.
//! - A cow file is checked whole before the kernel gets it, and one that is damaged is refused as it is.
//! - A process that dies leaves its mapped devices. The next `attach` for the same sandbox removes them first;
//!   [`RootDisks::attached`] finds them by name.
//! - `detach` retries "Device or resource busy", and nothing else, until its deadline: the monitor that had the disk
//!   open must have been reaped before.

mod busy;
mod clone;
mod copy;
mod cow;
mod error;
mod flatten;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod inventory;
mod loops;
mod mapper;
mod node;
mod snapshot;
mod store;
#[allow(unsafe_code)]
mod sys;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use wrenn_base::{Bytes, Deadline, HostId, SandboxId, UndoList};

pub use clone::{CloneKind, clone_file};
pub use error::{CowFault, DiskError};
pub use flatten::Flattened;
pub use inventory::{loop_devices_under, mapped_devices_of};

use cow::Geometry;
use flatten::Flattening;
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
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    DeviceMapper(Arc<Mapper>),
    Copy,
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
        let mapper = || Mapper::probe(host).map(|mapper| Backend::DeviceMapper(Arc::new(mapper)));
        let backend = match choice {
            BackendChoice::Copy => Backend::Copy,
            BackendChoice::DeviceMapper => mapper()?,
            BackendChoice::Auto => mapper().unwrap_or_else(|error| {
                let reason = std::error::Error::source(&error).map(ToString::to_string);
                tracing::info!(%error, reason, "root disks will be copies of their images");
                Backend::Copy
            }),
        };
        Ok(Self { host: host.clone(), backend })
    }

    /// The backend in use.
    pub fn backend(&self) -> BackendKind {
        match self.backend {
            Backend::DeviceMapper(_) => BackendKind::DeviceMapper,
            Backend::Copy => BackendKind::Copy,
        }
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
        let (device, attachment) = match &self.backend {
            Backend::Copy => (copy::attach(spec, geometry)?, Arc::new(Attachment::default())),
            Backend::DeviceMapper(mapper) => {
                snapshot::attach(mapper, &Names::of(&self.host, spec.sandbox), spec, geometry, undo)?
            }
        };
        tracing::debug!(sandbox = %spec.sandbox, device = %device.display(), "root disk attached");
        Ok(RootDisk { device, cow: spec.cow.to_owned(), attachment })
    }

    /// Takes over the disk that an earlier process attached for `sandbox`, with its changes in `cow`, and registers the undo of
    /// [`attach`](Self::attach).
    ///
    /// # Errors
    /// [`DiskError::Mapper`] or [`DiskError::Io`] where it is not there.
    pub fn take_over(
        &self,
        sandbox: &SandboxId,
        cow: &Path,
        undo: &mut UndoList,
    ) -> Result<RootDisk, DiskError> {
        let (device, attachment) = match &self.backend {
            Backend::Copy => (cow.to_owned(), Arc::new(Attachment::default())),
            Backend::DeviceMapper(mapper) => {
                snapshot::take_over(mapper, &Names::of(&self.host, sandbox), cow, undo)?
            }
        };
        fs::metadata(cow).map_err(DiskError::io("look at", cow))?;
        Ok(RootDisk { device, cow: cow.to_owned(), attachment })
    }

    /// Writes what a sandbox's disk shows to the new file `target`: an image that needs no other.
    ///
    /// Maps nothing, and only reads: the image and the cow file are left as they are. The disk is detached, or it is
    /// attached, nobody writes to it, and what was written to its device has been synced. Holes are not read, and
    /// blocks of zeros become holes. After each piece of up to a mebibyte that was read `pace` is told the piece's
    /// length: it may wait to leave the file system to others, or end the work.
    ///
    /// # Errors
    /// [`DiskError::Cancelled`] where `pace` said so, [`DiskError::WrongLength`] or [`DiskError::Damaged`] for a cow file
    /// that cannot be read, and else as [`attach`](Self::attach) for what fits no disk. [`DiskError::Io`] otherwise, also
    /// where there is no cow file and where `target` is there already; that is then untouched. In all cases nothing new
    /// is left.
    ///
    /// ```
    /// # use std::ops::ControlFlow;
    /// # use std::time::Duration;
    /// # use wrenn_base::{Bytes, Deadline, HostId, Reaper, SandboxId, UndoList};
    /// # use wrenn_storage::{BackendChoice, Collision, DiskSpec, ImageDetails, ImageRegistry, RootDisks};
    /// # let dir = tempfile::tempdir()?;
    /// # let (image, cow) = (dir.path().join("image"), dir.path().join("cow"));
    /// # let mut content = vec![0; 1 << 20];
    /// # content[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    /// # std::fs::write(&image, content)?;
    /// # let mut undo = UndoList::new(&Reaper::start());
    /// # let choice = BackendChoice::Copy;
    /// let disks = RootDisks::probe(&HostId::random(), choice)?;
    /// let sandbox = SandboxId::random();
    /// let spec = DiskSpec { sandbox: &sandbox, image: &image, cow: &cow, size: Some(Bytes(4 << 20)) };
    /// let disk = disks.attach(&spec, &mut undo)?;
    /// // … a guest runs on `disk.device()` …
    /// disk.detach(Deadline::after(Duration::from_secs(5)))?;
    ///
    /// let registry = ImageRegistry::open(dir.path())?;
    /// let staged = registry.stage(&"mine".parse()?)?;
    /// let flat = disks.flatten(&spec, &staged.rootfs(), |_| ControlFlow::Continue(()))?;
    /// assert!(flat.size == Bytes(4 << 20) && flat.allocated < flat.size);
    /// let image = registry.register(staged, ImageDetails::default(), Collision::Refuse, &mut |_| ())?;
    /// assert_eq!(image.size, flat.size);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn flatten(
        &self,
        spec: &DiskSpec<'_>,
        target: &Path,
        mut pace: impl FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<Flattened, DiskError> {
        let geometry = Geometry::of(spec)?;
        let mut flattening = Flattening::begin(target, geometry.disk, &mut pace)?;
        match &self.backend {
            Backend::DeviceMapper(_) => snapshot::flatten(spec, geometry, &mut flattening)?,
            Backend::Copy => copy::flatten(spec, geometry, &mut flattening)?,
        }
        let flattened = flattening.finish()?;
        tracing::debug!(sandbox = %spec.sandbox, target = %target.display(), ?flattened, "root disk flattened");
        Ok(flattened)
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
        match &self.backend {
            Backend::DeviceMapper(mapper) => Names::of(&self.host, sandbox).remove(mapper, deadline),
            Backend::Copy => Ok(()),
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

    /// What the changes take of their file system, now; more while the disk is attached and written to.
    ///
    /// With the copy backend that is the whole disk, of which a reflink may share most with the image.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    pub fn allocated(&self) -> Result<Bytes, DiskError> {
        cow::allocated(&self.cow)
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

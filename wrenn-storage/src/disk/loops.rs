//! Loop devices: a file as a block device.
//!
//! Every loop device here clears itself when its last user closes it (LO_FLAGS_AUTOCLEAR), and its users are the
//! mapped devices above it. So the kernel is the one that counts references, across processes and across crashes:
//! there is no book to keep and none to get wrong.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use linux_raw_sys::loop_device as uapi;
use rustix::fs::{FlockOperation, flock};

use super::node::{self, DeviceNumber};
use super::{DiskError, inventory, sys};

const CONTROL: &str = "/dev/loop-control";
/// The loop driver's major number (the kernel's Documentation/admin-guide/devices.txt).
const MAJOR: u32 = 7;
const READ_ONLY: u32 = uapi::LO_FLAGS_READ_ONLY as u32;
const AUTOCLEAR: u32 = uapi::LO_FLAGS_AUTOCLEAR as u32;
const DIRECT_IO: u32 = uapi::LO_FLAGS_DIRECT_IO as u32;

/// How often a free device may be snatched away before it is an error.
const ATTEMPTS: usize = 64;

/// A loop device that stays attached for as long as this, or anything else, has it open.
#[derive(Debug)]
pub(super) struct LoopDevice {
    number: DeviceNumber,
    _open: File,
}

impl LoopDevice {
    pub(super) fn number(&self) -> DeviceNumber {
        self.number
    }

    /// The read-only device that everybody on this machine shares for `image`; `beside` is a path in a directory where
    /// a device node may be made.
    ///
    /// Its reads go through the page cache: what one sandbox read from the image is there for the next.
    pub(super) fn shared(image: &Path, beside: &Path) -> Result<Self, DiskError> {
        let attach = || {
            // Held until this ends: two who attach the same image at once find one device. Not the descriptor that
            // becomes the device's backing: the lock would last as long as the device.
            let lock = File::open(image)?;
            flock(&lock, FlockOperation::LockExclusive)?;
            let backing = File::open(image)?;
            match find(image, &backing, beside)? {
                Some(device) => Ok(device),
                None => configure(&backing, READ_ONLY, beside),
            }
        };
        attach().map_err(|source| DiskError::Loop { backing: image.to_owned(), source })
    }

    /// A device of one's own for `file`, for reading and writing.
    ///
    /// It bypasses the page cache where the file system can: what is above has one already.
    pub(super) fn exclusive(file: &Path) -> Result<Self, DiskError> {
        let attach = || {
            let backing = OpenOptions::new().read(true).write(true).open(file)?;
            match configure(&backing, DIRECT_IO, file) {
                // Newer kernels refuse direct I/O where older ones silently did without.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => configure(&backing, 0, file),
                result => result,
            }
        };
        attach().map_err(|source| DiskError::Loop { backing: file.to_owned(), source })
    }
}

/// The device that already shows all of `image` read-only, if any.
fn find(image: &Path, backing: &File, beside: &Path) -> io::Result<Option<LoopDevice>> {
    let meta = backing.metadata()?;
    let path = image.canonicalize()?;
    for (name, shown) in inventory::block_attributes("loop", "loop/backing_file")? {
        // The path only narrows the search: opening a device keeps it alive, so strangers' are left alone.
        if Path::new(&shown) != path {
            continue;
        }
        let Some(minor) = name.strip_prefix("loop").and_then(|minor| minor.parse().ok()) else { continue };
        let number = DeviceNumber { major: MAJOR, minor };
        let Ok(open) = node::open(&name, number, false, beside) else { continue };
        // Asked only now: since it is open, what it answers stays true.
        let Some(status) = sys::loop_status(&open)? else { continue };
        let wanted = READ_ONLY | AUTOCLEAR;
        if status.backing == (meta.dev(), meta.ino())
            && status.window == (0, 0)
            && status.flags & wanted == wanted
        {
            return Ok(Some(LoopDevice { number, _open: open }));
        }
    }
    Ok(None)
}

fn configure(backing: &File, flags: u32, beside: &Path) -> io::Result<LoopDevice> {
    let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
    for _ in 0..ATTEMPTS {
        let minor = sys::free_loop_number(&control)?;
        let number = DeviceNumber { major: MAJOR, minor };
        let device = node::open(&format!("loop{minor}"), number, true, beside)?;
        match sys::configure_loop(&device, backing, flags | AUTOCLEAR) {
            Ok(()) => return Ok(LoopDevice { number, _open: device }),
            // Somebody else took it between the two steps.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("every free loop device was taken by somebody else"))
}

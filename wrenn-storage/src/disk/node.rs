//! Device nodes, where nobody makes them.
//!
//! With devtmpfs the kernel itself makes `/dev/loopN` and `/dev/dm-N`, udev or not. In a container `/dev` is often a
//! plain tmpfs with the nodes of the day it was started; there a node is made beside the sandbox's own files.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

/// A block device's major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceNumber {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl std::fmt::Display for DeviceNumber {
    /// As device-mapper tables name a device.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Whether `path` is a node for that block device.
fn is_node(path: &Path, number: DeviceNumber) -> bool {
    fs::metadata(path).is_ok_and(|meta| {
        meta.file_type().is_block_device() && meta.rdev() == makedev(number.major, number.minor)
    })
}

fn make_node(path: &Path, number: DeviceNumber) -> io::Result<()> {
    crate::durable::remove(path)?;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(mknodat(CWD, path, FileType::BlockDevice, mode, makedev(number.major, number.minor))?)
}

/// A node for a block device: the system's own, else one made at `fallback` (then `true`).
pub(super) fn provide(name: &str, number: DeviceNumber, fallback: &Path) -> io::Result<(PathBuf, bool)> {
    let system = Path::new("/dev").join(name);
    if is_node(&system, number) {
        return Ok((system, false));
    }
    make_node(fallback, number)?;
    Ok((fallback.to_owned(), true))
}

/// Opens a block device through a node that lasts only as long as it takes.
pub(super) fn open(name: &str, number: DeviceNumber, write: bool, beside: &Path) -> io::Result<File> {
    let passing = beside.with_extension(format!("{name}-{}", std::process::id()));
    let (path, ours) = provide(name, number, &passing)?;
    let file = OpenOptions::new().read(true).write(write).open(&path);
    if ours {
        fs::remove_file(&path)?;
    }
    file
}

//! What can go wrong with root disks.

use std::io;
use std::path::{Path, PathBuf};

use wrenn_base::Bytes;

/// A root disk cannot be attached, detached, flattened or measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// Device-mapper was asked for and cannot be used.
    #[error(
        "device-mapper cannot be used here ({missing}): run as root, load it with \
         `modprobe -a dm-mod dm-snapshot dm-zero loop`, or let root disks be copies"
    )]
    NoDeviceMapper {
        /// What is missing.
        missing: &'static str,
        /// How that was noticed.
        source: io::Error,
    },
    /// The image is no disk.
    #[error("{} cannot be a root disk: it has {size}, which is not a whole number of 4 KiB blocks", image.display())]
    NotWholeBlocks {
        /// The image.
        image: PathBuf,
        /// Its size.
        size: Bytes,
    },
    /// The size asked for is not a number of whole blocks.
    #[error("a root disk of {asked} is not a whole number of 4 KiB blocks")]
    BadSize {
        /// The size asked for.
        asked: Bytes,
    },
    /// The size asked for is less than the image's.
    #[error("a root disk of {asked} is too small for {}, which has {needed}: ask for that or more", image.display())]
    TooSmall {
        /// The image.
        image: PathBuf,
        /// The size asked for.
        asked: Bytes,
        /// The image's size.
        needed: Bytes,
    },
    /// The file with a sandbox's changes does not have the length that belongs to the disk asked for.
    #[error(
        "{} has {found} bytes where the root disk asked for has {expected}: attach it with the size and the \
         kind of root disk it was made with, or go back to an earlier snapshot if it was truncated",
        cow.display()
    )]
    WrongLength {
        /// The file with the sandbox's changes.
        cow: PathBuf,
        /// The length that fits, in bytes.
        expected: u64,
        /// Its length, in bytes.
        found: u64,
    },
    /// The changes of a sandbox can no longer be read.
    #[error("the root disk's changes in {} are damaged: go back to an earlier snapshot of the sandbox", cow.display())]
    Damaged {
        /// The file with the sandbox's changes.
        cow: PathBuf,
        /// What is wrong with it.
        source: CowFault,
    },
    /// The caller wanted no more of it.
    #[error("flattening the root disk was cancelled")]
    Cancelled,
    /// A device stayed in use until the deadline.
    #[error("device {device} is still in use: end the process that has it open, then try again")]
    Busy {
        /// The device-mapper name.
        device: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Device-mapper refused something.
    #[error("cannot {action} device-mapper device {device}")]
    Mapper {
        /// What was tried, as in "cannot ACTION device-mapper device NAME".
        action: &'static str,
        /// The device-mapper name.
        device: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No loop device could be attached.
    #[error("cannot attach {} to a loop device", backing.display())]
    Loop {
        /// The file that was to be attached.
        backing: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as in "cannot ACTION PATH".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What is wrong with a file that holds the changes of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CowFault {
    /// It is something else.
    #[error("its header is not that of a snapshot's changes")]
    Foreign,
    /// Changes are listed and the header before them is not there.
    #[error("its header is gone")]
    HeaderLost,
    /// The kernel gave the snapshot up.
    #[error("the kernel marked it as invalid, as it does when changes could not be written")]
    Invalidated,
    /// Another kernel's format.
    #[error("it has version {found}, and version 1 is known")]
    Version {
        /// The version stated.
        found: u32,
    },
    /// It was made with chunks of another size.
    #[error("its chunks have {found} sectors instead of {expected}")]
    ChunkSize {
        /// The size stated, in sectors of 512 bytes.
        found: u32,
        /// The size that root disks have.
        expected: u64,
    },
    /// The list of changes goes on after its end: a part of it was lost.
    #[error("a part of its list of changes is gone")]
    ListBroken,
    /// It lists what the disk does not have.
    #[error("it lists chunk {chunk}, which is beyond the end of the disk")]
    OutsideDisk {
        /// The disk's chunk.
        chunk: u64,
    },
    /// It refers to a place where no change can be.
    #[error("it refers to chunk {chunk} of its own, where no change can be")]
    OutsideStore {
        /// The file's chunk.
        chunk: u64,
    },
    /// It lists a chunk twice, or lists two with one place.
    #[error("it has chunk {chunk} of the disk, or its place, twice")]
    Twice {
        /// The disk's chunk.
        chunk: u64,
    },
    /// The kernel does not take it.
    #[error("the kernel calls the snapshot {state:?}")]
    Refused {
        /// The state that device-mapper reports.
        state: String,
    },
}

impl DiskError {
    /// A closure for `map_err`: `source` happened when `path` was to be `action`ed.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

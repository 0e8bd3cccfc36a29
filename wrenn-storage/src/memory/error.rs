//! What can be wrong with a memory image.

use std::io;
use std::path::{Path, PathBuf};

use wrenn_base::Bytes;

use super::layers::LayerId;

/// A memory image could not be made, opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The operating system refused something.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file or directory it concerned.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is not a memory image's manifest at all.
    #[error("{} is not a memory image: its first bytes are not those of a manifest", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The manifest was written by a later version.
    #[error("{} has manifest version {found}; this build reads up to {supported}: use a newer Wrenn", path.display())]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// The version it states.
        found: u32,
        /// The last version that this build reads.
        supported: u32,
    },
    /// The manifest is longer or shorter than it says.
    #[error("{} is {found} bytes long instead of {expected}: it was cut off or added to; take the snapshot again",
            path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The length that the content states (at least, where even the header is cut).
        expected: u64,
        /// The length found.
        found: u64,
    },
    /// The manifest's checksum does not match its content.
    #[error("{} was altered since it was written: its checksum does not match; take the snapshot again", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
    },
    /// The manifest's checksum is right and its content still makes no sense.
    #[error("{} is not a valid manifest: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The rule that is broken.
        reason: String,
    },
    /// A layer that the manifest needs is not there.
    #[error("layer {layer} is missing: there is no {}; restore the file or drop the snapshot", path.display())]
    MissingLayer {
        /// The layer.
        layer: LayerId,
        /// The file that was looked for: the layer's, or that of its checksums.
        path: PathBuf,
    },
    /// A layer's file has another length than the manifest states.
    #[error("layer {layer} is {found} bytes long instead of {expected}: it was cut off or added to")]
    LayerLength {
        /// The layer.
        layer: LayerId,
        /// The length that the manifest states.
        expected: u64,
        /// The length found.
        found: u64,
    },
    /// A layer's checksum file is damaged, or not that of this layer.
    #[error("the checksums of layer {layer} cannot be used: {reason}")]
    Sums {
        /// The layer.
        layer: LayerId,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A block of a layer is not what was written.
    #[error(
        "layer {layer} is corrupt in its 64 KiB block {block}: the storage changed or lost what was written"
    )]
    Corrupt {
        /// The layer.
        layer: LayerId,
        /// The block's number, counted from 0.
        block: u64,
    },
    /// A read or write beyond the guest's memory.
    #[error("{len} bytes at {offset:#x} do not lie within a guest memory of {guest_size}")]
    OutOfRange {
        /// Where it began.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The size of the guest's memory.
        guest_size: Bytes,
    },
    /// A guest memory size that no image can have.
    #[error(
        "a guest memory of {size} is impossible: it has to be a multiple of 4 KiB, at least one page, at most 8 TiB"
    )]
    GuestSize {
        /// The refused size.
        size: Bytes,
    },
    /// A dump whose length is not the guest's memory size.
    #[error("the dump {} is {found} bytes long instead of {expected}: the monitor did not finish it", path.display())]
    DumpLength {
        /// The dump.
        path: PathBuf,
        /// The guest's memory size in bytes.
        expected: u64,
        /// The length found.
        found: u64,
    },
    /// A dump that is not a plain file.
    #[error("the dump {} is not a plain file", path.display())]
    DumpKind {
        /// The dump.
        path: PathBuf,
    },
    /// The file system cannot tell a page that was written from one that was not.
    #[error("the file system of {} does not keep holes page by page ({reason}), so a diff dump in it cannot be \
             trusted: use ext4, xfs or btrfs with blocks of at most 4 KiB, or tmpfs without huge pages", dir.display())]
    CoarseHoles {
        /// The directory that was probed: the dump's.
        dir: PathBuf,
        /// What the probe saw.
        reason: String,
    },
    /// The dump cannot be renamed into the layer directory.
    #[error("the dump {} and the layer directory {} are on different file systems: have the monitor write beside \
             the layers", dump.display(), layers.display())]
    OtherFileSystem {
        /// The dump.
        dump: PathBuf,
        /// The layer directory.
        layers: PathBuf,
    },
    /// Memory was given to a writer in other pieces than whole pages.
    #[error("{len} bytes at {offset:#x} are not whole pages of 4 KiB")]
    PartPages {
        /// Where it began.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// Pages were given to a writer out of order.
    #[error("the pages at {offset:#x} come before the end, {next:#x}, of what was written already")]
    PageOrder {
        /// Where they began.
        offset: u64,
        /// The first offset that could have been written.
        next: u64,
    },
    /// A writer that failed before was used on: its image lacks pages.
    #[error("an earlier part of this image could not be written: drop the writer and begin anew")]
    BrokenWriter,
    /// Whoever was asked for the pace ended the work.
    #[error("merging the layers was cancelled")]
    Cancelled,
    /// Layers cannot be shared by directories that are on different file systems, or mounts of one.
    #[error("the layer directories {} and {} are on different file systems or mounts, so they cannot share layers",
            from.display(), to.display())]
    DirectoriesApart {
        /// The directory that has the layers.
        from: PathBuf,
        /// The one that was to share them.
        to: PathBuf,
    },
    /// The directory that is to share a layer has another file under its name.
    #[error("layer {layer} cannot be shared: {} is another file; remove it if no image uses it", path.display())]
    LayerTaken {
        /// The layer.
        layer: LayerId,
        /// The file that is in the way.
        path: PathBuf,
    },
    /// One image would need more layers than a manifest may list.
    #[error("the image already uses {limit} layers, the most there may be: compact it")]
    TooManyLayers {
        /// The most layers that an image may use.
        limit: usize,
    },
}

impl MemoryError {
    /// For `map_err`: an I/O error with what was being done to which path.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

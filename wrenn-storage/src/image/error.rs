//! What can be wrong with images and guest files.

use std::io;
use std::path::{Path, PathBuf};

use wrenn_base::{Bytes, ImageName};

/// An image or the guest's files cannot be used, read or registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No image of that name is registered.
    #[error("there is no image {name} in {}; build it with `wrenn image build {name}`", dir.display())]
    NotFound {
        /// The name that was asked for.
        name: ImageName,
        /// The directory of all images.
        dir: PathBuf,
    },
    /// An image of that name is registered already, and images do not change.
    #[error("image {name} is registered already; choose another name, or replace it with `--force`")]
    AlreadyRegistered {
        /// The name.
        name: ImageName,
    },
    /// There is no guest kernel and initramfs.
    #[error("there is no guest kernel in {}; make it with `wrenn guest build`", dir.display())]
    NoGuest {
        /// Where they were looked for.
        dir: PathBuf,
    },
    /// A manifest is not what this program writes.
    #[error("{} is damaged: remove {} and build it again", path.display(), path.parent().unwrap_or(path).display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A manifest says what cannot be true.
    #[error("{} is damaged ({reason}): remove {} and build it again", path.display(), path.parent().unwrap_or(path).display())]
    Implausible {
        /// The manifest.
        path: PathBuf,
        /// What cannot be true.
        reason: &'static str,
    },
    /// A manifest was written by a newer program.
    #[error("{} has format {found}, this program knows {known}: use a newer wrenn, or build it again", path.display())]
    NewerFormat {
        /// The manifest.
        path: PathBuf,
        /// The format it has.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// A file does not have the size that its manifest records.
    #[error("{} has {found} bytes where {expected} were registered: remove {} and build it again", path.display(), path.parent().unwrap_or(path).display())]
    SizeMismatch {
        /// The file.
        path: PathBuf,
        /// Its registered size in bytes.
        expected: u64,
        /// Its size in bytes.
        found: u64,
    },
    /// A file does not have the content that its manifest records.
    #[error("{} is not what was registered: remove {} and build it again", path.display(), path.parent().unwrap_or(path).display())]
    DigestMismatch {
        /// The file.
        path: PathBuf,
    },
    /// A file that was to be a kernel is none.
    #[error("{} is not a kernel ({found}): an uncompressed x86-64 ELF vmlinux or a bzImage is needed", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: &'static str,
    },
    /// A file that was to be a root image is none.
    #[error("{} is not an ext4 file system: make the image with `wrenn image build`", path.display())]
    NotAFileSystem {
        /// The file.
        path: PathBuf,
    },
    /// A root image cannot be a disk.
    #[error("{} has {size}: a root image is a whole number of 4 KiB blocks", path.display())]
    NotWholeBlocks {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: Bytes,
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

impl ImageError {
    /// A closure for `map_err`: `source` happened when `path` was to be `action`ed.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

//! A disk's sizes, and the file that holds its changes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use wrenn_base::Bytes;

use super::{BLOCK, DiskError, DiskSpec};

/// The sizes of a disk, checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    /// The image's bytes, whole blocks, not 0.
    pub(super) image: u64,
    /// The disk's bytes, whole blocks, at least the image's.
    pub(super) disk: u64,
}

impl Geometry {
    pub(super) fn of(spec: &DiskSpec<'_>) -> Result<Self, DiskError> {
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

/// A file that is read, with the name that errors give it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, DiskError> {
        let file = File::open(path).map_err(DiskError::io("open", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Opens a cow file, which must have the length `expected`.
    pub(super) fn open_cow(path: &Path, expected: u64) -> Result<Self, DiskError> {
        let source = Self::open(path)?;
        match source.file.metadata().map_err(DiskError::io("open", path))?.len() {
            found if found == expected => Ok(source),
            found => Err(DiskError::WrongLength { cow: path.to_owned(), expected, found }),
        }
    }
}

/// Whether a cow file is there; one of another length than `expected` is refused.
pub(super) fn cow_exists(cow: &Path, expected: u64) -> Result<bool, DiskError> {
    match Source::open_cow(cow, expected) {
        Err(DiskError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        result => result.map(|_| true),
    }
}

/// Makes the cow file under a passing name and gives it its own once it is whole.
pub(super) fn create_cow(cow: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> Result<(), DiskError> {
    let mut partial = cow.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    // Not durable yet, and need not be: it is worth keeping only once it was detached, which makes it so.
    let result = OpenOptions::new()
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

/// What a file takes of its file system.
pub(super) fn allocated(path: &Path) -> Result<Bytes, DiskError> {
    let meta = fs::metadata(path).map_err(DiskError::io("look at", path))?;
    Ok(Bytes(meta.blocks() * 512))
}

//! The snapshot store: complete snapshots of one sandbox, each a directory named by its generation.
//!
//! A snapshot is a set of files (machine state, memory manifest, root-disk changes) plus a record that belongs to
//! the caller. It is filled under a staging name and committed by one rename, so a generation that is there is
//! complete; a crash leaves the earlier generations as they were.
//!
//! `index.json` lists every file with its length and checksum. It is two lines: the JSON document, then the CRC32C
//! of that line as eight hexadecimal digits. A truncated or altered file of a snapshot is an error that names it,
//! and is found before any of the snapshot is used.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wrenn_base::fault;

use crate::durable::{self, StagedDir};

const INDEX: &str = "index.json";
const FORMAT: u32 = 1;
/// An index is small: whatever is larger was not written here.
const MAX_INDEX_BYTES: u64 = 1 << 20;
/// The unit in which content is read and checksummed.
const BLOCK: usize = 64 << 10;

/// Why a snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// A file of the snapshot is not what was written.
    #[error("the snapshot file {path} is unusable: {why}; restore it from a copy, or remove the snapshot")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The snapshot was written by a newer version of this program.
    #[error(
        "the snapshot {path} has format {format}, and this program reads up to {FORMAT}; use a newer version"
    )]
    Newer {
        /// The snapshot's index.
        path: PathBuf,
        /// The format that it has.
        format: u32,
    },
    /// The operating system refused.
    #[error("could not {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl SnapshotError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    fn unusable(path: &Path, why: impl Into<String>) -> Self {
        Self::Unusable { path: path.to_owned(), why: why.into() }
    }
}

/// The snapshots of one sandbox.
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    dir: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Index<R> {
    format: u32,
    files: Vec<FileEntry>,
    record: R,
}

/// The part of an index that is read first, of any version.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct FileEntry {
    name: String,
    bytes: u64,
    crc32c: u32,
}

impl SnapshotStore {
    /// The store in `dir`, which need not exist before the first snapshot is staged.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Begins a snapshot; `generation` must be above every one that is there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn stage(&self, generation: u64) -> Result<StagedSnapshot, SnapshotError> {
        if !self.dir.is_dir() {
            fs::create_dir_all(&self.dir)
                .and_then(|()| durable::sync_parent(&self.dir))
                .map_err(SnapshotError::io("create", &self.dir))?;
        }
        let path = self.path(generation);
        let staged = StagedDir::create(&path).map_err(SnapshotError::io("create", &path))?;
        Ok(StagedSnapshot { staged, path, generation })
    }

    /// The highest complete generation, if there is one. Staged leftovers do not count.
    ///
    /// # Errors
    /// The directory is there but cannot be read.
    pub fn latest(&self) -> Result<Option<u64>, SnapshotError> {
        Ok(self.generations()?.into_iter().max())
    }

    /// Opens one generation: its index is checked, and that every file is there in its length.
    ///
    /// # Errors
    /// The snapshot is missing, incomplete, altered or newer; the error names the file.
    pub fn open<R: DeserializeOwned>(&self, generation: u64) -> Result<(Snapshot, R), SnapshotError> {
        let path = self.path(generation);
        let index: Index<R> = read_index(&path.join(INDEX))?;
        for entry in &index.files {
            let file = path.join(&entry.name);
            let found = fs::metadata(&file).map_err(SnapshotError::io("read", &file))?;
            if found.len() != entry.bytes {
                let why = format!("it has {} bytes instead of {}", found.len(), entry.bytes);
                return Err(SnapshotError::unusable(&file, why));
            }
        }
        Ok((Snapshot { path, generation, files: index.files }, index.record))
    }

    /// Removes every generation below `keep`, and staged leftovers of crashed writers.
    ///
    /// # Errors
    /// One of them cannot be removed; the others may be gone.
    pub fn prune(&self, keep: u64) -> Result<(), SnapshotError> {
        if !self.dir.is_dir() {
            return Ok(());
        }
        durable::sweep(&self.dir).map_err(SnapshotError::io("sweep", &self.dir))?;
        for generation in self.generations()?.into_iter().filter(|g| *g < keep) {
            let path = self.path(generation);
            fault::point("storage.snapshot.remove")
                .and_then(|()| fs::remove_dir_all(&path))
                .and_then(|()| fault::point("storage.snapshot.removed"))
                .map_err(SnapshotError::io("remove", &path))?;
        }
        Ok(())
    }

    fn generations(&self) -> Result<Vec<u64>, SnapshotError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(SnapshotError::io("list", &self.dir))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(SnapshotError::io("list", &self.dir))?.file_name();
            found.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(found)
    }

    fn path(&self, generation: u64) -> PathBuf {
        self.dir.join(generation.to_string())
    }
}

/// A snapshot being filled; dropping it removes it.
#[derive(Debug)]
pub struct StagedSnapshot {
    staged: StagedDir,
    path: PathBuf,
    generation: u64,
}

impl StagedSnapshot {
    /// Its place in the order of the sandbox's snapshots, once it is committed.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Where the file `name` is to be written.
    pub fn file(&self, name: &'static str) -> PathBuf {
        self.staged.path().join(name)
    }

    /// Checksums the files `names`, writes the index with `record`, makes all of it durable and commits it.
    ///
    /// # Errors
    /// Nothing is committed then, and the staged files are gone, unless the file system fails twice: see
    /// [`StagedDir::commit`]. [`SnapshotStore::latest`] tells.
    pub fn commit<R: Serialize>(self, names: &[&'static str], record: R) -> Result<Snapshot, SnapshotError> {
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let path = self.file(name);
            let file = File::open(&path).map_err(SnapshotError::io("open", &path))?;
            let bytes = file.metadata().map_err(SnapshotError::io("read", &path))?.len();
            let crc32c = content_checksum(&file).map_err(SnapshotError::io("read", &path))?;
            files.push(FileEntry { name: (*name).to_owned(), bytes, crc32c });
        }
        let index = Index { format: FORMAT, files, record };
        write_index(&self.file(INDEX), &index)?;
        fault::point("storage.snapshot.commit").map_err(SnapshotError::io("commit", &self.path))?;
        self.staged.commit().map_err(SnapshotError::io("commit", &self.path))?;
        Ok(Snapshot { path: self.path, generation: self.generation, files: index.files })
    }
}

/// A complete snapshot on disk.
#[derive(Debug, Clone)]
pub struct Snapshot {
    path: PathBuf,
    generation: u64,
    files: Vec<FileEntry>,
}

impl Snapshot {
    /// Its place in the order of the sandbox's snapshots.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Where the file `name` is.
    pub fn file(&self, name: &'static str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads the file `name` to its end and compares it with the checksum of when it was written.
    ///
    /// # Errors
    /// It is not part of the snapshot, cannot be read, or was altered.
    pub fn verify(&self, name: &'static str) -> Result<(), SnapshotError> {
        let path = self.file(name);
        let Some(entry) = self.files.iter().find(|entry| entry.name == name) else {
            return Err(SnapshotError::unusable(&path, "the snapshot's index does not list it"));
        };
        let file = File::open(&path).map_err(SnapshotError::io("open", &path))?;
        let found = content_checksum(&file).map_err(SnapshotError::io("read", &path))?;
        if found != entry.crc32c {
            return Err(SnapshotError::unusable(&path, "its content was altered after it was written"));
        }
        Ok(())
    }
}

fn write_index<R: Serialize>(path: &Path, index: &Index<R>) -> Result<(), SnapshotError> {
    let json = serde_json::to_string(index).map_err(io::Error::other);
    let json = json.map_err(SnapshotError::io("write", path))?;
    let text = format!("{json}\n{:08x}\n", crc32c::crc32c(json.as_bytes()));
    fault::point("storage.snapshot.index")
        .and_then(|()| fs::write(path, text))
        .map_err(SnapshotError::io("write", path))
}

fn read_index<R: DeserializeOwned>(path: &Path) -> Result<Index<R>, SnapshotError> {
    let size = fs::metadata(path).map_err(SnapshotError::io("read", path))?.len();
    if size > MAX_INDEX_BYTES {
        return Err(SnapshotError::unusable(path, format!("{size} bytes are too many for an index")));
    }
    let bytes = fs::read(path).map_err(SnapshotError::io("read", path))?;
    let text = std::str::from_utf8(&bytes).map_err(|e| SnapshotError::unusable(path, e.to_string()))?;
    let checked = text.strip_suffix('\n').and_then(|text| text.split_once('\n')).filter(|(json, sum)| {
        u32::from_str_radix(sum, 16).is_ok_and(|sum| sum == crc32c::crc32c(json.as_bytes()))
    });
    let Some((json, _)) = checked else {
        return Err(SnapshotError::unusable(path, "it is truncated or was altered after it was written"));
    };
    let parse = |e: serde_json::Error| SnapshotError::unusable(path, e.to_string());
    let FormatOnly { format } = serde_json::from_str(json).map_err(parse)?;
    if format > FORMAT {
        return Err(SnapshotError::Newer { path: path.to_owned(), format });
    }
    let index: Index<R> = serde_json::from_str(json).map_err(parse)?;
    // A name is joined to the snapshot's directory: it must not lead out of it.
    let plain = |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    match index.files.iter().find(|entry| !plain(&entry.name)) {
        Some(entry) => Err(SnapshotError::unusable(path, format!("{:?} is no file name", entry.name))),
        None => Ok(index),
    }
}

/// CRC32C over the index and content of every 64 KiB block that is not all zero.
///
/// Zero blocks and holes do not count, so the sum is the same however sparse a copy is, and a sparse file is
/// summed at the cost of its data.
fn content_checksum(file: &File) -> io::Result<u32> {
    let len = file.metadata()?.len();
    let mut sum = 0;
    let mut buf = vec![0u8; BLOCK];
    let mut at = 0;
    while at < len {
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            // No data up to the end of the file.
            Err(rustix::io::Errno::NXIO) => break,
            found => found?,
        };
        let block = at / BLOCK as u64;
        let start = block * BLOCK as u64;
        let part = &mut buf[..(len - start).min(BLOCK as u64) as usize];
        file.read_exact_at(part, start)?;
        if part.iter().any(|byte| *byte != 0) {
            sum = crc32c::crc32c_append(sum, &block.to_le_bytes());
            sum = crc32c::crc32c_append(sum, part);
        }
        at = start + BLOCK as u64;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests;

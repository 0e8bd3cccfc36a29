//! One layer, open for reading: every block is checked before its first byte is handed out, and only once.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::MemoryError;
use super::layers::{LayerDir, LayerId};
use super::sums::{BLOCK, BlockSums};

/// What a manifest states about a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerRecord {
    pub(super) id: LayerId,
    pub(super) length: u64,
    /// CRC32C of the layer's whole checksum file.
    pub(super) sums_crc: u32,
}

/// An open layer.
#[derive(Debug)]
pub(super) struct Layer {
    record: LayerRecord,
    path: PathBuf,
    file: Arc<File>,
    sums: Arc<BlockSums>,
    /// One bit per block that was found intact.
    checked: Box<[AtomicU64]>,
}

thread_local! {
    /// Where a block is read that is not wanted whole.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BLOCK].into_boxed_slice());
}

impl Layer {
    /// Opens the layer that `record` describes and checks lengths and the checksum table, but no block.
    pub(super) fn open(record: LayerRecord, dir: &LayerDir) -> Result<Self, MemoryError> {
        let path = dir.layer_path(record.id);
        let file = open_part(record.id, &path, record.length)?;
        let sums_path = dir.sums_path(record.id);
        let sums_length = BlockSums::encoded_length(record.length);
        let sums_file = match open_part(record.id, &sums_path, sums_length) {
            Err(MemoryError::LayerLength { layer, .. }) => {
                return Err(MemoryError::Sums { layer, reason: "their file has the wrong length" });
            }
            result => result?,
        };
        // Bounded: the file was just found to be this long, in proportion to a layer that is there.
        let mut table = vec![0; sums_length as usize];
        sums_file.read_exact_at(&mut table, 0).map_err(MemoryError::io("read", &sums_path))?;
        if crc32c::crc32c(&table) != record.sums_crc {
            return Err(MemoryError::Sums { layer: record.id, reason: "their file was altered" });
        }
        let sums = BlockSums::decode(&table, record.length)
            .map_err(|reason| MemoryError::Sums { layer: record.id, reason })?;
        Ok(Self::new(record, path, file, sums))
    }

    /// A layer whose file and checksums were just written.
    pub(super) fn new(record: LayerRecord, path: PathBuf, file: File, sums: BlockSums) -> Self {
        Self::with_parts(record, path, Arc::new(file), Arc::new(sums))
    }

    /// The same layer with no block checked yet.
    pub(super) fn unchecked(&self) -> Self {
        Self::with_parts(self.record, self.path.clone(), self.file.clone(), self.sums.clone())
    }

    fn with_parts(record: LayerRecord, path: PathBuf, file: Arc<File>, sums: Arc<BlockSums>) -> Self {
        let words = sums.blocks().div_ceil(64);
        Self { record, path, file, sums, checked: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(super) fn record(&self) -> &LayerRecord {
        &self.record
    }

    /// The disk space the layer takes.
    pub(super) fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Fills `buf` from `offset` on. The range lies within the layer.
    pub(super) fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<(), MemoryError> {
        while !buf.is_empty() {
            let block = offset / BLOCK as u64;
            let within = (offset % BLOCK as u64) as usize;
            let mut len = buf.len().min(BLOCK - within);
            if self.is_checked(block) {
                // One system call for as far as nothing is left to check.
                while len < buf.len() && self.is_checked((offset + len as u64) / BLOCK as u64) {
                    len += BLOCK.min(buf.len() - len);
                }
                self.read_raw(offset, &mut buf[..len])?;
            } else if within == 0 && len == self.block_length(block) {
                self.read_raw(offset, &mut buf[..len])?;
                self.check(block, &buf[..len])?;
            } else {
                SCRATCH.with_borrow_mut(|scratch| {
                    let scratch = &mut scratch[..self.block_length(block)];
                    self.read_raw(block * BLOCK as u64, scratch)?;
                    self.check(block, scratch)?;
                    buf[..len].copy_from_slice(&scratch[within..within + len]);
                    Ok(())
                })?;
            }
            offset += len as u64;
            buf = &mut buf[len..];
        }
        Ok(())
    }

    /// Checks every block, those that were checked before included.
    pub(super) fn verify(&self) -> Result<(), MemoryError> {
        SCRATCH.with_borrow_mut(|scratch| {
            (0..self.sums.blocks()).try_for_each(|block| {
                let scratch = &mut scratch[..self.block_length(block)];
                self.read_raw(block * BLOCK as u64, scratch)?;
                self.check(block, scratch)
            })
        })
    }

    fn block_length(&self, block: u64) -> usize {
        (self.record.length - block * BLOCK as u64).min(BLOCK as u64) as usize
    }

    fn is_checked(&self, block: u64) -> bool {
        self.checked[(block / 64) as usize].load(Ordering::Relaxed) & (1 << (block % 64)) != 0
    }

    fn check(&self, block: u64, content: &[u8]) -> Result<(), MemoryError> {
        if !self.sums.matches(block, content) {
            return Err(MemoryError::Corrupt { layer: self.record.id, block });
        }
        self.checked[(block / 64) as usize].fetch_or(1 << (block % 64), Ordering::Relaxed);
        Ok(())
    }

    fn read_raw(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.file.read_exact_at(buf, offset).map_err(|source| {
            let found = self.file.metadata().map_or(0, |found| found.len());
            if source.kind() == io::ErrorKind::UnexpectedEof && found < self.record.length {
                return MemoryError::LayerLength {
                    layer: self.record.id,
                    expected: self.record.length,
                    found,
                };
            }
            MemoryError::io("read", &self.path)(source)
        })
    }
}

/// Opens one of a layer's two files, which has to be a plain file of `length` bytes.
fn open_part(layer: LayerId, path: &Path, length: u64) -> Result<File, MemoryError> {
    // Whatever lies under the name: never follow a link, never wait for a pipe's writer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(MemoryError::MissingLayer { layer, path: path.to_owned() });
        }
        result => result.map_err(MemoryError::io("open", path))?,
    };
    let found = file.metadata().map_err(MemoryError::io("look at", path))?;
    if !found.is_file() {
        return Err(MemoryError::MissingLayer { layer, path: path.to_owned() });
    }
    if found.len() != length {
        return Err(MemoryError::LayerLength { layer, expected: length, found: found.len() });
    }
    Ok(file)
}

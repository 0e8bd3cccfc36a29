//! Layers being written, and how every layer gets its name.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use wrenn_base::fault;

use super::error::MemoryError;
use super::layer::{Layer, LayerRecord};
use super::layers::{LayerDir, LayerId};
use super::sums::{BlockSummer, BlockSums};
use super::sys::start_writeback;
use crate::durable::{self, StagedFile};

/// How much of a dump is read, and of a layer written, at once.
pub(super) const CHUNK: usize = 1 << 20;

/// How much is written before the kernel is asked to send it to the disk: what is written in the meantime need not be
/// waited for at the end.
const WRITEBACK: u64 = 8 << 20;

/// Layers are never written again, and hold what a guest held.
const LAYER_MODE: u32 = 0o400;

pub(super) fn new_id() -> Result<LayerId, MemoryError> {
    LayerId::random().map_err(MemoryError::io("get randomness from", Path::new("the system")))
}

/// Gives a written layer its checksums and then, by `rename`, its name.
///
/// On an error the checksums are gone again.
pub(super) fn publish(
    id: LayerId,
    sums: &BlockSums,
    dir: &LayerDir,
    rename: impl FnOnce(&Path) -> Result<(), MemoryError>,
) -> Result<LayerRecord, MemoryError> {
    let table = sums.encode();
    let record = LayerRecord { id, length: sums.length(), sums_crc: crc32c::crc32c(&table) };
    let path = dir.sums_path(id);
    let named = durable::write(&path, &table)
        .and_then(|()| fault::point("storage.layer.publish"))
        .map_err(MemoryError::io("write the checksums", &path))
        .and_then(|()| rename(&dir.layer_path(id)));
    named.inspect_err(|_| drop(fs::remove_file(&path)))?;
    Ok(record)
}

/// Takes the right to write away from a layer's file.
pub(super) fn protect(layer: &File, path: &Path) -> Result<(), MemoryError> {
    layer
        .set_permissions(fs::Permissions::from_mode(LAYER_MODE))
        .map_err(MemoryError::io("protect the layer", path))
}

/// A layer being written from its start to its end: pages are gathered and written a mebibyte at a time, and what
/// is skipped is a hole.
///
/// Dropping it unfinished removes what was written.
#[derive(Debug)]
pub(super) struct StagedLayer {
    id: LayerId,
    path: PathBuf,
    staged: StagedFile,
    sums: BlockSummer,
    gathered: Vec<u8>,
    /// Where `gathered` belongs in the layer.
    flushed: u64,
    /// Up to where the kernel was asked to send the layer to the disk.
    sent: u64,
}

impl StagedLayer {
    /// Begins a layer; `length` is where it will end, if that is known, and has to be if anything is to be skipped.
    pub(super) fn create(dir: &LayerDir, length: Option<u64>) -> Result<Self, MemoryError> {
        let id = new_id()?;
        let path = dir.layer_path(id);
        // A file that has its length from the start does not grow, so no file system reserves space ahead of its end,
        // which would be in the holes by and by (xfs reserves mebibytes).
        let staged = StagedFile::create(&path).and_then(|staged| {
            staged.file().set_len(length.unwrap_or(0))?;
            Ok(staged)
        });
        let staged = staged.map_err(MemoryError::io("create the layer", &path))?;
        let (sums, gathered) = (BlockSummer::new(), Vec::with_capacity(CHUNK));
        Ok(Self { id, path, staged, sums, gathered, flushed: 0, sent: 0 })
    }

    /// The end of what was appended or skipped, in bytes.
    pub(super) fn position(&self) -> u64 {
        self.flushed + self.gathered.len() as u64
    }

    /// Appends `bytes` at the position.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), MemoryError> {
        while !bytes.is_empty() {
            // What comes in large pieces is not copied first.
            if self.gathered.is_empty() && bytes.len() >= CHUNK {
                let (now, later) = bytes.split_at(CHUNK);
                self.write(now)?;
                bytes = later;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            bytes = later;
            if self.gathered.len() == CHUNK {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Moves the position forward to `offset`, over a hole.
    pub(super) fn skip_to(&mut self, offset: u64) -> Result<(), MemoryError> {
        if offset > self.position() {
            self.flush()?;
            self.sums.zeros(offset - self.flushed);
            self.flushed = offset;
        }
        Ok(())
    }

    /// Makes the layer durable under its name and opens it. Where this fails nothing is left of it.
    pub(super) fn finish(mut self, dir: &LayerDir) -> Result<Layer, MemoryError> {
        self.flush()?;
        // Gives back what the file system reserved for a file that might have grown on.
        let cut = self.staged.file().set_len(self.flushed);
        cut.map_err(MemoryError::io("finish the layer", &self.path))?;
        protect(self.staged.file(), &self.path)?;
        let (sums, staged, path) = (self.sums.finish(), self.staged, self.path);
        let mut file = None;
        let record = publish(self.id, &sums, dir, |_| {
            let named = staged.commit().and_then(|named| {
                file = Some(named);
                fault::point("storage.layer.published")
            });
            // It may have its name, and fail to be made durable under it: nobody knows of it yet.
            named
                .map_err(MemoryError::io("finish the layer", &path))
                .inspect_err(|_| drop(fs::remove_file(&path)))
        })?;
        let file = file.expect("a published layer was committed");
        Ok(Layer::new(record, path, file, sums))
    }

    fn flush(&mut self) -> Result<(), MemoryError> {
        let mut gathered = std::mem::take(&mut self.gathered);
        if !gathered.is_empty() {
            self.write(&gathered)?;
        }
        gathered.clear();
        self.gathered = gathered;
        Ok(())
    }

    /// Writes `bytes` behind what is flushed; nothing is gathered.
    fn write(&mut self, bytes: &[u8]) -> Result<(), MemoryError> {
        self.sums.data(bytes);
        fault::point("storage.layer.write")
            .and_then(|()| self.staged.file().write_all_at(bytes, self.flushed))
            .and_then(|()| fault::point("storage.layer.written"))
            .map_err(MemoryError::io("write the layer", &self.path))?;
        self.flushed += bytes.len() as u64;
        if self.flushed - self.sent >= WRITEBACK {
            start_writeback(self.staged.file(), self.sent, self.flushed - self.sent);
            self.sent = self.flushed;
        }
        Ok(())
    }
}

//! Layers being finished: the packed one of a diff is written here, and every layer gets its name here.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::PAGE_SIZE;
use super::dump::CHUNK;
use super::error::MemoryError;
use super::layer::{Layer, LayerRecord};
use super::layers::{LayerDir, LayerId};
use super::sums::{BlockSummer, BlockSums};
use crate::durable::{self, StagedFile};

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
    durable::write(&path, &table).map_err(MemoryError::io("write the checksums", &path))?;
    rename(&dir.layer_path(id)).inspect_err(|_| drop(fs::remove_file(&path)))?;
    Ok(record)
}

/// Takes the right to write away from a layer's file.
pub(super) fn protect(layer: &File, path: &Path) -> Result<(), MemoryError> {
    layer
        .set_permissions(fs::Permissions::from_mode(LAYER_MODE))
        .map_err(MemoryError::io("protect the layer", path))
}

/// A packed layer being written: pages are gathered and written a mebibyte at a time.
///
/// Dropping it unfinished removes what was written.
#[derive(Debug)]
pub(super) struct PackedLayer {
    id: LayerId,
    path: PathBuf,
    staged: StagedFile,
    sums: BlockSummer,
    gathered: Vec<u8>,
    flushed: u64,
}

impl PackedLayer {
    pub(super) fn create(dir: &LayerDir) -> Result<Self, MemoryError> {
        let id = new_id()?;
        let path = dir.layer_path(id);
        let staged = StagedFile::create(&path).map_err(MemoryError::io("create the layer", &path))?;
        let (sums, gathered) = (BlockSummer::new(), Vec::with_capacity(CHUNK));
        Ok(Self { id, path, staged, sums, gathered, flushed: 0 })
    }

    /// Appends whole pages and returns the number that the first of them has in the layer.
    pub(super) fn append(&mut self, mut pages: &[u8]) -> Result<u32, MemoryError> {
        let first = (self.flushed + self.gathered.len() as u64) / PAGE_SIZE;
        while !pages.is_empty() {
            let (now, later) = pages.split_at(pages.len().min(CHUNK - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            pages = later;
            if self.gathered.len() == CHUNK {
                self.flush()?;
            }
        }
        Ok(first as u32)
    }

    /// Makes the layer durable under its name and opens it.
    pub(super) fn finish(mut self, dir: &LayerDir) -> Result<Layer, MemoryError> {
        self.flush()?;
        // Gives back what the file system reserved for a file that might have grown on (xfs does, by mebibytes).
        let cut = self.staged.file().set_len(self.flushed);
        cut.map_err(MemoryError::io("finish the layer", &self.path))?;
        protect(self.staged.file(), &self.path)?;
        let (sums, staged, path) = (self.sums.finish(), self.staged, self.path);
        let mut file = None;
        let record = publish(self.id, &sums, dir, |_| {
            file = Some(staged.commit().map_err(MemoryError::io("finish the layer", &path))?);
            Ok(())
        })?;
        let file = file.expect("a published layer was committed");
        Ok(Layer::new(record, path, file, sums))
    }

    fn flush(&mut self) -> Result<(), MemoryError> {
        self.sums.data(&self.gathered);
        self.staged
            .file()
            .write_all_at(&self.gathered, self.flushed)
            .map_err(MemoryError::io("write the layer", &self.path))?;
        self.flushed += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}

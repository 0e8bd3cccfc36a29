//! A memory image: which layer holds which page.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wrenn_base::Bytes;

use super::PAGE_SIZE;
use super::error::MemoryError;
use super::extents::ExtentMap;
use super::import::{self, Imported};
use super::layer::{Layer, LayerRecord};
use super::layers::{LayerDir, LayerId};
use super::manifest::Manifest;
use super::reader::{Content, MemoryReader};
use crate::durable;

/// The memory of a paused guest. Cloning it is cheap; clones share their open layers.
///
/// ```
/// use wrenn_base::Bytes;
/// use wrenn_storage::{LayerDir, MemoryImage};
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let layers = LayerDir::open(dir.join("layers"))?;
/// std::fs::write(dir.join("dump"), vec![7; 8192])?;
/// let full = MemoryImage::import_full(&dir.join("dump"), Bytes(8192), &layers)?;
/// full.image.save(&dir.join("memory"))?;
///
/// let image = MemoryImage::open(&dir.join("memory"), &layers)?;
/// let mut page = [0; 4096];
/// image.reader().read(4096, &mut page)?;
/// assert_eq!(page, [7; 4096]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemoryImage {
    dir: LayerDir,
    content: Arc<Content>,
}

/// What an image takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageUsage {
    /// Guest memory that is not zero.
    pub data: Bytes,
    /// Disk space of the image's layers, those that it shares included.
    pub allocated: Bytes,
    /// The number of layers in use.
    pub layers: usize,
    /// The number of extents, which is what a lookup searches and what a manifest's size follows.
    pub extents: usize,
}

impl MemoryImage {
    pub(super) fn new(dir: LayerDir, content: Content) -> Self {
        Self { dir, content: Arc::new(content) }
    }

    /// Makes an image of a full dump, consuming it: the file is renamed into `layers` as it is, and zero
    /// pages in runs of 64 KiB or more become holes.
    ///
    /// `dump` is guest memory byte by byte, `guest_size` long, sparse or not, on the file system of `layers`.
    /// The new layer is durable on return. The image itself is not: see [`save`](Self::save).
    ///
    /// # Errors
    /// [`MemoryError::GuestSize`], [`MemoryError::DumpLength`], [`MemoryError::DumpKind`],
    /// [`MemoryError::OtherFileSystem`], [`MemoryError::Io`]. The dump is still there and reads as before,
    /// except where the very last step, syncing directories, failed: then it is in `layers`, where
    /// [`LayerDir::retain`] finds it.
    pub fn import_full(dump: &Path, guest_size: Bytes, layers: &LayerDir) -> Result<Imported, MemoryError> {
        import::import_full(dump, guest_size, layers)
    }

    /// Makes the image that this one becomes by a diff dump.
    ///
    /// `dump` is sparse and as long as the guest's memory: a hole means that the page is as in this image,
    /// data is the page's content now, zero or not, changed or not: only what differs is stored, as monitors also
    /// report pages that were merely read. The writer gives the file its length before its content,
    /// and neither preallocates nor reads it. The dump is left to the caller to delete; this image is
    /// unchanged.
    ///
    /// The new layer is durable on return; the returned image has to be [saved](Self::save).
    ///
    /// # Errors
    /// [`MemoryError::CoarseHoles`] where the dump's file system cannot be trusted with holes, otherwise as
    /// for [`import_full`](Self::import_full). Nothing is left behind.
    pub fn import_diff(&self, dump: &Path) -> Result<Imported, MemoryError> {
        import::import_diff(self, dump)
    }

    /// Writes the manifest to `path`, atomically and durably, replacing one that is there.
    ///
    /// # Errors
    /// [`MemoryError::Io`]; the file is then as before, or (where only the directory could not be synced) the
    /// new one.
    pub fn save(&self, path: &Path) -> Result<(), MemoryError> {
        let layers = self.layers().iter().map(|layer| *layer.record()).collect();
        let manifest = Manifest { layers, map: self.map().clone(), flat: self.is_flat() };
        durable::write(path, &manifest.encode()).map_err(MemoryError::io("save the memory image", path))
    }

    /// Opens the image whose manifest is at `path` and whose layers are in `layers`.
    ///
    /// The manifest is checked whole; of each layer the length and the checksum table are. A layer's content
    /// is checked block by block when it is read, or at once by [`verify`](Self::verify).
    ///
    /// # Errors
    /// A variant of [`MemoryError`] for each thing that can be wrong with the files; nothing is changed.
    pub fn open(path: &Path, layers: &LayerDir) -> Result<Self, MemoryError> {
        let Manifest { layers: records, map, flat } = Manifest::read(path)?;
        let open = |record: LayerRecord| Layer::open(record, layers).map(Arc::new);
        let opened = records.into_iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self::new(layers.clone(), Content { layers: opened, map, flat }))
    }

    /// Reads every byte of every layer and compares it with its checksum.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] at the first block that is not as written, [`MemoryError::Io`].
    pub fn verify(&self) -> Result<(), MemoryError> {
        self.layers().iter().try_for_each(|layer| layer.verify())
    }

    /// A reader of the guest's memory, independent of this handle.
    pub fn reader(&self) -> MemoryReader {
        MemoryReader::new(self.content.clone())
    }

    /// The size of the guest's memory.
    pub fn guest_size(&self) -> Bytes {
        Bytes(u64::from(self.map().pages()) * PAGE_SIZE)
    }

    /// The layers that this image needs: what [`LayerDir::retain`] has to be told for it.
    pub fn layers_in_use(&self) -> BTreeSet<LayerId> {
        self.layers().iter().map(|layer| layer.record().id).collect()
    }

    /// The file that can be mapped as the guest's memory, where the image is one full dump and nothing else.
    ///
    /// A mapping bypasses the checksums; [`verify`](Self::verify) first if that matters.
    pub fn flat_layer(&self) -> Option<PathBuf> {
        match self.layers() {
            [layer] if self.is_flat() => Some(self.dir.layer_path(layer.record().id)),
            _ => None,
        }
    }

    /// What the image takes, by its layers' allocated blocks.
    ///
    /// # Errors
    /// [`MemoryError::Io`] where a layer cannot be looked at.
    pub fn usage(&self) -> Result<ImageUsage, MemoryError> {
        let allocated = self.layers().iter().map(|layer| layer.allocated()).sum::<Result<u64, _>>();
        Ok(ImageUsage {
            data: Bytes(self.map().data_bytes()),
            allocated: Bytes(allocated.map_err(MemoryError::io("look at the layers in", self.dir.path()))?),
            layers: self.layers().len(),
            extents: self.map().as_slice().len(),
        })
    }

    pub(super) fn is_flat(&self) -> bool {
        self.content.flat
    }

    pub(super) fn layer_dir(&self) -> &LayerDir {
        &self.dir
    }

    pub(super) fn layers(&self) -> &[Arc<Layer>] {
        &self.content.layers
    }

    pub(super) fn map(&self) -> &ExtentMap {
        &self.content.map
    }
}

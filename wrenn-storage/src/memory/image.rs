//! A memory image: which layer holds which page.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wrenn_base::Bytes;

use super::PAGE_SIZE;
use super::compact;
use super::error::MemoryError;
use super::extents::ExtentMap;
use super::identity::ImageIdentity;
use super::import::{self, Imported};
use super::layer::{Layer, LayerRecord};
use super::layers::{LayerDir, LayerId};
use super::manifest::Manifest;
use super::reader::{Content, MemoryReader};
use super::share;
use super::writer::ImageWriter;
use crate::durable;

/// How often an image is opened anew that was compacted while it was being opened.
const OPEN_ATTEMPTS: usize = 3;

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

    /// Begins the image of a whole guest, whose layer can be mapped: see [`flat_layer`](Self::flat_layer).
    ///
    /// Pages that are never put are zero; they and zero pages are holes in the layer.
    ///
    /// # Errors
    /// [`MemoryError::GuestSize`].
    pub fn write_full(guest_size: Bytes, layers: &LayerDir) -> Result<ImageWriter, MemoryError> {
        ImageWriter::full(guest_size, layers)
    }

    /// Begins the image that this one becomes by what the guest wrote since.
    ///
    /// Pages that are never put are as in this image. What is put is stored without being compared with it; a page
    /// that is put and zero is zero in the new image, whatever it is here. This image is unchanged.
    ///
    /// # Errors
    /// [`MemoryError::TooManyLayers`].
    pub fn write_diff(&self) -> Result<ImageWriter, MemoryError> {
        ImageWriter::diff(self)
    }

    /// Merges the layers into one that is flat, in the same directory, and returns the image that uses it.
    ///
    /// Needs a few mebibytes of memory, and 64 KiB for each gibibyte of the guest's, and checks every block that it
    /// reads. After each piece of up to a mebibyte `pace` is told the piece's length: it may wait to leave the disk to others, or end
    /// the work. This image stays as it is; to switch, [`save`](Self::save) the new one where this one was saved,
    /// which is one rename, and then [`retain`](LayerDir::retain) what is still used. An image that is flat already
    /// is returned as it is.
    ///
    /// # Errors
    /// [`MemoryError::Cancelled`] where `pace` said so, [`MemoryError::Corrupt`] where a layer is not what was
    /// written, [`MemoryError::Io`]. Nothing is left behind.
    pub fn compact(&self, pace: impl FnMut(Bytes) -> ControlFlow<()>) -> Result<Imported, MemoryError> {
        compact::compact(self, pace)
    }

    /// Makes this image's layers be in `layers` as well, by hard links, and returns the image that uses them there.
    ///
    /// So a template and its sandboxes share layers, and each may [retain](LayerDir::retain) in its own directory what
    /// it uses without a thought of others. The links are durable on return; layers that are linked already are fine,
    /// so this can be repeated.
    ///
    /// # Errors
    /// [`MemoryError::DirectoriesApart`] unless both directories are on one mounted file system,
    /// [`MemoryError::LayerTaken`] where another file has a layer's name, [`MemoryError::MissingLayer`] where a layer
    /// was removed, [`MemoryError::Io`]. Links that were made before stay, as another image may have found them
    /// there meanwhile; they take no space, and [`LayerDir::retain`] removes them.
    pub fn link_into(&self, layers: &LayerDir) -> Result<Self, MemoryError> {
        share::link_into(self, layers)
    }

    /// Writes the manifest to `path`, atomically and durably, replacing one that is there.
    ///
    /// # Errors
    /// [`MemoryError::Io`]; the file is then as before, or (where only the directory could not be synced) the
    /// new one.
    pub fn save(&self, path: &Path) -> Result<(), MemoryError> {
        durable::write(path, &self.manifest().encode())
            .map_err(MemoryError::io("save the memory image", path))
    }

    /// Opens the image whose manifest is at `path` and whose layers are in `layers`.
    ///
    /// The manifest is checked whole; of each layer the length and the checksum table are. A layer's content
    /// is checked block by block when it is read, or at once by [`verify`](Self::verify).
    ///
    /// # Errors
    /// A variant of [`MemoryError`] for each thing that can be wrong with the files; nothing is changed. A manifest that is
    /// replaced meanwhile, its layers merged, is read anew.
    pub fn open(path: &Path, layers: &LayerDir) -> Result<Self, MemoryError> {
        let mut attempt = 1;
        loop {
            match Self::open_once(path, layers) {
                Err(MemoryError::MissingLayer { .. }) if attempt < OPEN_ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    fn open_once(path: &Path, layers: &LayerDir) -> Result<Self, MemoryError> {
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

    /// What tells this image from others; equal for clones, for what was saved and opened, and in every directory
    /// that it was [linked into](Self::link_into).
    ///
    /// Computed at each call, from as many bytes as the manifest has.
    pub fn identity(&self) -> ImageIdentity {
        ImageIdentity::of(&self.manifest())
    }

    /// The directory of its layers.
    pub fn layer_dir(&self) -> &LayerDir {
        &self.dir
    }

    /// The layers that this image needs: what [`LayerDir::retain`] has to be told for it.
    pub fn layers_in_use(&self) -> BTreeSet<LayerId> {
        self.layers().iter().map(|layer| layer.record().id).collect()
    }

    /// The file that can be mapped as the guest's memory, where the image is one full dump, was written or compacted
    /// in full, and nothing was laid over it.
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

    fn manifest(&self) -> Manifest {
        let layers = self.layers().iter().map(|layer| *layer.record()).collect();
        Manifest { layers, map: self.map().clone(), flat: self.is_flat() }
    }

    pub(super) fn is_flat(&self) -> bool {
        self.content.flat
    }

    pub(super) fn layers(&self) -> &[Arc<Layer>] {
        &self.content.layers
    }

    pub(super) fn map(&self) -> &ExtentMap {
        &self.content.map
    }
}

//! Images built from pages that are read straight out of a stopped guest: one pass, and no dump between.
//!
//! Failure paths: the layer is staged until [`ImageWriter::finish`], so a writer that is dropped or that failed
//! leaves nothing, and the image that a diff is based on is never touched.

use std::sync::Arc;

use wrenn_base::Bytes;

use super::dump::page_runs;
use super::error::MemoryError;
use super::extents::{Extent, ExtentMap, Place, Runs};
use super::image::MemoryImage;
use super::import::Imported;
use super::layer::Layer;
use super::layers::LayerDir;
use super::manifest::pages_of;
use super::reader::Content;
use super::staged::StagedLayer;
use super::{MAX_LAYERS, PAGE, PAGE_SIZE, is_zero};

/// Builds a [`MemoryImage`] from pages given in ascending order.
///
/// [`MemoryImage::write_full`] and [`MemoryImage::write_diff`] make one, and say what pages mean that are never
/// [`put`](Self::put). Nothing is there until [`finish`](Self::finish) returned; dropping the writer removes what was
/// written so far.
///
/// ```
/// use wrenn_base::Bytes;
/// use wrenn_storage::{LayerDir, MemoryImage};
/// # let dir = tempfile::tempdir()?;
/// let layers = LayerDir::open(dir.path().join("layers"))?;
/// let mut writer = MemoryImage::write_full(Bytes(1 << 20), &layers)?;
/// writer.put(8192, &[7; 4096])?;
/// let full = writer.finish()?.image;
///
/// let mut writer = full.write_diff()?;
/// writer.put(0, &[9; 4096])?;
/// writer.put(8192, &[0; 4096])?;
/// let diff = writer.finish()?;
/// assert_eq!((diff.data, diff.zeros), (Bytes(4096), Bytes(4096)));
/// let mut pages = [1; 12288];
/// diff.image.reader().read(0, &mut pages)?;
/// assert!(pages[..4096] == [9; 4096] && pages[4096..] == [0; 8192]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "an image that is not finished is not there"]
pub struct ImageWriter {
    dir: LayerDir,
    pages: u32,
    /// The image that pages which are not put are taken from; none in a full image, where they are zero.
    base: Option<MemoryImage>,
    /// The layer, from its first page on: an image without data needs none.
    staged: Option<StagedLayer>,
    runs: Runs,
    /// The end of what was put, in bytes.
    next: u64,
    data: u64,
    zeros: u64,
    broken: bool,
}

impl ImageWriter {
    pub(super) fn full(guest_size: Bytes, dir: &LayerDir) -> Result<Self, MemoryError> {
        let pages = pages_of(guest_size.get()).ok_or(MemoryError::GuestSize { size: guest_size })?;
        Ok(Self::new(dir.clone(), pages, None))
    }

    pub(super) fn diff(base: &MemoryImage) -> Result<Self, MemoryError> {
        if base.layers().len() >= MAX_LAYERS {
            return Err(MemoryError::TooManyLayers { limit: MAX_LAYERS });
        }
        Ok(Self::new(base.layer_dir().clone(), base.map().pages(), Some(base.clone())))
    }

    fn new(dir: LayerDir, pages: u32, base: Option<MemoryImage>) -> Self {
        let runs = Runs::default();
        Self { dir, pages, base, staged: None, runs, next: 0, data: 0, zeros: 0, broken: false }
    }

    /// States that the guest's memory from byte `offset` on is `pages`: whole pages, at or behind the end of those
    /// put before.
    ///
    /// Zero pages are found here; the caller need not look for them. The larger the pieces, the less it costs: pieces
    /// of a mebibyte and more are written without being copied.
    ///
    /// # Errors
    /// [`MemoryError::PartPages`], [`MemoryError::PageOrder`], [`MemoryError::OutOfRange`], [`MemoryError::Io`]. The
    /// image lacks pages then, so from the first error on the writer can only be dropped: it answers
    /// [`MemoryError::BrokenWriter`].
    pub fn put(&mut self, offset: u64, pages: &[u8]) -> Result<(), MemoryError> {
        if self.broken {
            return Err(MemoryError::BrokenWriter);
        }
        // Whatever ends this early leaves an image without these pages.
        self.broken = true;
        self.check(offset, pages.len() as u64)?;
        for (zero, run) in page_runs(pages.len(), |page| is_zero(&pages[page])) {
            let first = ((offset + run.start as u64) / PAGE_SIZE) as u32;
            if zero {
                self.put_zeros(first, (run.len() / PAGE) as u32);
            } else {
                self.put_data(first, &pages[run])?;
            }
        }
        self.next = offset + pages.len() as u64;
        self.broken = false;
        Ok(())
    }

    /// Makes the layer durable and returns the image.
    ///
    /// As with an import the image has still to be [saved](MemoryImage::save).
    ///
    /// # Errors
    /// [`MemoryError::Io`], [`MemoryError::BrokenWriter`]. Nothing is left behind.
    pub fn finish(self) -> Result<Imported, MemoryError> {
        if self.broken {
            return Err(MemoryError::BrokenWriter);
        }
        let Self { dir, pages, base, staged, runs, data, zeros, .. } = self;
        let full = base.is_none();
        let layer = staged.map(|mut staged| {
            if full {
                staged.skip_to(u64::from(pages) * PAGE_SIZE)?;
            }
            staged.finish(&dir)
        });
        let layer = layer.transpose()?;
        let written = match &layer {
            None => 0,
            Some(layer) => {
                layer.allocated().map_err(MemoryError::io("look at the new layer in", dir.path()))?
            }
        };
        let content = match &base {
            None => Content::full(layer, pages, &runs),
            Some(base) => overlay(base, layer, &runs),
        };
        let image = MemoryImage::new(dir, content);
        Ok(Imported { image, data: Bytes(data), zeros: Bytes(zeros), written: Bytes(written) })
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), MemoryError> {
        let guest_size = u64::from(self.pages) * PAGE_SIZE;
        if !offset.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::PartPages { offset, len });
        }
        if offset.checked_add(len).is_none_or(|end| end > guest_size) {
            return Err(MemoryError::OutOfRange { offset, len, guest_size: Bytes(guest_size) });
        }
        if offset < self.next {
            return Err(MemoryError::PageOrder { offset, next: self.next });
        }
        Ok(())
    }

    /// In a diff zero pages are stated, or what the base holds there would come back; but not where it says so itself.
    fn put_zeros(&mut self, mut first: u32, pages: u32) {
        let Some(base) = &self.base else {
            self.zeros += u64::from(pages) * PAGE_SIZE;
            return;
        };
        let end = first + pages;
        while first < end {
            let below = base.map().at(first);
            let pages = below.pages.min(end - first);
            if below.place != Place::Zero {
                self.zeros += u64::from(pages) * PAGE_SIZE;
                self.runs.push(Extent { first, pages, place: Place::Zero });
            }
            first += pages;
        }
    }

    fn put_data(&mut self, first: u32, pages: &[u8]) -> Result<(), MemoryError> {
        let staged = match &mut self.staged {
            Some(staged) => staged,
            none => {
                let length = self.base.is_none().then(|| u64::from(self.pages) * PAGE_SIZE);
                none.insert(StagedLayer::create(&self.dir, length)?)
            }
        };
        let layer = match &self.base {
            None => {
                staged.skip_to(u64::from(first) * PAGE_SIZE)?;
                0
            }
            Some(base) => base.layers().len() as u32,
        };
        let page = (staged.position() / PAGE_SIZE) as u32;
        staged.append(pages)?;
        self.data += pages.len() as u64;
        let count = (pages.len() / PAGE) as u32;
        self.runs.push(Extent { first, pages: count, place: Place::Layer { layer, page } });
        Ok(())
    }
}

impl Content {
    /// A guest whose memory is one flat layer, of which `runs` are not zero; all zero where there is no layer.
    pub(super) fn full(layer: Option<Layer>, pages: u32, runs: &Runs) -> Self {
        let map = ExtentMap::zero(pages).overlaid(runs.as_slice());
        let flat = layer.is_some();
        Self { layers: layer.into_iter().map(Arc::new).collect(), map, flat }
    }
}

/// What `base` becomes where `runs`, in `layer` or zero, are laid over it.
fn overlay(base: &MemoryImage, layer: Option<Layer>, runs: &Runs) -> Content {
    let mut layers = base.layers().to_vec();
    layers.extend(layer.map(Arc::new));
    let (layers, map) = drop_unused(layers, base.map().overlaid(runs.as_slice()));
    // Once zeros were laid over it, a flat layer no longer holds what the image says: it must not be mapped any more.
    let flat = base.is_flat() && runs.as_slice().is_empty();
    Content { layers, map, flat }
}

/// Leaves out the layers of which nothing shows any more.
fn drop_unused(layers: Vec<Arc<Layer>>, mut map: ExtentMap) -> (Vec<Arc<Layer>>, ExtentMap) {
    let used = map.layers_used(layers.len());
    let mut next = 0;
    let numbers: Vec<u32> = used
        .iter()
        .map(|used| {
            let number = next;
            next += u32::from(*used);
            number
        })
        .collect();
    map.renumber(&numbers);
    let layers = layers.into_iter().zip(used).filter_map(|(layer, used)| used.then_some(layer)).collect();
    (layers, map)
}

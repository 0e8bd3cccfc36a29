//! Reading a guest's memory out of an image.

use std::sync::Arc;

use wrenn_base::Bytes;

use super::PAGE_SIZE;
use super::error::MemoryError;
use super::extents::{ExtentMap, Place};
use super::layer::Layer;

/// What an image consists of, shared by its handles and readers.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) map: ExtentMap,
    /// The one layer's file as a whole is the guest's memory.
    pub(super) flat: bool,
}

/// What a run of pages is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// Every byte is zero.
    Zero,
    /// The content is in a layer, in one piece.
    Data,
}

/// A run of pages of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRun {
    /// What the pages are made of.
    pub kind: RunKind,
    /// The run's length in bytes.
    pub len: u64,
}

/// Reads a paused guest's memory. Cheap to clone; any number of threads may read at once.
///
/// It holds its layers open: their content stays readable after [`LayerDir::retain`](super::LayerDir::retain)
/// removed them.
#[derive(Debug, Clone)]
pub struct MemoryReader {
    content: Arc<Content>,
}

impl MemoryReader {
    pub(super) fn new(content: Arc<Content>) -> Self {
        Self { content }
    }

    /// The size of the guest's memory in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a guest has at least one page")]
    pub fn len(&self) -> u64 {
        u64::from(self.content.map.pages()) * PAGE_SIZE
    }

    /// What the memory holds from byte `offset` on: one run, of at most `max` bytes but at least to the end
    /// of the page that `offset` is in. Beyond the guest's memory it is a run of length 0.
    ///
    /// The cost is one binary search.
    pub fn lookup(&self, offset: u64, max: u64) -> MemoryRun {
        if offset >= self.len() {
            return MemoryRun { kind: RunKind::Zero, len: 0 };
        }
        let extent = self.content.map.at((offset / PAGE_SIZE) as u32);
        let into_page = offset % PAGE_SIZE;
        let len = (u64::from(extent.pages) * PAGE_SIZE - into_page).min(max.max(PAGE_SIZE - into_page));
        let kind = if extent.place == Place::Zero { RunKind::Zero } else { RunKind::Data };
        MemoryRun { kind, len }
    }

    /// Fills `buf` with the memory from byte `offset` on, across as many runs as it takes.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] where storage no longer holds what was written, [`MemoryError::LayerLength`]
    /// where a layer was cut off since it was opened, [`MemoryError::OutOfRange`], [`MemoryError::Io`]. What
    /// `buf` holds is unspecified then.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(MemoryError::OutOfRange { offset, len, guest_size: Bytes(self.len()) });
        }
        let (mut offset, mut buf) = (offset, buf);
        while !buf.is_empty() {
            let extent = self.content.map.at((offset / PAGE_SIZE) as u32);
            let into_page = offset % PAGE_SIZE;
            let step = (u64::from(extent.pages) * PAGE_SIZE - into_page).min(buf.len() as u64);
            let (now, later) = buf.split_at_mut(step as usize);
            match extent.place {
                Place::Zero => now.fill(0),
                Place::Layer { layer, page } => {
                    self.content.layers[layer as usize].read(u64::from(page) * PAGE_SIZE + into_page, now)?;
                }
            }
            offset += step;
            buf = later;
        }
        Ok(())
    }
}

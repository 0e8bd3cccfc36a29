//! Layered memory images: what a paused guest's memory held, page by page.
//!
//! An image is a *manifest* (one small file) over immutable *layers* (large files shared by images). The
//! manifest maps every guest page to exactly one of: zero, or a place in one layer. `wrenn-storage/FORMAT.md`
//! specifies the files byte by byte.
//!
//! - A full dump becomes a *flat* layer where it lies: a rename, and holes punched where it was zero at
//!   length. Offsets in the layer are guest offsets, so the file can also be mapped as it is.
//! - A diff dump becomes a *packed* layer: the pages that differ from the base and are not zero, back to back.
//! - Without a dump, an [`ImageWriter`] makes the same two kinds of layers of pages as they are read from a guest.
//! - [`MemoryImage::compact`] merges a chain of layers into one flat one.
//! - The manifest of a diff is flattened: a lookup is one binary search however many generations there are.
//!
//! Invariants:
//! - **In a diff a hole means "as before" and data means "this content"; data that is all zero becomes an
//!   explicit zero extent.** It is never dropped as if it were a hole, which would bring old content back. So
//!   a diff dump is only read where the file system tells holes from data page by page (checked, see
//!   [`MemoryError::CoarseHoles`]).
//! - A layer never changes once it has its name. Every 64 KiB block of it has a checksum, and no byte of a
//!   block is handed out before the block was checked.
//! - Files get their names durably, a layer before the manifest that needs it. A crash leaves at most a layer
//!   that nothing refers to, which [`LayerDir::retain`] removes.
//! - Manifests and layers are untrusted input: every count is bounded before it is believed, and a damaged
//!   file is a typed error, never a panic and never other content.

mod compact;
mod dump;
mod error;
mod extents;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod identity;
mod image;
mod import;
mod layer;
mod layers;
mod manifest;
mod reader;
mod share;
mod staged;
mod sums;
#[allow(unsafe_code)]
mod sys;
mod writer;

pub(crate) use dump::page_runs;
pub use error::MemoryError;
pub use identity::ImageIdentity;
pub use image::{ImageUsage, MemoryImage};
pub use import::Imported;
pub use layers::{LayerDir, LayerId};
pub(crate) use manifest::pages_of;
pub use reader::{MemoryReader, MemoryRun, RunKind};
pub use writer::ImageWriter;

/// The unit of a memory image: x86-64's base page.
pub const PAGE_SIZE: u64 = 4096;

/// The page size as a length in memory.
const PAGE: usize = PAGE_SIZE as usize;

/// The largest guest that a manifest can describe: page numbers stay far from 32 bits' end.
const MAX_PAGES: u64 = 1 << 31;

/// The largest number of layers that one image may use.
const MAX_LAYERS: usize = 4096;

/// One page of zeros, to compare with: a `memcmp` is the fastest portable zero test.
static ZERO_PAGE: [u8; PAGE] = [0; PAGE];

pub(crate) fn is_zero(page: &[u8]) -> bool {
    page == &ZERO_PAGE[..page.len()]
}

//! Dumps become layers.
//!
//! Failure paths: whatever goes wrong, the image that a diff is based on is untouched, and the new layer has
//! not got its name or is removed again. A full dump whose import failed still reads as before, under its own
//! name or (only where the directory could not be synced at the very end) that of the layer.

use std::fs;
use std::path::Path;

use wrenn_base::{Bytes, fault};

use super::PAGE_SIZE;
use super::dump::{Dump, page_runs};
use super::error::MemoryError;
use super::extents::{Extent, Place, Runs};
use super::image::MemoryImage;
use super::is_zero;
use super::layer::Layer;
use super::layers::LayerDir;
use super::manifest::pages_of;
use super::reader::Content;
use super::staged::{new_id, protect, publish};
use super::sums::BlockSummer;

/// The shortest run of zero pages that becomes a hole in a full layer. Every hole is an extent of the file
/// system's, which costs more time, when the layer is synced, than to write a shorter run of zeros.
const PUNCH_AT_LEAST: u64 = 64 * 1024;

/// A new image, and what it took to make.
#[derive(Debug)]
#[non_exhaustive]
pub struct Imported {
    /// The image. It is not saved yet.
    pub image: MemoryImage,
    /// Guest memory that was given with content: of a diff dump only what differs from the base, of a diff that was
    /// [written](super::ImageWriter) everything that is not zero.
    pub data: Bytes,
    /// Guest memory that was given as explicit zeros, where the base of a diff has others. A full dump's holes are
    /// not counted.
    pub zeros: Bytes,
    /// Disk space that the new layer takes.
    pub written: Bytes,
}

pub(super) fn import_full(path: &Path, guest_size: Bytes, dir: &LayerDir) -> Result<Imported, MemoryError> {
    let pages = pages_of(guest_size.get()).ok_or(MemoryError::GuestSize { size: guest_size })?;
    let dump = Dump::open(path, guest_size.get(), dir)?;
    let (mut runs, mut sums, mut data, mut zeros) = (Runs::default(), BlockSummer::new(), 0, 0);
    dump.scan(|offset, chunk| {
        sums.zeros(offset - sums.length());
        sums.data(chunk);
        for (zero, run) in page_runs(chunk.len(), |page| is_zero(&chunk[page])) {
            let (first, len) = (offset + run.start as u64, run.len() as u64);
            if zero {
                zeros += len;
                if len >= PUNCH_AT_LEAST {
                    dump.punch(first..first + len)?;
                }
            } else {
                data += len;
                let page = (first / PAGE_SIZE) as u32;
                let place = Place::Layer { layer: 0, page };
                runs.push(Extent { first: page, pages: (len / PAGE_SIZE) as u32, place });
            }
        }
        Ok(())
    })?;
    sums.zeros(guest_size.get() - sums.length());
    let (mut layer, mut written) = (None, Bytes(0));
    if data == 0 {
        fs::remove_file(path).map_err(MemoryError::io("remove the empty dump", path))?;
    } else {
        let named = name_dump(dump, sums, dir)?;
        written = Bytes(named.allocated().map_err(MemoryError::io("look at the new layer in", dir.path()))?);
        layer = Some(named);
    }
    let image = MemoryImage::new(dir.clone(), Content::full(layer, pages, &runs));
    Ok(Imported { image, data: Bytes(data), zeros: Bytes(zeros), written })
}

/// Turns a dump, as it lies, into a layer.
fn name_dump(dump: Dump, sums: BlockSummer, dir: &LayerDir) -> Result<Layer, MemoryError> {
    let before = dump.file.metadata().map_err(MemoryError::io("look at the dump", &dump.path))?;
    protect(&dump.file, &dump.path)?;
    let sums = sums.finish();
    let named = new_id().and_then(|id| {
        publish(id, &sums, dir, |to| {
            dump.rename(to)?;
            fault::point("storage.layer.published")
                .map_err(MemoryError::io("turn the dump into the layer", to))
        })
    });
    // A dump that stays one can be imported again only if it can be opened for writing.
    let record = named.inspect_err(|_| drop(dump.file.set_permissions(before.permissions())))?;
    Ok(Layer::new(record, dir.layer_path(record.id), dump.file, sums))
}

pub(super) fn import_diff(base: &MemoryImage, path: &Path) -> Result<Imported, MemoryError> {
    let mut writer = base.write_diff()?;
    let dump = Dump::open(path, base.guest_size().get(), base.layer_dir())?;
    dump.settle_holes()?;
    let (reader, mut before) = (base.reader(), Vec::new());
    dump.scan(|offset, chunk| {
        before.resize(chunk.len(), 0);
        // What of the base cannot be read is not compared but stored: the new image does not need it any more.
        let comparable = reader.read(offset, &mut before).is_ok();
        let same = |page: std::ops::Range<usize>| comparable && chunk[page.clone()] == before[page];
        for (same, run) in page_runs(chunk.len(), same) {
            if !same {
                writer.put(offset + run.start as u64, &chunk[run])?;
            }
        }
        Ok(())
    })?;
    writer.finish()
}

//! Dumps become layers.
//!
//! Failure paths: whatever goes wrong, the image that a diff is based on is untouched, and the new layer has
//! not got its name or is removed again. A full dump whose import failed still reads as before, under its own
//! name or (only where the directory could not be synced at the very end) that of the layer.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use wrenn_base::Bytes;

use super::dump::{Dump, page_runs};
use super::error::MemoryError;
use super::extents::{Extent, ExtentMap, Place, Runs};
use super::image::MemoryImage;
use super::layer::Layer;
use super::layers::LayerDir;
use super::manifest::pages_of;
use super::packed::{PackedLayer, new_id, protect, publish};
use super::reader::Content;
use super::sums::BlockSummer;
use super::{MAX_LAYERS, PAGE, PAGE_SIZE, is_zero};

/// The shortest run of zero pages that becomes a hole in a full layer. Every hole is an extent of the file
/// system's, which costs more time, when the layer is synced, than to write a shorter run of zeros.
const PUNCH_AT_LEAST: u64 = 64 * 1024;

/// An image made from a dump, and what that took.
#[derive(Debug)]
#[non_exhaustive]
pub struct Imported {
    /// The image. It is not saved yet.
    pub image: MemoryImage,
    /// Guest memory that the dump had content for, of a diff's only what differs from the base.
    pub data: Bytes,
    /// Guest memory that the dump had as explicit zeros where the base has others. A full dump's holes are not
    /// counted.
    pub zeros: Bytes,
    /// Disk space that the new layer takes.
    pub written: Bytes,
}

pub(super) fn import_full(path: &Path, guest_size: Bytes, dir: &LayerDir) -> Result<Imported, MemoryError> {
    let pages = pages_of(guest_size.get()).ok_or(MemoryError::GuestSize { size: guest_size })?;
    let dump = Dump::open(path, guest_size.get(), dir)?;
    let (mut runs, mut sums, mut zeros) = (Runs::default(), BlockSummer::new(), 0);
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
                let page = (first / PAGE_SIZE) as u32;
                let place = Place::Layer { layer: 0, page };
                runs.push(Extent { first: page, pages: (len / PAGE_SIZE) as u32, place });
            }
        }
        Ok(())
    })?;
    sums.zeros(guest_size.get() - sums.length());
    let map = ExtentMap::zero(pages).overlaid(runs.as_slice());
    let data = Bytes(map.data_bytes());
    if data == Bytes(0) {
        fs::remove_file(path).map_err(MemoryError::io("remove the empty dump", path))?;
        let image = MemoryImage::new(dir.clone(), Content { layers: Vec::new(), map, flat: false });
        return Ok(Imported { image, data, zeros: Bytes(zeros), written: Bytes(0) });
    }
    let sums = sums.finish();
    protect(&dump.file, path)?;
    let record = publish(new_id()?, &sums, dir, |to| dump.rename(to))?;
    let written = dump.allocated()?;
    let layer = Layer::new(record, dir.layer_path(record.id), dump.file, sums);
    let image = MemoryImage::new(dir.clone(), Content { layers: vec![Arc::new(layer)], map, flat: true });
    Ok(Imported { image, data, zeros: Bytes(zeros), written })
}

pub(super) fn import_diff(base: &MemoryImage, path: &Path) -> Result<Imported, MemoryError> {
    if base.layers().len() >= MAX_LAYERS {
        return Err(MemoryError::TooManyLayers { limit: MAX_LAYERS });
    }
    let dir = base.layer_dir();
    let dump = Dump::open(path, base.guest_size().get(), dir)?;
    dump.settle_holes()?;
    let mut layers = base.layers().to_vec();
    let new = layers.len() as u32;
    let (mut runs, mut zeros, mut packed) = (Runs::default(), 0, None);
    let (reader, mut before) = (base.reader(), Vec::new());
    dump.scan(|offset, chunk| {
        before.resize(chunk.len(), 0);
        // What of the base cannot be read is not compared but stored: the new image does not need it any more.
        let comparable = reader.read(offset, &mut before).is_ok();
        let changes = page_runs(chunk.len(), |page| match &chunk[page.clone()] {
            now if comparable && *now == before[page] => None,
            now => Some(Change { to_zero: is_zero(now) }),
        });
        for (change, run) in changes {
            let Some(Change { to_zero }) = change else { continue };
            let first = ((offset + run.start as u64) / PAGE_SIZE) as u32;
            let pages = (run.len() / PAGE) as u32;
            let place = if to_zero {
                zeros += run.len() as u64;
                Place::Zero
            } else {
                let packed = match &mut packed {
                    Some(packed) => packed,
                    none => none.insert(PackedLayer::create(dir)?),
                };
                Place::Layer { layer: new, page: packed.append(&chunk[run])? }
            };
            runs.push(Extent { first, pages, place });
        }
        Ok(())
    })?;
    let (mut data, mut written) = (0, 0);
    if let Some(packed) = packed {
        let layer = packed.finish(dir)?;
        data = layer.record().length;
        written = layer.allocated().map_err(MemoryError::io("look at the new layer in", dir.path()))?;
        layers.push(Arc::new(layer));
    }
    let (layers, map) = drop_unused(layers, base.map().overlaid(runs.as_slice()));
    // Once zeros were laid over it, a dump no longer holds what the image says: it must not be mapped any
    // more.
    let flat = base.is_flat() && runs.as_slice().is_empty();
    let image = MemoryImage::new(dir.clone(), Content { layers, map, flat });
    Ok(Imported { image, data: Bytes(data), zeros: Bytes(zeros), written: Bytes(written) })
}

/// How a page of a dump differs from the base's.
#[derive(PartialEq)]
struct Change {
    to_zero: bool,
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

//! A chain of layers becomes one flat layer: from the files alone, while the old image goes on to serve.
//!
//! Failure paths: the new layer is staged until it is whole, and the image that is merged is only read.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use wrenn_base::Bytes;

use super::PAGE_SIZE;
use super::error::MemoryError;
use super::extents::{ExtentMap, Place};
use super::image::MemoryImage;
use super::import::Imported;
use super::reader::{Content, MemoryReader};
use super::staged::CHUNK;
use super::writer::ImageWriter;

pub(super) fn compact(
    image: &MemoryImage,
    mut pace: impl FnMut(Bytes) -> ControlFlow<()>,
) -> Result<Imported, MemoryError> {
    if image.is_flat() {
        let (image, none) = (image.clone(), Bytes(0));
        return Ok(Imported { image, data: none, zeros: none, written: none });
    }
    let mut writer = ImageWriter::full(image.guest_size(), image.layer_dir())?;
    let reader = unchecked_reader(image);
    let mut buf = vec![0; CHUNK];
    for range in data_ranges(image.map()) {
        let mut offset = range.start;
        while offset < range.end {
            let piece = &mut buf[..(range.end - offset).min(CHUNK as u64) as usize];
            reader.read(offset, piece)?;
            writer.put(offset, piece)?;
            offset += piece.len() as u64;
            if pace(Bytes(piece.len() as u64)).is_break() {
                return Err(MemoryError::Cancelled);
            }
        }
    }
    writer.finish()
}

/// A reader that checks every block anew: the new layer's checksums vouch for what it hands out.
fn unchecked_reader(image: &MemoryImage) -> MemoryReader {
    let layers = image.layers().iter().map(|layer| Arc::new(layer.unchecked())).collect();
    MemoryReader::new(Arc::new(Content { layers, map: image.map().clone(), flat: image.is_flat() }))
}

/// The bytes that are in layers, whichever these are, in stretches as long as possible.
fn data_ranges(map: &ExtentMap) -> impl Iterator<Item = Range<u64>> + '_ {
    map.as_slice().chunk_by(|a, b| (a.place == Place::Zero) == (b.place == Place::Zero)).filter_map(
        |stretch| {
            let (first, last) = (stretch.first()?, stretch.last()?);
            let range = u64::from(first.first) * PAGE_SIZE..u64::from(last.end()) * PAGE_SIZE;
            (first.place != Place::Zero).then_some(range)
        },
    )
}

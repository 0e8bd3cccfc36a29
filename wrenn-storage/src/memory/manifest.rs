//! The manifest's bytes, as `wrenn-storage/FORMAT.md` specifies them.
//!
//! A manifest is untrusted: its checksum is computed in one pass of constant memory, and a second pass
//! decodes it and stops at the first thing that cannot be, so memory is never taken for a count alone.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::error::MemoryError;
use super::extents::{Extent, ExtentMap, Hole, Place};
use super::layer::LayerRecord;
use super::layers::LayerId;
use super::{MAX_LAYERS, MAX_PAGES, PAGE_SIZE};

const MAGIC: &[u8; 8] = b"WRENNMEM";
const VERSION: u32 = 1;
const HEADER: usize = 32;
const LAYER: usize = 32;
const EXTENT: usize = 16;
const CRC: usize = 4;
/// In place of a layer's number: the pages are zero.
const ZERO: u32 = u32::MAX;
/// The kind of a layer that as a whole is the guest's memory, as it was dumped.
const FLAT: u32 = 0;
/// The kind of a layer of which only the extents tell what is where.
const SCATTERED: u32 = 1;

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) layers: Vec<LayerRecord>,
    pub(super) map: ExtentMap,
    /// There is one layer, and its file as a whole is the guest's memory.
    pub(super) flat: bool,
}

/// Why bytes are no manifest; the caller knows the file's name.
#[derive(Debug)]
pub(super) enum Fault {
    Io(io::Error),
    Foreign,
    Newer(u32),
    Length { expected: u64, found: u64 },
    Altered,
    Invalid(String),
}

impl Fault {
    pub(super) fn of(self, path: &Path) -> MemoryError {
        let path = path.to_owned();
        match self {
            Self::Io(source) => MemoryError::Io { action: "read the manifest", path, source },
            Self::Foreign => MemoryError::Foreign { path },
            Self::Newer(found) => MemoryError::NewerVersion { path, found, supported: VERSION },
            Self::Length { expected, found } => MemoryError::Truncated { path, expected, found },
            Self::Altered => MemoryError::Altered { path },
            Self::Invalid(reason) => MemoryError::Invalid { path, reason },
        }
    }
}

impl From<io::Error> for Fault {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

fn invalid<T>(reason: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Invalid(reason.into()))
}

/// The fixed part, with counts that are within bounds and agree with the file's length.
struct Header {
    pages: u32,
    layers: u32,
    extents: u32,
}

impl Manifest {
    /// Reads a manifest from a file.
    pub(super) fn read(path: &Path) -> Result<Self, MemoryError> {
        let file = File::open(path).map_err(MemoryError::io("open the memory image", path))?;
        Self::decode(&file).map_err(|fault| fault.of(path))
    }

    /// Decodes everything that `input` holds.
    pub(super) fn decode(mut input: impl Read + Seek) -> Result<Self, Fault> {
        let length = input.seek(SeekFrom::End(0))?;
        input.rewind()?;
        let mut start = [0; HEADER];
        let header_length = length.min(HEADER as u64) as usize;
        input.read_exact(&mut start[..header_length])?;
        let header = Header::decode(&start[..header_length], length)?;
        input.rewind()?;
        check_crc(&mut input, length - CRC as u64)?;
        input.seek(SeekFrom::Start(HEADER as u64))?;
        let mut input = BufReader::with_capacity(64 * 1024, input);
        let (layers, flat) = decode_layers(&mut input, &header)?;
        let map = decode_extents(&mut input, &header, &layers, flat)?;
        check_use(&layers, &map)?;
        Ok(Self { layers, map, flat })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let (layers, extents) = (&self.layers, self.map.as_slice());
        let mut out = Vec::with_capacity(HEADER + layers.len() * LAYER + extents.len() * EXTENT + CRC);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
        out.extend_from_slice(&(u64::from(self.map.pages()) * PAGE_SIZE).to_le_bytes());
        out.extend_from_slice(&(layers.len() as u32).to_le_bytes());
        out.extend_from_slice(&(extents.len() as u32).to_le_bytes());
        for layer in layers {
            out.extend_from_slice(&layer.id.0);
            out.extend_from_slice(&layer.length.to_le_bytes());
            out.extend_from_slice(&layer.sums_crc.to_le_bytes());
            let kind = if self.flat { FLAT } else { SCATTERED };
            out.extend_from_slice(&kind.to_le_bytes());
        }
        for extent in extents {
            let (layer, page) = match extent.place {
                Place::Zero => (ZERO, 0),
                Place::Layer { layer, page } => (layer, page),
            };
            for number in [extent.first, extent.pages, layer, page] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }
}

impl Header {
    fn decode(start: &[u8], length: u64) -> Result<Self, Fault> {
        let known = start.len().min(MAGIC.len());
        if start[..known] != MAGIC[..known] {
            return Err(Fault::Foreign);
        }
        // A later version may lay out everything after its number anew, so this comes before any other check.
        if start.len() >= 12 && u32_at(start, 8) > VERSION {
            return Err(Fault::Newer(u32_at(start, 8)));
        }
        if start.len() < HEADER {
            return Err(Fault::Length { expected: (HEADER + CRC) as u64, found: length });
        }
        let (version, page_size, guest_size) = (u32_at(start, 8), u32_at(start, 12), u64_at(start, 16));
        let (layers, extents) = (u32_at(start, 24), u32_at(start, 28));
        let expected = HEADER as u64
            + LAYER as u64 * u64::from(layers)
            + EXTENT as u64 * u64::from(extents)
            + CRC as u64;
        if length != expected {
            return Err(Fault::Length { expected, found: length });
        }
        if version != VERSION {
            return invalid(format!("there is no version {version}"));
        }
        if u64::from(page_size) != PAGE_SIZE {
            return invalid(format!("the page size is {page_size}, not {PAGE_SIZE}"));
        }
        let Some(pages) = pages_of(guest_size) else {
            return invalid(format!("the guest size is {guest_size} bytes"));
        };
        if layers as usize > MAX_LAYERS {
            return invalid(format!("it lists {layers} layers; there may be {MAX_LAYERS}"));
        }
        if extents > pages {
            return invalid(format!("it has {extents} extents for {pages} pages"));
        }
        Ok(Self { pages, layers, extents })
    }
}

/// The number of pages of a guest of `size` bytes, where such a guest can be.
pub(crate) fn pages_of(size: u64) -> Option<u32> {
    let pages = size / PAGE_SIZE;
    (size.is_multiple_of(PAGE_SIZE) && (1..=MAX_PAGES).contains(&pages)).then_some(pages as u32)
}

fn check_crc(input: &mut impl Read, covered: u64) -> Result<(), Fault> {
    let mut buf = vec![0; 64 * 1024];
    let (mut crc, mut left) = (0, covered);
    while left > 0 {
        let step = left.min(buf.len() as u64) as usize;
        input.read_exact(&mut buf[..step])?;
        crc = crc32c::crc32c_append(crc, &buf[..step]);
        left -= step as u64;
    }
    let mut stored = [0; CRC];
    input.read_exact(&mut stored)?;
    if u32::from_le_bytes(stored) == crc { Ok(()) } else { Err(Fault::Altered) }
}

/// The layers, and whether the image is flat.
fn decode_layers(input: &mut impl Read, header: &Header) -> Result<(Vec<LayerRecord>, bool), Fault> {
    let (mut layers, mut flat) = (Vec::<LayerRecord>::new(), false);
    for number in 0..header.layers {
        let mut bytes = [0; LAYER];
        input.read_exact(&mut bytes)?;
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[..16]);
        let (length, sums_crc, kind) = (u64_at(&bytes, 16), u32_at(&bytes, 24), u32_at(&bytes, 28));
        let Some(pages) = pages_of(length) else {
            return invalid(format!("layer {number} is {length} bytes long"));
        };
        flat = match kind {
            FLAT if header.layers == 1 && pages == header.pages => true,
            FLAT => {
                return invalid(format!("layer {number} is flat and not alone, or not of the guest's size"));
            }
            SCATTERED => false,
            _ => return invalid(format!("layer {number} is of the unknown kind {kind}")),
        };
        let id = LayerId(id);
        if layers.iter().any(|layer| layer.id == id) {
            return invalid(format!("layer {number} is listed twice"));
        }
        layers.push(LayerRecord { id, length, sums_crc });
    }
    Ok((layers, flat))
}

fn decode_extents(
    input: &mut impl Read,
    header: &Header,
    layers: &[LayerRecord],
    flat: bool,
) -> Result<ExtentMap, Fault> {
    let mut extents = Vec::new();
    for number in 0..header.extents {
        let mut bytes = [0; EXTENT];
        input.read_exact(&mut bytes)?;
        let [first, pages, layer, page] = [0, 4, 8, 12].map(|at| u32_at(&bytes, at));
        let place = match (layer, layers.get(layer as usize)) {
            (ZERO, _) if page == 0 => Place::Zero,
            (ZERO, _) => return invalid(format!("extent {number} is zero and has an offset")),
            (_, None) => return invalid(format!("extent {number} is in layer {layer}, which is not listed")),
            (_, Some(record)) => {
                if u64::from(page) + u64::from(pages) > record.length / PAGE_SIZE {
                    return invalid(format!("extent {number} lies outside its layer"));
                }
                if flat && page != first {
                    return invalid(format!("extent {number} is in a flat layer at another offset"));
                }
                Place::Layer { layer, page }
            }
        };
        // Stops at the first empty extent, so that a sparse file cannot claim memory by its size.
        if pages == 0 {
            return invalid(format!("extent {number} is empty"));
        }
        extents.push(Extent { first, pages, place });
    }
    ExtentMap::new(extents, header.pages).or_else(|hole| match hole {
        Hole::At(number) => invalid(format!(
            "extent {number} does not begin where the one before it ended, or leaves the guest"
        )),
        Hole::End => invalid("the extents do not cover the guest's memory"),
    })
}

fn check_use(layers: &[LayerRecord], map: &ExtentMap) -> Result<(), Fault> {
    match map.layers_used(layers.len()).iter().position(|used| !used) {
        Some(number) => invalid(format!("layer {number} is listed and not used")),
        None => Ok(()),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests;

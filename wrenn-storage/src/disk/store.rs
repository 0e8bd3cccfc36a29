//! The kernel's persistent exception store, read without the kernel: which chunks of a disk were written, and where
//! the cow file has them.
//!
//! ```text
//!   chunk 0   header: "SnAp", whether it is valid, version, chunk size in sectors; 32 bits each, the rest unused
//!   chunk 1   area 0: entries of two 64-bit numbers, the disk's chunk and the store's chunk with its content
//!   …         as many chunks of content as an area has entries
//!             area 1, its content, and so on
//! ```
//!
//! All numbers are little-endian. An entry whose second number is 0 ends the list. (The kernel's
//! drivers/md/dm-snap-persistent.c.) A store of nothing but zeros is a new one.
//!
//! A cow file is untrusted. What is listed has to lie within the disk and within the store's content, once each; so
//! what is kept of a list is never more than 16 bytes for each chunk of the disk. Where the kernel would take what is
//! lost for what never was, and show the image's old content, this refuses: a list that goes on after its end, and a
//! header of zeros before a list.

use std::io;
use std::ops::Range;

use super::CowFault;

const SECTOR: u64 = 512;
const MAGIC: [u8; 4] = *b"SnAp";
const VERSION: u32 = 1;
const ENTRY: usize = 16;

/// The sizes that say where things are in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    chunk: u64,
    disk: u64,
}

impl Layout {
    /// The store of a disk of `disk` bytes in chunks of `chunk` bytes.
    pub(super) const fn new(chunk: u64, disk: u64) -> Self {
        Self { chunk, disk }
    }

    fn entries_per_area(self) -> u64 {
        self.chunk / ENTRY as u64
    }

    fn disk_chunks(self) -> u64 {
        self.disk.div_ceil(self.chunk)
    }

    /// The number of areas that a list can reach. The last of them is never full.
    fn areas(self) -> u64 {
        self.disk_chunks() / self.entries_per_area() + 1
    }

    fn store_chunks(self) -> u64 {
        let header = 1;
        // One area more than are used: when an area is full, the kernel clears the next one's at once.
        let areas = self.disk_chunks().div_ceil(self.entries_per_area()) + 1;
        header + self.disk_chunks() + areas
    }

    /// The length of a store in which every chunk of the disk can be written.
    pub(super) fn store_len(self) -> u64 {
        self.store_chunks() * self.chunk
    }

    /// The chunk with the entries of area number `index`.
    pub(super) fn area(self, index: u64) -> u64 {
        1 + index * (self.entries_per_area() + 1)
    }

    fn holds_content(self, chunk: u64) -> bool {
        let is_area = chunk % (self.entries_per_area() + 1) == 1;
        chunk > 0 && !is_area && chunk < self.store_chunks()
    }
}

/// A stretch of the disk that lies in one piece in the store; in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) disk: Range<u64>,
    /// Where it begins in the store.
    pub(super) at: u64,
}

/// A chunk of the disk, and the store's chunk that has its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    disk: u64,
    store: u64,
}

/// Why a store cannot be read.
#[derive(Debug)]
pub(super) enum StoreError {
    Read(io::Error),
    Fault(CowFault),
}

impl From<io::Error> for StoreError {
    fn from(source: io::Error) -> Self {
        Self::Read(source)
    }
}

impl From<CowFault> for StoreError {
    fn from(fault: CowFault) -> Self {
        Self::Fault(fault)
    }
}

/// What a store says was written, in the order of the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changes {
    layout: Layout,
    is_new: bool,
    list: Vec<Change>,
}

impl Changes {
    /// Reads and checks a store; `read` fills the buffer with the content of one of its chunks.
    pub(super) fn read(
        layout: Layout,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<Self, StoreError> {
        let mut chunk = vec![0; layout.chunk as usize];
        read(0, &mut chunk)?;
        let is_new = check_header(&chunk, layout)?;
        let mut changes = Self { layout, is_new, list: Vec::new() };
        let mut ended = is_new;
        // A list that fills them all has more entries than the disk has chunks, which is an error.
        for index in 0..layout.areas() {
            read(layout.area(index), &mut chunk)?;
            match (ended, is_zero(&chunk)) {
                (false, _) => ended = !changes.add_area(&chunk)?,
                (true, true) => return Ok(changes.sorted()?),
                (true, false) if is_new => return Err(CowFault::HeaderLost.into()),
                (true, false) => return Err(CowFault::ListBroken.into()),
            }
        }
        Ok(changes.sorted()?)
    }

    /// Takes an area's entries; whether the area is full, so that the list goes on in the next.
    fn add_area(&mut self, area: &[u8]) -> Result<bool, CowFault> {
        for (number, entry) in area.chunks_exact(ENTRY).enumerate() {
            let change = Change { disk: u64_at(entry, 0), store: u64_at(entry, 8) };
            if change.store == 0 {
                let rest = &area[number * ENTRY..];
                return if is_zero(rest) { Ok(false) } else { Err(CowFault::ListBroken) };
            }
            if change.disk >= self.layout.disk_chunks() {
                return Err(CowFault::OutsideDisk { chunk: change.disk });
            }
            if !self.layout.holds_content(change.store) {
                return Err(CowFault::OutsideStore { chunk: change.store });
            }
            if self.list.len() as u64 == self.layout.disk_chunks() {
                return Err(CowFault::Twice { chunk: change.disk });
            }
            self.list.push(change);
        }
        Ok(true)
    }

    /// Puts the list into the disk's order, in which what is listed twice shows.
    fn sorted(mut self) -> Result<Self, CowFault> {
        self.list.sort_unstable_by_key(|change| (change.store, change.disk));
        if let Some(pair) = self.list.windows(2).find(|pair| pair[0].store == pair[1].store) {
            return Err(CowFault::Twice { chunk: pair[1].disk });
        }
        self.list.sort_unstable();
        if let Some(pair) = self.list.windows(2).find(|pair| pair[0].disk == pair[1].disk) {
            return Err(CowFault::Twice { chunk: pair[1].disk });
        }
        Ok(self)
    }

    /// Whether they are those of a store that the kernel has never seen.
    pub(super) fn are_new(&self) -> bool {
        self.is_new
    }

    /// The stretches that were written, in the disk's order, as long as possible.
    pub(super) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let Layout { chunk, disk } = self.layout;
        let follows = |a: &Change, b: &Change| a.disk + 1 == b.disk && a.store + 1 == b.store;
        self.list.chunk_by(follows).map(move |run| {
            let start = run[0].disk * chunk;
            // The disk may end within its last chunk.
            let end = (start + run.len() as u64 * chunk).min(disk);
            Run { disk: start..end, at: run[0].store * chunk }
        })
    }
}

/// Whether the header is that of a new store, all zeros; an error unless it is that or one that can be read.
fn check_header(chunk: &[u8], layout: Layout) -> Result<bool, CowFault> {
    if is_zero(chunk) {
        return Ok(true);
    }
    let (valid, version, sectors) = (u32_at(chunk, 4), u32_at(chunk, 8), u32_at(chunk, 12));
    if chunk[..4] != MAGIC {
        return Err(CowFault::Foreign);
    }
    if version != VERSION {
        return Err(CowFault::Version { found: version });
    }
    if u64::from(sectors) * SECTOR != layout.chunk {
        return Err(CowFault::ChunkSize { found: sectors, expected: layout.chunk / SECTOR });
    }
    // The kernel writes 0 or 1, and takes whatever is not 0 for valid.
    match valid {
        1 => Ok(false),
        0 => Err(CowFault::Invalidated),
        _ => Err(CowFault::Foreign),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
pub(super) mod tests;

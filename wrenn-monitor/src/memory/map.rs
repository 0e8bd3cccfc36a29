//! Making guest memory: fresh, privately from a memory file, empty for a fault server to fill, or privately from a
//! cache that a fault server fills.
//!
//! All of it is private to this process, so that a copy of the process freezes it (see [`crate::machine`]). In a
//! memory file, and in a cache, the regions follow each other without a gap.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::uffd::{self, LinkError};
use super::{FileId, GuestMemory, GuestRegion, Memory, Origin};
use crate::file::{FileError, open_to_read};
use crate::layout::{MMIO_GAP_END, MMIO_GAP_START, PAGE_SIZE};

/// Guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error("{size} bytes of guest memory at {address:#x} could not be mapped")]
    Map { address: u64, size: u64, source: MmapRegionError },
    #[error("there is no memory file to restore from")]
    File(#[from] FileError),
    #[error(
        "the memory file {path:?} holds {found} bytes and the snapshot's state wants {wanted}: the two are not of one snapshot"
    )]
    WrongSize { path: PathBuf, found: u64, wanted: u64 },
    #[error("the regions of guest memory overlap or are out of order")]
    Regions,
    #[error("guest memory could not be handed to the fault server")]
    Link(#[from] LinkError),
}

/// A region of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegionSpec {
    /// Where it is for the guest.
    pub(crate) address: u64,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// The regions of a guest with `size` bytes of memory: one below the hole for devices, the rest above it.
pub(crate) fn regions_of(size: u64) -> Vec<RegionSpec> {
    let low = size.min(MMIO_GAP_START);
    let mut regions = vec![RegionSpec { address: 0, size: low }];
    if size > low {
        regions.push(RegionSpec { address: MMIO_GAP_END, size: size - low });
    }
    regions
}

impl Memory {
    /// Fresh, zeroed memory.
    pub(crate) fn fresh(regions: &[RegionSpec]) -> Result<Self, MapError> {
        Ok(Self { guest: map(regions, None)?, origin: Origin::Fresh, link: None })
    }

    /// The contents of the memory file at `path`; what the guest writes stays in this process.
    pub(crate) fn from_file(regions: &[RegionSpec], path: &Path) -> Result<Self, MapError> {
        let (file, metadata) = open_to_read(path)?;
        let (found, wanted) = (metadata.len(), total(regions));
        if found != wanted {
            return Err(MapError::WrongSize { path: path.to_owned(), found, wanted });
        }
        let guest = map(regions, Some(Arc::new(file)))?;
        Ok(Self { guest, origin: Origin::File(FileId::of(&metadata)), link: None })
    }

    /// Memory whose pages the fault server behind `socket` provides when they are first touched.
    ///
    /// Returns once the server has been handed the userfaultfd: from then on it may be touched.
    pub(crate) fn from_fault_server(regions: &[RegionSpec], socket: &Path) -> Result<Self, MapError> {
        let guest = map(regions, None)?;
        let link = Some(uffd::connect(socket)?.hand_over(&guest)?);
        Ok(Self { guest, origin: Origin::FaultServer, link })
    }

    /// Memory whose contents are those of the cache that the fault server behind `socket` shares and fills; what the
    /// guest writes stays in this process.
    ///
    /// Returns once the server has been handed the userfaultfd: from then on it may be touched.
    pub(crate) fn from_cache(regions: &[RegionSpec], socket: &Path) -> Result<Self, MapError> {
        let server = uffd::connect(socket)?;
        let cache = server.receive_cache(total(regions))?;
        let guest = map(regions, Some(Arc::new(cache)))?;
        let link = Some(server.hand_over(&guest)?);
        Ok(Self { guest, origin: Origin::Cache, link })
    }
}

fn total(regions: &[RegionSpec]) -> u64 {
    regions.iter().map(|region| region.size).sum()
}

/// Maps the regions, one behind the other in `file` where there is one.
fn map(regions: &[RegionSpec], file: Option<Arc<File>>) -> Result<GuestMemory, MapError> {
    let mut mapped = Vec::with_capacity(regions.len());
    let mut offset = 0;
    for region in regions {
        let size = usize::try_from(region.size).map_err(|_| MapError::Regions)?;
        let mut flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let mut builder = MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::with_len(size))
            .with_mmap_prot((ProtFlags::READ | ProtFlags::WRITE).bits() as i32);
        match &file {
            Some(file) => builder = builder.with_file_offset(FileOffset::from_arc(file.clone(), offset)),
            None => flags |= MapFlags::from_bits_retain(libc::MAP_ANONYMOUS as u32),
        }
        let mapping = builder
            .with_mmap_flags(flags.bits() as i32)
            .build()
            .map_err(|source| MapError::Map { address: region.address, size: region.size, source })?;
        mapped.push(GuestRegion::new(mapping, GuestAddress(region.address)).ok_or(MapError::Regions)?);
        offset += region.size;
    }
    GuestMemoryMmap::from_regions(mapped).map_err(|_| MapError::Regions)
}

/// The regions of `guest`, each with its offset in a memory file.
pub(crate) fn with_offsets(guest: &GuestMemory) -> impl Iterator<Item = (&GuestRegion, u64)> {
    guest.iter().scan(0, |next, region| {
        let offset = *next;
        *next += region.len();
        Some((region, offset))
    })
}

/// The number of pages of `region`.
pub(crate) fn pages_of(region: &GuestRegion) -> usize {
    (region.len() / PAGE_SIZE) as usize
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_goes_around_the_hole_for_devices() {
        let gib = 1 << 30;
        assert_eq!(regions_of(MIB), [RegionSpec { address: 0, size: MIB }]);
        assert_eq!(regions_of(3 * gib), [RegionSpec { address: 0, size: 3 * gib }]);
        let split =
            [RegionSpec { address: 0, size: 3 * gib }, RegionSpec { address: 4 * gib, size: 2 * gib }];
        assert_eq!(regions_of(5 * gib), split);
    }

    #[test]
    fn fresh_memory_is_zero() {
        let memory = Memory::fresh(&regions_of(MIB)).unwrap();
        assert_eq!(memory.guest.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 0);
    }

    #[test]
    fn a_memory_file_is_mapped_privately() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7u8; MIB as usize]).unwrap();
        let memory = Memory::from_file(&regions_of(MIB), file.path()).unwrap();
        memory.guest.write_obj(9u8, GuestAddress(5)).unwrap();
        assert_eq!(memory.guest.read_obj::<u8>(GuestAddress(6)).unwrap(), 7);
        assert!(std::fs::read(file.path()).unwrap().iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_memory_file_of_another_size_or_kind_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MIB - 1).unwrap();
        let refused = Memory::from_file(&regions_of(MIB), file.path()).err().unwrap();
        assert!(
            matches!(refused, MapError::WrongSize { found, wanted, .. } if (found, wanted) == (MIB - 1, MIB))
        );
        let refused = Memory::from_file(&regions_of(MIB), Path::new("/")).err().unwrap();
        assert!(matches!(refused, MapError::File(FileError::NotRegular { .. })));
        let refused = Memory::from_file(&regions_of(MIB), Path::new("/no/such/file")).err().unwrap();
        assert!(matches!(refused, MapError::File(FileError::Open { .. })));
    }
}

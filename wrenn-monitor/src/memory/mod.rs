//! Guest memory: where it comes from, which of its pages changed, and writing them to a file.
//!
//! One or two regions of host memory lie around the guest's hole for devices ([`map`]). Three sources know of
//! changes: KVM's log has what the guest wrote, each region's bitmap what the *monitor* wrote, and the page
//! tables what a private mapping does not share with what lies below it ([`pages`]). `vm-memory` marks what goes through
//! its own accessors; whoever lets the kernel write by pointer (a block read) marks the slice's bitmap itself.
//!
//! Invariant: [`Memory`] never changes its regions, so a region's index is its KVM slot, and the sum of the
//! sizes before it is its offset in a memory file.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{FileOffset, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};
use wrenn_vmm::api::MemoryRegion;

mod dirty;
mod dump;
mod map;
mod pages;
mod uffd;

pub(crate) use dirty::DirtyPages;
pub(crate) use dump::{DumpError, DumpKind};
pub(crate) use map::{MapError, RegionSpec, regions_of};
pub(crate) use pages::PageSet;
pub(crate) use uffd::FaultLink;

/// The guest's memory; clones share it.
pub(crate) type GuestMemory = GuestMemoryMmap<AtomicBitmap>;
/// One contiguous piece of guest memory.
pub(crate) type GuestRegion = GuestRegionMmap<AtomicBitmap>;

/// The guest's memory, and what it was made from.
#[derive(Debug)]
pub(crate) struct Memory {
    guest: GuestMemory,
    origin: Origin,
    link: Option<FaultLink>,
}

/// What guest memory was made from.
#[derive(Debug)]
enum Origin {
    /// Nothing: a page that was never touched is zero.
    Fresh,
    /// A memory file, mapped privately.
    File(FileId),
    /// Anonymous memory that a fault server fills.
    FaultServer,
    /// A cache that a fault server fills, mapped privately.
    Cache,
}

/// What makes two names one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl Memory {
    /// The memory as devices and KVM take it.
    pub(crate) fn guest(&self) -> &GuestMemory {
        &self.guest
    }

    /// The memory file that the guest still reads from.
    pub(crate) fn source_file(&self) -> Option<FileId> {
        match &self.origin {
            Origin::File(id) => Some(*id),
            Origin::Fresh | Origin::FaultServer | Origin::Cache => None,
        }
    }

    /// Takes the link to the fault server that provides missing pages: from when it is dropped they read as zeros.
    pub(crate) fn take_fault_link(&mut self) -> Option<FaultLink> {
        self.link.take()
    }

    /// Where guest memory is in this process and in a memory file.
    pub(crate) fn layout(&self) -> Vec<MemoryRegion> {
        let region = |(region, offset): (&GuestRegion, u64)| MemoryRegion {
            host_address: region.as_ptr() as u64,
            size: region.len(),
            offset,
        };
        map::with_offsets(&self.guest).map(region).collect()
    }

    /// The pages of `region` that may hold something other than zeros.
    fn present_pages(&self, region: &GuestRegion) -> io::Result<PageSet> {
        match &self.origin {
            Origin::Fresh => self.touched_pages(region),
            Origin::File(_) => {
                let mut present = file_pages(region)?;
                present.insert_all(&self.touched_pages(region)?);
                Ok(present)
            }
            Origin::FaultServer | Origin::Cache => Ok(PageSet::full(map::pages_of(region))),
        }
    }

    /// The pages of `region` that may differ from what the memory was made from: exact for a memory file and a
    /// cache; for a fault server's memory everything that was ever touched.
    fn touched_pages(&self, region: &GuestRegion) -> io::Result<PageSet> {
        pages::own_pages(region.as_ptr() as u64, map::pages_of(region))
    }
}

fn file_pages(region: &GuestRegion) -> io::Result<PageSet> {
    let pages = map::pages_of(region);
    match region.file_offset() {
        Some(backing) => pages::data_pages(FileOffset::file(backing), backing.start(), pages),
        None => Ok(PageSet::full(pages)),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::bitmap::Bitmap;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    fn dirty_pages(memory: &GuestMemory) -> Vec<(u64, usize)> {
        let dirty = |region: &GuestRegion| {
            let base = region.start_addr().0;
            let bits = (0..map::pages_of(region)).filter(|page| region.bitmap().dirty_at(page * 4096));
            bits.map(|page| (base, page)).collect::<Vec<_>>()
        };
        memory.iter().flat_map(dirty).collect()
    }

    #[test]
    fn writes_through_vm_memory_mark_themselves() {
        let memory = Memory::fresh(&regions_of(1 << 20)).unwrap();
        memory.guest().write_slice(&[1, 2], GuestAddress(0x2fff)).unwrap();
        assert_eq!(dirty_pages(memory.guest()), [(0, 2), (0, 3)]);
    }

    #[test]
    fn touched_pages_of_a_private_file_mapping_are_exactly_the_written_ones() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let memory = Memory::from_file(&regions_of(1 << 20), file.path()).unwrap();
        let _: u64 = memory.guest().read_obj(GuestAddress(0x5000)).unwrap();
        memory.guest().write_obj(1u8, GuestAddress(0x7000)).unwrap();
        let region = memory.guest().find_region(GuestAddress(0)).unwrap();
        let touched = memory.touched_pages(region).unwrap();
        assert_eq!(touched.runs(usize::MAX).collect::<Vec<_>>(), [7..8]);
        assert_eq!(memory.present_pages(region).unwrap(), touched);
    }
}

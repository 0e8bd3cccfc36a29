//! Writing guest memory to a file: raw, region after region, as Firecracker lays it out.
//!
//! What a hole means depends on the kind. In a full dump it reads as zero, so all-zero pages are left out. In a
//! diff it means "unchanged", so a changed page is written whatever it holds: a zero page left out would bring
//! back what the base has there.
//!
//! On failure the file's contents are undefined; guest memory and the record of changes are untouched.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{GuestRegion, Memory, PageSet, map};
use crate::layout::PAGE_SIZE;

const PAGE: usize = PAGE_SIZE as usize;
/// How many pages are copied out of the guest and written at once.
const RUN: usize = 256;

/// What of guest memory is written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum DumpKind<'a> {
    /// Everything.
    Full,
    /// These pages of each region.
    Changed(&'a [PageSet]),
    /// All that may differ from what the memory was made from, where nobody recorded changes.
    Touched,
}

/// Guest memory could not be written out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DumpError {
    #[error("the memory file could not be given its size of {size} bytes")]
    Resize { size: u64, source: io::Error },
    #[error("the pages in use at {address:#x} could not be told")]
    Pages { address: u64, source: io::Error },
    #[error("guest memory at {address:#x} could not be read")]
    Read { address: u64, source: vm_memory::GuestMemoryError },
    #[error("the memory file could not be written at offset {offset}")]
    Write { offset: u64, source: io::Error },
    #[error("the memory file could not be brought to disk")]
    Sync(#[source] io::Error),
}

impl Memory {
    /// Writes guest memory to `file` and brings it to disk; returns the number of bytes written as data.
    ///
    /// A diff into a file of the memory's size is written over what is there; any other file is emptied first.
    /// The guest must not run, nor a device write to its memory.
    pub(crate) fn dump(&self, file: &File, kind: DumpKind<'_>) -> Result<u64, DumpError> {
        let full = matches!(kind, DumpKind::Full);
        let size = self.guest.iter().map(GuestMemoryRegion::len).sum();
        resize(file, size, full).map_err(|source| DumpError::Resize { size, source })?;
        let mut buffer = vec![0; RUN * PAGE];
        let mut written = 0;
        for (index, (region, offset)) in map::with_offsets(&self.guest).enumerate() {
            let pages = self
                .pages_to_write(kind, index, region)
                .map_err(|source| DumpError::Pages { address: region.start_addr().0, source })?;
            for run in pages.runs(RUN) {
                written += write_run(file, offset, region, run, full, &mut buffer)?;
            }
        }
        file.sync_all().map_err(DumpError::Sync)?;
        Ok(written)
    }

    fn pages_to_write<'a>(
        &self,
        kind: DumpKind<'a>,
        index: usize,
        region: &GuestRegion,
    ) -> io::Result<Cow<'a, PageSet>> {
        match kind {
            DumpKind::Full => self.present_pages(region).map(Cow::Owned),
            DumpKind::Touched => self.touched_pages(region).map(Cow::Owned),
            DumpKind::Changed(pages) => Ok(Cow::Borrowed(&pages[index])),
        }
    }
}

fn resize(file: &File, size: u64, empty: bool) -> io::Result<()> {
    if empty || file.metadata()?.len() != size {
        file.set_len(0)?;
        file.set_len(size)?;
    }
    Ok(())
}

/// Writes the pages `run` of `region`, whose place in the file is `base`.
fn write_run(
    file: &File,
    base: u64,
    region: &GuestRegion,
    run: Range<usize>,
    skip_zeros: bool,
    buffer: &mut [u8],
) -> Result<u64, DumpError> {
    let start = run.start as u64 * PAGE_SIZE;
    let bytes = &mut buffer[..run.len() * PAGE];
    region
        .read_slice(bytes, MemoryRegionAddress(start))
        .map_err(|source| DumpError::Read { address: region.start_addr().0 + start, source })?;
    let mut written = 0;
    for piece in if skip_zeros { nonzero_pieces(bytes) } else { vec![0..bytes.len()] } {
        let offset = base + start + piece.start as u64;
        file.write_all_at(&bytes[piece.clone()], offset)
            .map_err(|source| DumpError::Write { offset, source })?;
        written += piece.len() as u64;
    }
    Ok(written)
}

/// The runs of pages in `bytes` that are not all zero, as byte ranges.
fn nonzero_pieces(bytes: &[u8]) -> Vec<Range<usize>> {
    static ZEROS: [u8; PAGE] = [0; PAGE];
    let mut pieces: Vec<Range<usize>> = Vec::new();
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        if page == &ZEROS[..page.len()] {
            continue;
        }
        let start = index * PAGE;
        match pieces.last_mut() {
            Some(piece) if piece.end == start => piece.end = start + page.len(),
            _ => pieces.push(start..start + page.len()),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory::pages::data_pages;
    use crate::memory::{RegionSpec, regions_of};

    const MIB: u64 = 1 << 20;

    fn data_runs(file: &File) -> Vec<Range<usize>> {
        let pages = (file.metadata().unwrap().len() / PAGE_SIZE) as usize;
        data_pages(file, 0, pages).unwrap().runs(usize::MAX).collect()
    }

    fn two_regions() -> [RegionSpec; 2] {
        [RegionSpec { address: 0, size: 4 * MIB }, RegionSpec { address: 1 << 32, size: MIB }]
    }

    #[test]
    fn a_full_dump_holds_all_regions_and_no_zeros_and_fills_no_hole() {
        let memory = Memory::fresh(&two_regions()).unwrap();
        memory.guest.write_obj(1u8, GuestAddress(3 * PAGE_SIZE)).unwrap();
        memory.guest.write_obj(0u8, GuestAddress(9 * PAGE_SIZE)).unwrap();
        memory.guest.write_obj(2u8, GuestAddress((1 << 32) + PAGE_SIZE - 1)).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 100], 0).unwrap();

        assert_eq!(memory.dump(&file, DumpKind::Full).unwrap(), 2 * PAGE_SIZE);
        assert_eq!(file.metadata().unwrap().len(), 5 * MIB);
        assert_eq!(data_runs(&file), [3..4, 1024..1025]);
        let mut last = [0];
        file.read_exact_at(&mut last, 4 * MIB + PAGE_SIZE - 1).unwrap();
        assert_eq!(last, [2]);
        let region = memory.guest.iter().next().unwrap();
        assert_eq!(memory.present_pages(region).unwrap().len(), 2);
    }

    #[test]
    fn a_diff_writes_zero_pages_and_nothing_else() {
        let memory = Memory::fresh(&regions_of(MIB)).unwrap();
        memory.guest.write_obj(1u8, GuestAddress(0)).unwrap();
        let mut changed = PageSet::empty(256);
        changed.insert(4..6);
        let file = tempfile::tempfile().unwrap();
        let written = memory.dump(&file, DumpKind::Changed(&[changed])).unwrap();
        assert_eq!(written, 2 * PAGE_SIZE);
        assert_eq!(data_runs(&file), [4..6]);
    }

    #[test]
    fn a_diff_is_merged_into_a_base_of_the_same_size() {
        let memory = Memory::fresh(&regions_of(MIB)).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![5; MIB as usize], 0).unwrap();
        let mut changed = PageSet::empty(256);
        changed.insert(1..2);
        memory.dump(&file, DumpKind::Changed(&[changed])).unwrap();
        let mut bytes = vec![0; 3 * PAGE];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let expected = [[5u8; PAGE], [0; PAGE], [5; PAGE]].concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_base_and_its_diff_restore_what_the_guest_had() {
        let memory = Memory::fresh(&regions_of(MIB)).unwrap();
        memory.guest.write_slice(&vec![3; 8 * PAGE], GuestAddress(0)).unwrap();
        let base = tempfile::NamedTempFile::new().unwrap();
        memory.dump(base.as_file(), DumpKind::Full).unwrap();

        let restored = Memory::from_file(&regions_of(MIB), base.path()).unwrap();
        restored.guest.write_slice(&vec![0; PAGE], GuestAddress(2 * PAGE_SIZE)).unwrap();
        restored.guest.write_slice(&[8], GuestAddress(100 * PAGE_SIZE)).unwrap();
        let diff = tempfile::tempfile().unwrap();
        assert_eq!(restored.dump(&diff, DumpKind::Touched).unwrap(), 2 * PAGE_SIZE);
        assert_eq!(data_runs(&diff), [2..3, 100..101]);
        let full = tempfile::NamedTempFile::new().unwrap();
        restored.dump(full.as_file(), DumpKind::Full).unwrap();
        let mut expected = vec![0u8; MIB as usize];
        restored.guest.read_slice(&mut expected, GuestAddress(0)).unwrap();
        assert_eq!(std::fs::read(full.path()).unwrap(), expected);
    }
}

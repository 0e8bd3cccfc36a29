//! The memory that a process wants served, and what became of its pages.

use std::ops::Range;

use serde::Deserialize;
use wrenn_base::Bytes;

use crate::bitmap::Bitmap;
use crate::error::HandshakeError;
use crate::source::PAGE_SIZE;

/// The pages of a hugetlbfs mapping.
const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// More than any monitor has: each is a piece of guest memory between holes in the address space, or
/// hot-plugged.
pub(crate) const MAX_REGIONS: usize = 256;

/// The end of what user space can map on x86-64 with five levels of page tables.
const ADDRESS_END: u64 = 1 << 56;

/// The largest pages that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageSize {
    /// 4 KiB: those of a page cache.
    Base,
    /// 2 MiB.
    Huge,
}

/// One region as it stands in the message. Firecracker's `GuestRegionUffdMapping`; unknown members are
/// ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct WireRegion {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    /// An older name of the same, in bytes too, whatever it says.
    page_size_kib: Option<u64>,
}

/// A piece of the process's memory that shows a piece of the image.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) size: u64,
    /// Where in the image the region begins.
    pub(crate) offset: u64,
    pub(crate) page_size: u64,
    /// One bit per page: the image's content is no longer what belongs there. It was filled in before, or the
    /// process gave the page up. If it is missing all the same, it is zero.
    spent: Bitmap,
}

impl Region {
    /// Checks what can be checked of one region alone.
    fn new(wire: &WireRegion, source_len: u64, largest: PageSize) -> Result<Self, &'static str> {
        let page_size = wire.page_size.or(wire.page_size_kib).ok_or("has no page size")?;
        if page_size != PAGE_SIZE && page_size != HUGE_PAGE_SIZE {
            return Err("has a page size other than 4 KiB and 2 MiB");
        }
        if page_size != PAGE_SIZE && largest == PageSize::Base {
            return Err("has larger pages than the page cache, whose pages are of 4 KiB");
        }
        let (start, size, offset) = (wire.base_host_virt_addr, wire.size, wire.offset);
        if size == 0 {
            return Err("is empty");
        }
        if [start, size, offset].iter().any(|number| !number.is_multiple_of(page_size)) {
            return Err("is not aligned to its page size");
        }
        if start.checked_add(size).is_none_or(|end| end > ADDRESS_END) {
            return Err("reaches beyond the address space");
        }
        if offset.checked_add(size).is_none_or(|end| end > source_len) {
            return Err("reaches beyond the image");
        }
        Ok(Self { start, size, offset, page_size, spent: Bitmap::new(0) })
    }

    pub(crate) fn end(&self) -> u64 {
        self.start + self.size
    }

    pub(crate) fn pages(&self) -> u64 {
        self.size / self.page_size
    }

    /// The address of a page.
    pub(crate) fn address(&self, page: u64) -> u64 {
        self.start + page * self.page_size
    }

    /// Where in the image a page is.
    pub(crate) fn image_offset(&self, page: u64) -> u64 {
        self.offset + page * self.page_size
    }

    /// The pages of 4 KiB of the image that some of the region's pages show.
    pub(crate) fn image_pages(&self, pages: &Range<u64>) -> Range<u64> {
        self.image_offset(pages.start) / PAGE_SIZE..self.image_offset(pages.end) / PAGE_SIZE
    }

    /// The page that an address in the region is in.
    pub(crate) fn page_of(&self, address: u64) -> u64 {
        (address - self.start) / self.page_size
    }

    pub(crate) fn is_spent(&self, page: u64) -> bool {
        self.spent.get(page)
    }

    /// Notes that the image's content of these pages is used up, and returns for how many that is new.
    pub(crate) fn spend(&self, pages: Range<u64>) -> u64 {
        self.spent.set(pages)
    }

    /// The first pages of a range that are still to be filled from the image.
    pub(crate) fn next_unspent(&self, pages: Range<u64>) -> Option<Range<u64>> {
        self.spent.next_clear(pages)
    }

    /// The pages around `page` that are still to be filled from the image, within the run of `run_bytes` that
    /// `page` is in. Runs are aligned in the image, as what the image is read from is.
    pub(crate) fn unspent_around(&self, page: u64, run_bytes: u64) -> Range<u64> {
        let run = run_bytes.max(self.page_size);
        let begin = self.image_offset(page) / run * run;
        let first = begin.saturating_sub(self.offset) / self.page_size;
        let last = ((begin + run - self.offset) / self.page_size).min(self.pages());
        self.spent.clear_around(page, first..last)
    }
}

/// All regions of a process, by address.
#[derive(Debug)]
pub(crate) struct Regions {
    sorted: Vec<Region>,
    /// Positions in `sorted`, in the order in which the regions are in the image.
    by_offset: Vec<usize>,
}

impl Regions {
    /// Takes regions that show every byte of an image of `source_len` bytes exactly once.
    pub(crate) fn new(
        wire: &[WireRegion],
        source_len: u64,
        largest: PageSize,
    ) -> Result<Self, HandshakeError> {
        if !(1..=MAX_REGIONS).contains(&wire.len()) {
            return Err(HandshakeError::RegionCount { found: wire.len(), limit: MAX_REGIONS });
        }
        let mut regions = Vec::with_capacity(wire.len());
        for (index, wire) in wire.iter().enumerate() {
            let region = Region::new(wire, source_len, largest)
                .map_err(|reason| HandshakeError::Region { index, reason })?;
            regions.push((index, region));
        }
        check_overlap(&mut regions, |region| (region.offset, region.size), "shows what another one shows")?;
        check_overlap(&mut regions, |region| (region.start, region.size), "overlaps another one")?;
        // They lie within the image and apart, so this much is also the bound of what is allocated below.
        let total = regions.iter().map(|(_, region)| region.size).sum();
        if total != source_len {
            return Err(HandshakeError::Size { regions: Bytes(total), image: Bytes(source_len) });
        }
        let mut sorted: Vec<_> = regions.into_iter().map(|(_, region)| region).collect();
        for region in &mut sorted {
            region.spent = Bitmap::new(region.pages());
        }
        let mut by_offset: Vec<_> = (0..sorted.len()).collect();
        by_offset.sort_by_key(|index| sorted[*index].offset);
        Ok(Self { sorted, by_offset })
    }

    pub(crate) fn pages(&self) -> u64 {
        self.sorted.iter().map(Region::pages).sum()
    }

    /// The region that an address is in.
    pub(crate) fn at(&self, address: u64) -> Option<&Region> {
        let index = self.sorted.partition_point(|region| region.end() <= address);
        self.sorted.get(index).filter(|region| region.start <= address)
    }

    /// The region that shows a place of the image.
    pub(crate) fn showing(&self, offset: u64) -> Option<&Region> {
        let index = self.by_offset.partition_point(|index| {
            let region = &self.sorted[*index];
            region.offset + region.size <= offset
        });
        // They show every byte of the image once, so there are no gaps to fall into.
        self.by_offset.get(index).map(|index| &self.sorted[*index])
    }

    /// Notes that everything between two addresses was given up by the process, and returns how many pages
    /// that is.
    pub(crate) fn give_up(&self, start: u64, end: u64) -> u64 {
        let mut pages = 0;
        for region in &self.sorted {
            let (from, to) = (start.max(region.start), end.min(region.end()));
            if from < to {
                let gone = region.page_of(from)..region.page_of(to - 1) + 1;
                pages += gone.end - gone.start;
                region.spend(gone);
            }
        }
        pages
    }
}

/// Sorts by a range of each region and refuses two that overlap.
fn check_overlap(
    regions: &mut [(usize, Region)],
    range: impl Fn(&Region) -> (u64, u64),
    reason: &'static str,
) -> Result<(), HandshakeError> {
    regions.sort_by_key(|(_, region)| range(region).0);
    for pair in regions.windows(2) {
        let ((start, size), (next, _)) = (range(&pair[0].1), range(&pair[1].1));
        if start + size > next {
            return Err(HandshakeError::Region { index: pair[1].0, reason });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn wire(start: u64, size: u64, offset: u64, page_size: u64) -> WireRegion {
        let page_size = Some(page_size);
        WireRegion { base_host_virt_addr: start, size, offset, page_size, page_size_kib: None }
    }

    fn two() -> Regions {
        Regions::new(
            &[wire(64 * MIB, MIB, 3 * MIB, 4096), wire(16 * MIB, 3 * MIB, 0, 4096)],
            4 * MIB,
            PageSize::Huge,
        )
        .unwrap()
    }

    #[test]
    fn regions_are_found_by_address() {
        let regions = two();
        assert_eq!(regions.pages(), 1024);
        for (address, offset) in [
            (16 * MIB, Some(0)),
            (16 * MIB + 4097, Some(4096)),
            (19 * MIB - 1, Some(3 * MIB - 4096)),
            (64 * MIB, Some(3 * MIB)),
            (65 * MIB - 1, Some(4 * MIB - 4096)),
            (16 * MIB - 1, None),
            (19 * MIB, None),
            (65 * MIB, None),
            (0, None),
            (u64::MAX, None),
        ] {
            let found = regions.at(address).map(|region| region.image_offset(region.page_of(address)));
            assert_eq!(found, offset, "{address:#x}");
        }
    }

    #[test]
    fn regions_are_found_by_what_they_show() {
        let regions = two();
        for (offset, start) in [
            (0, Some(16)),
            (3 * MIB - 1, Some(16)),
            (3 * MIB, Some(64)),
            (4 * MIB - 1, Some(64)),
            (4 * MIB, None),
        ] {
            assert_eq!(regions.showing(offset).map(|region| region.start / MIB), start, "{offset:#x}");
        }
    }

    #[test]
    fn hostile_regions_are_refused() {
        let one = |start, size, offset, page_size| vec![wire(start, size, offset, page_size)];
        for (what, list) in [
            ("none", vec![]),
            ("too many", (0..257).map(|i| wire((i + 1) * MIB, 4096, i * 4096, 4096)).collect()),
            ("page size", one(MIB, 4 * MIB, 0, 8192)),
            ("page size 0", one(MIB, 4 * MIB, 0, 0)),
            ("empty", one(MIB, 0, 0, 4096)),
            ("start unaligned", one(MIB + 1, 4 * MIB, 0, 4096)),
            ("start unaligned for its pages", one(MIB, 4 * MIB, 0, 2 * MIB)),
            ("size unaligned", one(MIB, 4 * MIB - 1, 0, 4096)),
            ("offset unaligned", vec![wire(MIB, 4 * MIB - 4096, 5, 4096)]),
            ("wraps round", one(u64::MAX - 4095, 4 * MIB, 0, 4096)),
            ("above user space", one(1 << 56, 4 * MIB, 0, 4096)),
            ("offset wraps round", one(MIB, 4 * MIB, u64::MAX - 4095, 4096)),
            ("beyond the image", one(MIB, 4 * MIB, 4096, 4096)),
            ("smaller than the image", one(MIB, 3 * MIB, 0, 4096)),
            ("addresses overlap", vec![wire(MIB, 2 * MIB, 0, 4096), wire(2 * MIB, 2 * MIB, 2 * MIB, 4096)]),
            ("same addresses", vec![wire(MIB, 2 * MIB, 0, 4096), wire(MIB, 2 * MIB, 2 * MIB, 4096)]),
            ("image shown twice", vec![wire(MIB, 2 * MIB, 0, 4096), wire(8 * MIB, 2 * MIB, MIB, 4096)]),
        ] {
            assert!(Regions::new(&list, 4 * MIB, PageSize::Huge).is_err(), "{what}");
        }
        let mut nameless = wire(MIB, 4 * MIB, 0, 0);
        nameless.page_size = None;
        assert!(Regions::new(&[nameless], 4 * MIB, PageSize::Huge).is_err());
    }

    #[test]
    fn the_old_name_of_the_page_size_is_understood() {
        let text =
            r#"[{"base_host_virt_addr":4194304,"size":4194304,"offset":0,"page_size_kib":2097152,"new":1}]"#;
        let wire: Vec<WireRegion> = serde_json::from_str(text).unwrap();
        assert_eq!(Regions::new(&wire, 4 * MIB, PageSize::Huge).unwrap().pages(), 2);
    }

    #[test]
    fn runs_are_aligned_in_the_image_and_stop_at_spent_pages() {
        // The region begins 5 pages into a run of 16.
        let list = [wire(16 * MIB, 5 * 4096, 0, 4096), wire(32 * MIB, MIB - 5 * 4096, 5 * 4096, 4096)];
        let regions = Regions::new(&list, MIB, PageSize::Base).unwrap();
        let region = regions.at(32 * MIB).unwrap();
        let run = 16 * 4096;
        assert_eq!(region.unspent_around(0, run), 0..11);
        assert_eq!(region.unspent_around(11, run), 11..27);
        assert_eq!(region.unspent_around(250, run), 235..251, "the region's end cuts the run");
        assert_eq!(region.unspent_around(20, 4096), 20..21);
        assert_eq!(region.spend(13..15), 2);
        assert_eq!(region.spend(14..16), 1);
        assert_eq!(region.unspent_around(18, run), 16..27);
        assert_eq!(region.unspent_around(12, run), 11..13);
        assert!(region.is_spent(13) && !region.is_spent(16));
    }

    #[test]
    fn pages_are_given_up_across_regions() {
        let regions = two();
        assert_eq!(regions.give_up(19 * MIB - 8192, 64 * MIB + 4096), 3);
        assert_eq!(regions.give_up(0, MIB), 0);
        assert_eq!(regions.give_up(8 * MIB, 4 * MIB), 0, "a range that ends before it begins");
        let region = regions.at(16 * MIB).unwrap();
        assert!(region.is_spent(766) && region.is_spent(767) && !region.is_spent(765));
        let region = regions.at(64 * MIB).unwrap();
        assert!(region.is_spent(0) && !region.is_spent(1));
    }

    #[test]
    fn huge_pages_are_runs_of_their_own() {
        let list = [wire(16 * MIB, 8 * MIB, 0, 2 * MIB)];
        let regions = Regions::new(&list, 8 * MIB, PageSize::Huge).unwrap();
        assert_eq!(regions.pages(), 4);
        assert!(Regions::new(&list, 8 * MIB, PageSize::Base).is_err(), "a cache has none");
        let region = regions.at(19 * MIB).unwrap();
        assert_eq!((region.page_of(19 * MIB), region.unspent_around(1, 16 * 4096)), (1, 1..2));
    }
}

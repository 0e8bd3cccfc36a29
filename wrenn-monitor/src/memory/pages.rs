//! Sets of pages of one region, and the three places they are learnt from: a bitmap (KVM's log, the monitor's
//! own writes), a file's data extents, and the process's page map.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::layout::PAGE_SIZE;

/// A set of page numbers below a fixed bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageSet {
    words: Vec<u64>,
    pages: usize,
}

impl PageSet {
    /// The empty set of at most `pages` pages.
    pub(crate) fn empty(pages: usize) -> Self {
        Self { words: vec![0; pages.div_ceil(64)], pages }
    }

    /// All of `pages` pages.
    pub(crate) fn full(pages: usize) -> Self {
        let mut set = Self::empty(pages);
        set.insert(0..pages);
        set
    }

    /// Adds `range`; what is out of bounds is ignored.
    pub(crate) fn insert(&mut self, range: Range<usize>) {
        for page in range.start..range.end.min(self.pages) {
            self.words[page / 64] |= 1 << (page % 64);
        }
    }

    /// Adds the pages whose bits are set in `words`, in the order of KVM's dirty log.
    pub(crate) fn insert_words(&mut self, words: &[u64]) {
        for (mine, other) in self.words.iter_mut().zip(words) {
            *mine |= other;
        }
    }

    /// Adds the pages of `other`.
    pub(crate) fn insert_all(&mut self, other: &PageSet) {
        self.insert_words(&other.words);
    }

    /// How many pages there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.runs(usize::MAX).map(|run| run.len()).sum()
    }

    fn contains(&self, page: usize) -> bool {
        page < self.pages && self.words[page / 64] & (1 << (page % 64)) != 0
    }

    /// The pages in order, as runs of neighbours of at most `limit` pages.
    pub(crate) fn runs(&self, limit: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = self.first_from(next)?;
            let bound = start.saturating_add(limit).min(self.pages);
            let end = (start..bound).find(|page| !self.contains(*page)).unwrap_or(bound);
            next = end;
            Some(start..end)
        })
    }

    /// The first member at or after `page`, skipping empty words whole.
    fn first_from(&self, page: usize) -> Option<usize> {
        let mut word = page / 64;
        let mut bits = self.words.get(word)? & (u64::MAX << (page % 64));
        while bits == 0 {
            word += 1;
            bits = *self.words.get(word)?;
        }
        let found = word * 64 + bits.trailing_zeros() as usize;
        (found < self.pages).then_some(found)
    }
}

/// The pages of `file` from `offset` on that are data rather than holes.
///
/// Reading a hole of a memfd through its mapping would fill it: this is how to find out without.
pub(crate) fn data_pages(file: impl AsFd, offset: u64, pages: usize) -> io::Result<PageSet> {
    let mut set = PageSet::empty(pages);
    let end = offset + pages as u64 * PAGE_SIZE;
    let mut at = offset;
    while at < end {
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            // No data up to the end of the file, or none before the end of this region.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::seek(&file, SeekFrom::Hole(data))?.min(end);
        set.insert(((data - offset) / PAGE_SIZE) as usize..(at - offset).div_ceil(PAGE_SIZE) as usize);
    }
    Ok(set)
}

/// The pages of a private mapping at `address` in this process that are its own: written to, if the mapping
/// has a file below it; written to or placed by a fault server, if it has none.
///
/// Source: the kernel's `admin-guide/mm/pagemap.rst`.
pub(crate) fn own_pages(address: u64, pages: usize) -> io::Result<PageSet> {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const OF_FILE: u64 = 1 << 61;
    const BATCH: usize = 8192;

    let pagemap = File::open("/proc/self/pagemap")?;
    let mut set = PageSet::empty(pages);
    let mut buffer = vec![0u8; BATCH.min(pages) * 8];
    let first = address / PAGE_SIZE;
    for start in (0..pages).step_by(BATCH) {
        let bytes = &mut buffer[..BATCH.min(pages - start) * 8];
        pagemap.read_exact_at(bytes, (first + start as u64) * 8)?;
        for (page, entry) in bytes.chunks_exact(8).enumerate() {
            let entry = u64::from_le_bytes(entry.try_into().expect("chunks of eight bytes"));
            if entry & OF_FILE == 0 && entry & (PRESENT | SWAPPED) != 0 {
                set.insert(start + page..start + page + 1);
            }
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn runs(set: &PageSet, limit: usize) -> Vec<Range<usize>> {
        set.runs(limit).collect()
    }

    #[test]
    fn runs_join_neighbours_up_to_the_limit() {
        let mut set = PageSet::empty(200);
        set.insert(62..67);
        set.insert(199..400);
        assert_eq!(runs(&set, 100), [62..67, 199..200]);
        assert_eq!(runs(&set, 2), [62..64, 64..66, 66..67, 199..200]);
        assert_eq!(runs(&PageSet::full(130), usize::MAX), [0..130]);
        assert_eq!(runs(&PageSet::empty(0), 1), []);
    }

    #[test]
    fn bits_past_the_bound_are_no_pages() {
        let mut set = PageSet::empty(3);
        set.insert_words(&[u64::MAX, u64::MAX]);
        assert_eq!(runs(&set, usize::MAX), [0..3]);
        assert_eq!(set.len(), 3);
    }

    #[test]
    fn a_files_holes_are_not_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE_SIZE).unwrap();
        file.write_all_at(&[1], 20 * PAGE_SIZE + 5).unwrap();
        file.write_all_at(&[1], 40 * PAGE_SIZE).unwrap();
        let data = data_pages(&file, 10 * PAGE_SIZE, 30).unwrap();
        assert_eq!(runs(&data, usize::MAX), [10..11]);
    }

    proptest! {
        #[test]
        fn runs_are_exactly_the_members(pages in proptest::collection::btree_set(0usize..300, 0..80), limit in 1usize..70) {
            let mut set = PageSet::empty(300);
            for page in &pages {
                set.insert(*page..*page + 1);
            }
            prop_assert!(set.runs(limit).all(|run| !run.is_empty() && run.len() <= limit));
            prop_assert_eq!(set.runs(limit).flatten().collect::<Vec<_>>(), pages.into_iter().collect::<Vec<_>>());
        }
    }
}

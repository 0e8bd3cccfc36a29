//! Which pages of another process's private mapping are its own.
//!
//! Sources: the kernel's `admin-guide/mm/pagemap.rst` and `linux/fs.h`. Since Linux 6.7 `PAGEMAP_SCAN` answers for
//! whole ranges; before, every page has an entry of eight bytes to be read.
//!
//! The kernel's shared page of zeros is told apart, as reading those pages would be in vain. It counts as the
//! process's own: it stands where zeros were placed, and the kernel also puts it in the place of pages that became
//! zero (KSM, the splitting of huge pages), so it must not be taken for "unchanged".

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use crate::sys::{self, CATEGORY_ZERO, ScanRegion};

const PAGE: u64 = 4096;
/// How many entries are read, or runs asked for, at a time.
const BATCH: usize = 8192;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
const FRAME: u64 = (1 << 55) - 1;

/// Neighbouring pages that are the process's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnRun {
    pub(crate) addresses: Range<u64>,
    /// Whether all of them are the kernel's page of zeros.
    pub(crate) zero: bool,
}

/// The pages of `range` that are the process's own, of the process whose page map that is.
pub(crate) fn own_runs(pagemap: &File, range: Range<u64>) -> io::Result<Vec<OwnRun>> {
    match scan(pagemap, range.clone()) {
        // Not known, or not for this kind of file.
        Err(e) if [Some(libc::ENOTTY), Some(libc::EINVAL)].contains(&e.raw_os_error()) => {
            read_entries(pagemap, range)
        }
        result => result,
    }
}

fn scan(pagemap: &File, range: Range<u64>) -> io::Result<Vec<OwnRun>> {
    let mut runs = Vec::new();
    let mut regions = vec![ScanRegion::default(); BATCH];
    let mut next = range.start;
    while next < range.end {
        let (found, end) = sys::scan_pagemap(pagemap, next..range.end, &mut regions)?;
        for region in &regions[..found] {
            let zero = region.categories & CATEGORY_ZERO != 0;
            push(&mut runs, OwnRun { addresses: region.start..region.end, zero });
        }
        if end <= next {
            return Err(io::Error::other("the kernel's scan of a page map does not advance"));
        }
        next = end;
    }
    Ok(runs)
}

fn read_entries(pagemap: &File, range: Range<u64>) -> io::Result<Vec<OwnRun>> {
    let zero_frame = zero_frame();
    let mut runs = Vec::new();
    let mut buffer = vec![0; BATCH * 8];
    for start in range.clone().step_by(BATCH * PAGE as usize) {
        let pages = ((range.end - start) / PAGE).min(BATCH as u64) as usize;
        let bytes = &mut buffer[..pages * 8];
        pagemap.read_exact_at(bytes, start / PAGE * 8)?;
        for (page, entry) in bytes.chunks_exact(8).enumerate() {
            let entry = u64::from_le_bytes(entry.try_into().expect("chunks of eight bytes"));
            if entry & OF_FILE != 0 || entry & (PRESENT | SWAPPED) == 0 {
                continue;
            }
            let address = start + page as u64 * PAGE;
            let zero = entry & PRESENT != 0 && Some(entry & FRAME) == zero_frame;
            push(&mut runs, OwnRun { addresses: address..address + PAGE, zero });
        }
    }
    Ok(runs)
}

/// Adds a run, to the last one if it continues that.
fn push(runs: &mut Vec<OwnRun>, run: OwnRun) {
    match runs.last_mut() {
        Some(last) if last.addresses.end == run.addresses.start && last.zero == run.zero => {
            last.addresses.end = run.addresses.end;
        }
        _ => runs.push(run),
    }
}

/// The frame of the kernel's page of zeros; nothing where this process may not know frames.
fn zero_frame() -> Option<u64> {
    static FRAME_OF_ZEROS: OnceLock<Option<u64>> = OnceLock::new();
    *FRAME_OF_ZEROS.get_or_init(|| find_zero_frame().ok().flatten())
}

/// Reads two pages that nobody wrote and looks where they are. Only if it is the same frame is it that of zeros:
/// memory that is used again is cleared by writing to it, and has frames of its own.
fn find_zero_frame() -> io::Result<Option<u64>> {
    let fresh = vec![0u8; 256 << 10];
    let first = (fresh.as_ptr() as u64).next_multiple_of(PAGE);
    let pagemap = File::open("/proc/self/pagemap")?;
    let frame = |page: u64| -> io::Result<Option<u64>> {
        let address = first + page * PAGE;
        black_box(fresh[(address - fresh.as_ptr() as u64) as usize]);
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, address / PAGE * 8)?;
        let entry = u64::from_le_bytes(entry);
        Ok((entry & PRESENT != 0 && entry & FRAME != 0).then_some(entry & FRAME))
    };
    let (one, other) = (frame(1)?, frame(33)?);
    Ok(one.filter(|frame| Some(*frame) == other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tests::PrivateMapping;

    fn check(own_runs: impl Fn(&File, Range<u64>) -> io::Result<Vec<OwnRun>>) {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        // Anonymous memory: what was touched; what was only read is the page of zeros.
        let anonymous = PrivateMapping::anonymous(64);
        anonymous.write(3, 1);
        anonymous.write(4, 0);
        anonymous.read(9);
        let found = own_runs(&pagemap, anonymous.addresses()).unwrap();
        let run = |mapping: &PrivateMapping, pages: Range<u64>, zero| OwnRun {
            addresses: mapping.addresses().start + pages.start * PAGE
                ..mapping.addresses().start + pages.end * PAGE,
            zero,
        };
        assert_eq!(found, [run(&anonymous, 3..5, false), run(&anonymous, 9..10, true)]);
        // Over a file: what was written, and not what was read.
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 64 * PAGE as usize], 0).unwrap();
        let mapped = PrivateMapping::of(&file, 64);
        assert_eq!(mapped.read(20), 7);
        mapped.write(21, 7);
        mapped.write(63, 0);
        let found = own_runs(&pagemap, mapped.addresses()).unwrap();
        assert_eq!(found, [run(&mapped, 21..22, false), run(&mapped, 63..64, false)]);
        // Longer than one batch.
        let long = PrivateMapping::anonymous(2 * BATCH as u64 + 10);
        for page in (0..2 * BATCH as u64 + 10).step_by(2) {
            long.write(page, 1);
        }
        assert_eq!(own_runs(&pagemap, long.addresses()).unwrap().len(), BATCH + 5);
    }

    #[test]
    fn entries_tell_own_pages() {
        check(read_entries);
    }

    #[test]
    fn a_scan_tells_the_same() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        if scan(&pagemap, 0..PAGE).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTTY)) {
            println!("SKIP: this kernel has no PAGEMAP_SCAN (Linux 6.7)");
            return;
        }
        check(scan);
    }

    #[test]
    fn root_knows_the_frame_of_zeros() {
        assert!(zero_frame().is_some());
    }
}

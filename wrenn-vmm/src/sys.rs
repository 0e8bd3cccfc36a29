//! Reading another process's memory and page map: the part of this crate, beside [`crate::launch`]'s, that the compiler
//! cannot check.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rustix::process::Pid;

/// Fills `buf` from the memory of the process `pid` at `address`.
///
/// A page that cannot be read ends it with `EFAULT`.
pub(crate) fn read_process(pid: Pid, address: u64, buf: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut buf[done..];
        let local = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        let remote =
            libc::iovec { iov_base: (address + done as u64) as *mut libc::c_void, iov_len: rest.len() };
        // SAFETY: `local` describes the part of `buf` that is not filled yet, which this call alone writes to. The
        // remote address is looked up in the other process, whatever it is.
        let read = unsafe { libc::process_vm_readv(pid.as_raw_nonzero().get(), &local, 1, &remote, 1, 0) };
        match usize::try_from(read) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ScanRegion {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) categories: u64,
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const CATEGORY_FILE: u64 = 1 << 2;
const CATEGORY_PRESENT: u64 = 1 << 3;
const CATEGORY_SWAPPED: u64 = 1 << 4;
/// The page is the kernel's page of zeros.
pub(crate) const CATEGORY_ZERO: u64 = 1 << 5;

/// Fills `regions` with the pages of `range` that are present or swapped and no file's; returns how many regions
/// that took, and how far it came.
pub(crate) fn scan_pagemap(
    pagemap: &File,
    range: Range<u64>,
    regions: &mut [ScanRegion],
) -> io::Result<(usize, u64)> {
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        start: range.start,
        end: range.end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: CATEGORY_FILE,
        category_mask: CATEGORY_FILE,
        category_anyof_mask: CATEGORY_PRESENT | CATEGORY_SWAPPED,
        return_mask: CATEGORY_PRESENT | CATEGORY_ZERO,
        ..ScanArg::default()
    };
    // SAFETY: `arg` is laid out as the kernel has it and says where `regions` is and how long; the kernel writes to
    // the two and to nothing else.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
    match usize::try_from(found) {
        Ok(found) => Ok((found.min(regions.len()), arg.walk_end)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::{AsFd, BorrowedFd};

    use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

    use super::*;

    const PAGE: usize = 4096;

    /// A private mapping, to be touched page by page.
    pub(crate) struct PrivateMapping {
        start: *mut u8,
        pages: u64,
    }

    impl PrivateMapping {
        const ACCESS: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

        pub(crate) fn anonymous(pages: u64) -> Self {
            // SAFETY: a new mapping, at a place that the kernel chooses.
            let start = unsafe {
                mmap_anonymous(std::ptr::null_mut(), pages as usize * PAGE, Self::ACCESS, MapFlags::PRIVATE)
            };
            Self { start: start.unwrap().cast(), pages }
        }

        pub(crate) fn of(file: &File, pages: u64) -> Self {
            let (len, file): (usize, BorrowedFd<'_>) = (pages as usize * PAGE, file.as_fd());
            // SAFETY: as above; the file is at least as long.
            let start = unsafe { mmap(std::ptr::null_mut(), len, Self::ACCESS, MapFlags::PRIVATE, file, 0) };
            Self { start: start.unwrap().cast(), pages }
        }

        pub(crate) fn addresses(&self) -> Range<u64> {
            self.start as u64..self.start as u64 + self.pages * PAGE as u64
        }

        pub(crate) fn write(&self, page: u64, value: u8) {
            assert!(page < self.pages);
            // SAFETY: within the mapping, which nothing holds references into.
            unsafe { self.start.add(page as usize * PAGE).write_volatile(value) }
        }

        pub(crate) fn read(&self, page: u64) -> u8 {
            assert!(page < self.pages);
            // SAFETY: as in `write`.
            unsafe { self.start.add(page as usize * PAGE).read_volatile() }
        }
    }

    impl Drop for PrivateMapping {
        fn drop(&mut self) {
            // SAFETY: the mapping is this value's own.
            unsafe { munmap(self.start.cast(), self.pages as usize * PAGE) }.unwrap();
        }
    }
}

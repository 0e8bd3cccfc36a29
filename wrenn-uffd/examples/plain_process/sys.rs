//! Memory whose faults somebody else answers: mapping, touching and discarding it.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;
use std::ptr::null_mut;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// A private mapping, of nothing or of a page cache, read and written page by page through volatile accesses.
///
/// What is in it may change behind the compiler's back, so it is never lent out as a slice.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: every access is a volatile read or write of single bytes, whoever makes it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of 4 KiB pages.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        Self::with_flags(len, MapFlags::empty())
    }

    /// Maps `len` bytes of 2 MiB pages, of which the machine has to have some set aside.
    #[allow(dead_code, reason = "only tests use huge pages")]
    pub(crate) fn huge(len: usize) -> io::Result<Self> {
        Self::with_flags(len, MapFlags::HUGETLB | MapFlags::HUGE_2MB)
    }

    /// Maps a page cache, or a piece of it: what is written stays here.
    #[allow(dead_code, reason = "only some map a page cache")]
    pub(crate) fn of_cache(cache: impl AsFd, offset: u64, len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that is there.
        let start = unsafe { mmap(null_mut(), len, access, MapFlags::PRIVATE, cache, offset)? };
        Ok(Self { start: start.cast(), len })
    }

    fn with_flags(len: usize, flags: MapFlags) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that is there.
        let start = unsafe { mmap_anonymous(null_mut(), len, access, MapFlags::PRIVATE | flags)? };
        let mapping = Self { start: start.cast(), len };
        if !flags.contains(MapFlags::HUGETLB) {
            // SAFETY: the range is the mapping just made. Without huge pages each fault is one page's.
            unsafe { madvise(start, len, Advice::LinuxNoHugepage)? };
        }
        Ok(mapping)
    }

    /// Where the mapping begins.
    pub(crate) fn address(&self) -> u64 {
        self.start as u64
    }

    /// The same for interfaces that want a pointer.
    pub(crate) fn pointer(&self) -> *mut c_void {
        self.start.cast()
    }

    /// Its length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a mapping has at least one page")]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes out, faulting pages in.
    pub(crate) fn read(&self, offset: usize, buf: &mut [u8]) {
        assert!(offset <= self.len && buf.len() <= self.len - offset);
        for (i, byte) in buf.iter_mut().enumerate() {
            // SAFETY: within the mapping, by the assertion.
            *byte = unsafe { self.start.add(offset + i).read_volatile() };
        }
    }

    /// Writes one byte, faulting its page in.
    #[allow(dead_code, reason = "only tests write")]
    pub(crate) fn write(&self, offset: usize, byte: u8) {
        assert!(offset < self.len);
        // SAFETY: within the mapping, by the assertion.
        unsafe { self.start.add(offset).write_volatile(byte) };
    }

    /// Gives pages back (`MADV_DONTNEED`), as a balloon does.
    #[allow(dead_code, reason = "only tests discard")]
    pub(crate) fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: within the mapping, by the assertion, and nobody has references into it.
        unsafe { madvise(self.start.add(offset).cast(), len, Advice::LinuxDontNeed)? };
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and it is gone after this.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}

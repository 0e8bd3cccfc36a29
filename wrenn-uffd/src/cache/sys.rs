//! The memory of a page cache: a memfd, the one mapping that may fill it, and that mapping's userfaultfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fchmod, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::sys::{Filled, Uffd, UffdioRange};

const UFFDIO: u8 = 0xaa;
const API: Opcode = opcode::read_write::<UffdioApi>(UFFDIO, 0x3f);
const REGISTER: Opcode = opcode::read_write::<UffdioRegister>(UFFDIO, 0x00);

/// The version of the interface, which has the value of the ioctls' type.
const UFFD_API: u64 = 0xaa;
const REGISTER_MISSING: u64 = 1;
/// `UFFD_USER_MODE_ONLY`: needs no privilege, and this userfaultfd never sees a fault of any mode.
const USER_MODE_ONLY: libc::c_int = 1;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

/// A sealed memfd of a fixed size, which nobody can write but through [`copy`](Self::copy).
#[derive(Debug)]
pub(crate) struct CacheMemory {
    /// Before the mapping: what is registered with it is let go before it is unmapped.
    uffd: Uffd,
    mapping: Mapping,
    /// Open for reading only, for whoever maps it too.
    shown: OwnedFd,
}

impl CacheMemory {
    pub(crate) fn new(len: u64) -> io::Result<Self> {
        let file = memfd()?;
        ftruncate(&file, len)?;
        let uffd = create()?;
        let mapping = Mapping::new(&file, usize::try_from(len).map_err(io::Error::other)?)?;
        register(&uffd, &mapping)?;
        // Only now: a mapping that can be written is refused once this is so, and the one there is stays.
        let seals = SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        let shown = reopen(&file)?;
        // `fallocate` is not sealed off, and would make pages of zeros: nobody else is to open it for writing.
        fchmod(&file, Mode::RUSR)?;
        Ok(Self { uffd: Uffd::adopt(uffd)?, mapping, shown })
    }

    /// What a process that is served maps.
    pub(crate) fn shown(&self) -> BorrowedFd<'_> {
        self.shown.as_fd()
    }

    /// Puts content where there is none yet. The range lies within the memory.
    pub(crate) fn copy(&self, offset: u64, content: &[u8]) -> Filled {
        self.uffd.copy(self.mapping.start as u64 + offset, content)
    }

    /// The bytes that are there, whoever put them there.
    pub(crate) fn allocated(&self) -> io::Result<u64> {
        Ok(u64::try_from(rustix::fs::fstat(&self.shown)?.st_blocks).unwrap_or(0) * 512)
    }
}

fn memfd() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create("wrenn-page-cache", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => Ok(memfd_create("wrenn-page-cache", flags)?),
        result => Ok(result?),
    }
}

fn reopen(file: &OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn create() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    // SAFETY: the system call takes flags and nothing else.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut api = UffdioApi { api: UFFD_API, features: 0, ioctls: 0 };
    // SAFETY: API updates a `struct uffdio_api`, which this is.
    unsafe { ioctl::ioctl(&fd, ioctl::Updater::<API, UffdioApi>::new(&mut api)) }?;
    Ok(fd)
}

fn register(uffd: &OwnedFd, mapping: &Mapping) -> io::Result<()> {
    let range = UffdioRange { start: mapping.start as u64, len: mapping.len as u64 };
    let mut register = UffdioRegister { range, mode: REGISTER_MISSING, ioctls: 0 };
    // SAFETY: REGISTER updates a `struct uffdio_register`, which this is. The range is a mapping that nobody
    // reads or writes, so nobody will wait for its pages.
    unsafe { ioctl::ioctl(uffd, ioctl::Updater::<REGISTER, UffdioRegister>::new(&mut register)) }?;
    Ok(())
}

/// A shared mapping through which nothing is ever read or written: it is where the kernel copies to.
#[derive(Debug)]
struct Mapping {
    start: *mut std::ffi::c_void,
    len: usize,
}

// SAFETY: no code accesses the memory behind the pointer; it is only a number for the kernel.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &OwnedFd, len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that is there.
        let start =
            unsafe { mmap(null_mut(), len, access, MapFlags::SHARED | MapFlags::NORESERVE, file, 0)? };
        Ok(Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, nobody has references into it, and it is gone after this.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_the_kernels() {
        // As printed by a C program that includes linux/userfaultfd.h on x86-64.
        assert_eq!((API, REGISTER), (0xc018_aa3f, 0xc020_aa00));
    }

    #[test]
    fn nobody_else_can_write_it() {
        let memory = match CacheMemory::new(16 << 12) {
            Ok(memory) => memory,
            Err(e) => return eprintln!("SKIP: no userfaultfd here: {e}"),
        };
        let fd = memory.shown();
        assert_eq!(ftruncate(fd, 4096), Err(Errno::INVAL), "it is open for reading only");
        assert_eq!(rustix::io::write(fd, b"x"), Err(Errno::BADF));
        let allocate = rustix::fs::fallocate(fd, rustix::fs::FallocateFlags::empty(), 0, 4096);
        assert_eq!(allocate, Err(Errno::BADF));
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, if there were one.
        let shared = unsafe { mmap(null_mut(), 4096, access, MapFlags::SHARED, fd, 0) };
        assert_eq!(shared.err(), Some(Errno::ACCESS));
        // Whoever may open it for writing all the same, as root may, finds it sealed.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        if let Ok(file) = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            assert_eq!(rustix::io::write(&file, b"x"), Err(Errno::PERM));
            assert_eq!(ftruncate(&file, 4096), Err(Errno::PERM));
            // SAFETY: a new mapping, if there were one.
            let shared = unsafe { mmap(null_mut(), 4096, access, MapFlags::SHARED, &file, 0) };
            assert_eq!(shared.err(), Some(Errno::PERM));
            assert_eq!(fcntl_add_seals(&file, SealFlags::WRITE), Err(Errno::PERM));
        }
        assert_eq!(memory.allocated().unwrap(), 0);
        assert_eq!(memory.copy(4096, &[7; 8192]), Filled { bytes: 8192, stopped: None });
        assert_eq!(memory.copy(8192, &[7; 4096]).stopped, Some(Errno::EXIST));
        assert_eq!(memory.allocated().unwrap(), 8192);
    }
}

//! The userfaultfd interface of the kernel (`linux/userfaultfd.h`, `ioctl_userfaultfd(2)`), and the pidfd of
//! a peer.
//!
//! Filling pages is safe for this process whatever addresses it is given: the kernel writes only into memory
//! that is registered with the userfaultfd by its owner, and only into pages that are not there.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, opcode};

const UFFDIO: u8 = 0xaa;
const COPY: Opcode = opcode::read_write::<UffdioCopy>(UFFDIO, 0x03);
const ZEROPAGE: Opcode = opcode::read_write::<UffdioZeropage>(UFFDIO, 0x04);
const WAKE: Opcode = opcode::read::<UffdioRange>(UFFDIO, 0x02);

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;
const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;

const FAULT_WRITE_PROTECT: u64 = 1 << 1;
const FAULT_MINOR: u64 = 1 << 2;

/// `struct uffd_msg`: an event number, padding to 8 bytes, and 24 bytes that depend on the event.
pub(crate) const MESSAGE: usize = 32;

/// `struct uffdio_range`.
#[repr(C)]
pub(crate) struct UffdioRange {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeropage: i64,
}

/// What happened to registered memory.
#[derive(Debug)]
pub(crate) enum Event {
    /// A thread touched a page that is not there, and waits.
    Missing { address: u64 },
    /// A thread waits for something else: write protection, or a page that is only in the page cache.
    OtherFault { kind: &'static str },
    /// Pages were given up: what was in them is gone.
    Removed { start: u64, end: u64 },
    /// Addresses are no longer mapped.
    Unmapped { start: u64, end: u64 },
    /// The memory was copied into a new process, which has its own userfaultfd.
    Forked(OwnedFd),
    /// The memory was moved to other addresses, or something unknown happened.
    Unsupported { event: &'static str },
}

/// How far the kernel came with filling pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filled {
    /// The bytes that are filled, from the start of the range.
    pub(crate) bytes: u64,
    /// What stopped it there, if it did not reach the end. `EAGAIN` with some bytes filled may hide any other
    /// reason.
    pub(crate) stopped: Option<Errno>,
}

/// A userfaultfd of some process's memory.
#[derive(Debug)]
pub(crate) struct Uffd {
    fd: OwnedFd,
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What kind of file a descriptor is, in the kernel's words.
pub(crate) fn describe(fd: BorrowedFd<'_>) -> io::Result<String> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(link.to_string_lossy().into_owned())
}

impl Uffd {
    /// How [`describe`] names one.
    pub(crate) const DESCRIPTION: &'static str = "anon_inode:[userfaultfd]";

    /// Takes a userfaultfd over and makes its reads return when there is nothing to read: polling it needs
    /// that.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// Appends events that wait to `events`, at most as many as `space` has room for. True where there may be
    /// more.
    ///
    /// `EINVAL` where the userfaultfd was never set up with `UFFDIO_API`.
    pub(crate) fn read(&self, space: &mut [u8], events: &mut Vec<Event>) -> io::Result<bool> {
        let room = space.len();
        let len = match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *space)) {
            Err(Errno::AGAIN) => return Ok(false),
            result => result?,
        };
        events.extend(space[..len].chunks_exact(MESSAGE).map(decode));
        Ok(len == room)
    }

    /// Whether its owner asked to have removed memory announced, as the kernel tells.
    pub(crate) fn announces_removals(&self) -> io::Result<bool> {
        const EVENT_REMOVE: u64 = 1 << 3;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))?;
        Ok(features_in(&info).is_some_and(|features| features & EVENT_REMOVE != 0))
    }

    /// Fills missing pages with `content` and wakes who waits for them.
    pub(crate) fn copy(&self, address: u64, content: &[u8]) -> Filled {
        let len = content.len() as u64;
        let mut copy = UffdioCopy { dst: address, src: content.as_ptr() as u64, len, mode: 0, copy: 0 };
        // SAFETY: COPY updates a `struct uffdio_copy`, which this is. The kernel reads `len` bytes at `src`,
        // which `content` borrows for the call.
        let result = unsafe { ioctl::ioctl(&self.fd, ioctl::Updater::<COPY, UffdioCopy>::new(&mut copy)) };
        filled(result, copy.copy, len)
    }

    /// Fills missing pages with zeros and wakes who waits for them.
    pub(crate) fn zero(&self, address: u64, len: u64) -> Filled {
        let range = UffdioRange { start: address, len };
        let mut zero = UffdioZeropage { range, mode: 0, zeropage: 0 };
        // SAFETY: ZEROPAGE updates a `struct uffdio_zeropage`, which this is, and reads nothing else.
        let result =
            unsafe { ioctl::ioctl(&self.fd, ioctl::Updater::<ZEROPAGE, UffdioZeropage>::new(&mut zero)) };
        filled(result, zero.zeropage, len)
    }

    /// Wakes who waits for a range; those whose page is still missing fault anew.
    pub(crate) fn wake(&self, address: u64, len: u64) -> io::Result<()> {
        let range = UffdioRange { start: address, len };
        // SAFETY: WAKE reads a `struct uffdio_range`, which this is.
        unsafe { ioctl::ioctl(&self.fd, ioctl::Setter::<WAKE, UffdioRange>::new(range)) }?;
        Ok(())
    }
}

/// The kernel reports a part as `EAGAIN` with a count, and nothing at all as a negative error number.
fn filled(result: Result<(), Errno>, count: i64, len: u64) -> Filled {
    match result {
        Ok(()) => Filled { bytes: len, stopped: None },
        Err(errno) => {
            Filled { bytes: u64::try_from(count).map_or(0, |count| count.min(len)), stopped: Some(errno) }
        }
    }
}

/// The features in what `/proc/PID/fdinfo` says of a userfaultfd: the second number of the line `API:`.
fn features_in(info: &str) -> Option<u64> {
    let api = info.lines().find_map(|line| line.strip_prefix("API:"))?;
    u64::from_str_radix(api.trim().split(':').nth(1)?, 16).ok()
}

fn decode(message: &[u8]) -> Event {
    let field = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(number)
    };
    match message[0] {
        EVENT_PAGEFAULT if field(8) & FAULT_WRITE_PROTECT != 0 => {
            Event::OtherFault { kind: "a write-protection fault" }
        }
        EVENT_PAGEFAULT if field(8) & FAULT_MINOR != 0 => Event::OtherFault { kind: "a minor fault" },
        EVENT_PAGEFAULT => Event::Missing { address: field(16) },
        EVENT_REMOVE => Event::Removed { start: field(8), end: field(16) },
        EVENT_UNMAP => Event::Unmapped { start: field(8), end: field(16) },
        EVENT_REMAP => Event::Unsupported { event: "a move to other addresses (mremap)" },
        EVENT_FORK => {
            // SAFETY: with this event the kernel has installed a descriptor here that nobody else knows of.
            Event::Forked(unsafe { OwnedFd::from_raw_fd(field(8) as u32 as i32) })
        }
        _ => Event::Unsupported { event: "an event of an unknown kind" },
    }
}

/// A pidfd of the process that connected to a Unix socket.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `asm-generic/socket.h`, since Linux 6.5.
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option's value is an int, for which there is room, and `len` says so.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut len,
        )
    };
    if result == 0 && fd >= 0 {
        // SAFETY: the kernel just installed this descriptor for us.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    // Before 6.5 by number. The process may have been replaced since it connected, but it was alive just now.
    let peer = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(rustix::process::pidfd_open(peer.pid, rustix::process::PidfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_the_kernels() {
        // As printed by a C program that includes linux/userfaultfd.h on x86-64.
        assert_eq!((COPY, ZEROPAGE, WAKE), (0xc028_aa03, 0xc020_aa04, 0x8010_aa02));
    }

    #[test]
    fn partial_results_keep_their_count() {
        assert_eq!(filled(Ok(()), 8192, 8192), Filled { bytes: 8192, stopped: None });
        let again = Some(Errno::AGAIN);
        assert_eq!(filled(Err(Errno::AGAIN), 4096, 8192), Filled { bytes: 4096, stopped: again });
        assert_eq!(filled(Err(Errno::AGAIN), -11, 8192), Filled { bytes: 0, stopped: again });
        assert_eq!(filled(Err(Errno::EXIST), -17, 8192), Filled { bytes: 0, stopped: Some(Errno::EXIST) });
    }

    #[test]
    fn features_are_read_from_what_the_kernel_says() {
        for (info, features) in [
            ("pos:\t0\npending:\t0\ntotal:\t0\nAPI:\taa:80000008:7fbe000000000000\n", Some(0x8000_0008)),
            ("API:\taa:8:0", Some(8)),
            ("API:\taa", None),
            ("API:\taa:x:0", None),
            ("pos:\t0\n", None),
        ] {
            assert_eq!(features_in(info), features, "{info}");
        }
    }

    #[test]
    fn messages_are_decoded() {
        let message = |event: u8, fields: [u64; 3]| {
            let mut bytes = [0; MESSAGE];
            bytes[0] = event;
            for (i, field) in fields.iter().enumerate() {
                bytes[8 + 8 * i..16 + 8 * i].copy_from_slice(&field.to_ne_bytes());
            }
            decode(&bytes)
        };
        assert!(matches!(message(EVENT_PAGEFAULT, [1, 0x7000, 9]), Event::Missing { address: 0x7000 }));
        assert!(matches!(message(EVENT_PAGEFAULT, [2, 0x7000, 0]), Event::OtherFault { .. }));
        assert!(matches!(message(EVENT_PAGEFAULT, [4, 0x7000, 0]), Event::OtherFault { .. }));
        assert!(matches!(
            message(EVENT_REMOVE, [0x1000, 0x3000, 0]),
            Event::Removed { start: 0x1000, end: 0x3000 }
        ));
        assert!(matches!(message(EVENT_UNMAP, [0x1000, 0x3000, 0]), Event::Unmapped { .. }));
        assert!(matches!(message(EVENT_REMAP, [1, 2, 3]), Event::Unsupported { .. }));
        assert!(matches!(message(0x7f, [0; 3]), Event::Unsupported { .. }));
    }
}

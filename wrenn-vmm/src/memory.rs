//! A guest's memory, read from the outside: out of the monitor's address space, as a debugger reads.
//!
//! Two processes have it: the monitor itself, whose machine must be paused meanwhile, or a frozen copy of the
//! monitor ([`Freezer`]), which lets the machine run on. In both guest memory is a private mapping, so the pages that
//! the guest wrote since it was booted or restored are exactly those that are not the file's below the mapping. The
//! kernel's page map tells which these are ([`GuestMemory::own_runs`]), without anything having been tracked.
//!
//! What the monitor says of its address space is checked for form only: it can but point at its own memory.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::Pid;
use wrenn_base::UndoList;

use crate::api::MemoryRegion;
use crate::pagemap::{self, OwnRun};
use crate::sys;

const PAGE: u64 = 4096;
/// More regions than any machine has: one lies below the hole for devices, one above it.
const MAX_REGIONS: usize = 16;

/// A guest's memory could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// What the monitor says of its memory cannot be.
    #[error("the monitor's account of guest memory is unusable: {why}")]
    Layout {
        /// The rule it breaks.
        why: &'static str,
    },
    /// The process that holds the memory ended.
    #[error("the process that held the guest's memory ended while it was read")]
    Gone,
    /// The frozen copy did not come to be.
    #[error("no frozen copy of the monitor connected to {} within {limit:?}", socket.display())]
    NotFrozen {
        /// Where it was to connect.
        socket: PathBuf,
        /// How long it was given.
        limit: Duration,
    },
    /// The system refused.
    #[error("could not {action}; it takes root, and kernel.yama.ptrace_scope below 3")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> MemoryError {
    move |source| MemoryError::System { action, source }
}

/// A run of pages that the guest may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestRun {
    /// Where the run is in a memory image, in bytes; whole pages.
    pub range: Range<u64>,
    /// Whether the pages are known to be zero, so that they need not be read.
    pub zero: bool,
}

/// The memory of a guest that does not run.
#[derive(Debug)]
pub struct GuestMemory {
    pid: Pid,
    /// Bound to the address space, whatever process has the number later.
    pagemap: File,
    /// Readable once the process is gone: its pidfd, or the connection it keeps open.
    life: OwnedFd,
    regions: Vec<MemoryRegion>,
}

impl GuestMemory {
    /// The memory of the process `pid`; `life` is readable once that is gone.
    pub(crate) fn new(pid: Pid, life: OwnedFd, regions: Vec<MemoryRegion>) -> Result<Self, MemoryError> {
        check_layout(&regions).map_err(|why| MemoryError::Layout { why })?;
        let pagemap = File::open(format!("/proc/{}/pagemap", pid.as_raw_nonzero()));
        Ok(Self { pid, pagemap: pagemap.map_err(system("open the monitor's page map"))?, life, regions })
    }

    /// The size of the guest's memory in bytes.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(|region| region.size).sum()
    }

    /// The pages that are not those of the file below the guest's memory, in the order of a memory image: all that the
    /// guest has touched where there is no such file, and what it has written where there is one.
    ///
    /// # Errors
    /// [`MemoryError::System`], [`MemoryError::Gone`].
    pub fn own_runs(&self) -> Result<Vec<GuestRun>, MemoryError> {
        let mut runs = Vec::new();
        for region in &self.regions {
            let pages = region.host_address..region.host_address + region.size;
            let own =
                pagemap::own_runs(&self.pagemap, pages).map_err(system("read the monitor's page map"))?;
            runs.extend(own.into_iter().map(|OwnRun { addresses, zero }| {
                let offset = |address: u64| address - region.host_address + region.offset;
                GuestRun { range: offset(addresses.start)..offset(addresses.end), zero }
            }));
        }
        self.check_alive()?;
        Ok(runs)
    }

    /// Reads guest memory from `offset` in a memory image on, which must not leave the region it begins in.
    ///
    /// # Errors
    /// [`MemoryError::System`], [`MemoryError::Gone`]; what is in `buf` then is of no use.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let holds = |region: &&MemoryRegion| {
            offset >= region.offset && offset - region.offset + buf.len() as u64 <= region.size
        };
        let region = self.regions.iter().find(holds);
        let region = region.ok_or(MemoryError::Layout { why: "a read leaves the guest's memory" })?;
        let address = region.host_address + (offset - region.offset);
        let read = sys::read_process(self.pid, address, buf);
        // The process's number means it for as long as it is there, so look afterwards.
        self.check_alive()?;
        read.map_err(system("read the monitor's memory"))
    }

    fn check_alive(&self) -> Result<(), MemoryError> {
        if readable(self.life.as_fd(), Duration::ZERO) { Err(MemoryError::Gone) } else { Ok(()) }
    }
}

/// Regions must follow each other without a gap, in whole pages.
fn check_layout(regions: &[MemoryRegion]) -> Result<(), &'static str> {
    if regions.is_empty() || regions.len() > MAX_REGIONS {
        return Err("it has no regions, or too many");
    }
    let mut next = 0u64;
    for region in regions {
        if region.size == 0 || region.size % PAGE != 0 || region.host_address % PAGE != 0 {
            return Err("a region is empty or not of whole pages");
        }
        if region.offset != next {
            return Err("the regions do not follow each other");
        }
        region.host_address.checked_add(region.size).ok_or("a region leaves the address space")?;
        next = next.checked_add(region.size).ok_or("the regions are larger than any memory")?;
    }
    Ok(())
}

fn readable(fd: impl AsFd, limit: Duration) -> bool {
    let timeout = Timespec::try_from(limit).ok();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}

/// The socket at which a frozen copy of a monitor reports: see [`crate::api::StateSave::freeze_socket`].
#[derive(Debug)]
pub struct Freezer {
    listener: UnixListener,
    socket: PathBuf,
}

impl Freezer {
    /// Makes the socket; `undo` removes it.
    ///
    /// # Errors
    /// [`MemoryError::System`]: the socket cannot be made, for one because its path is taken.
    pub fn bind(socket: &Path, undo: &mut UndoList) -> Result<Self, MemoryError> {
        let path = socket.to_owned();
        undo.push("the socket of a frozen monitor", move |_| match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        });
        let bind = || {
            let listener = UnixListener::bind(socket)?;
            fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = bind().map_err(system("make the socket of a frozen monitor"))?;
        Ok(Self { listener, socket: socket.to_owned() })
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for the frozen copy and takes hold of its memory, which is let go of when that is dropped. Blocks.
    ///
    /// # Errors
    /// [`MemoryError::NotFrozen`] after `limit`; otherwise as for any reading of memory.
    pub fn accept(&self, regions: Vec<MemoryRegion>, limit: Duration) -> Result<GuestMemory, MemoryError> {
        let until = Instant::now() + limit;
        loop {
            match self.listener.accept() {
                Ok((connection, _)) => return frozen(connection, regions),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(system("accept the frozen monitor's connection")(e)),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !readable(&self.listener, left) {
                return Err(MemoryError::NotFrozen { socket: self.socket.clone(), limit });
            }
        }
    }
}

/// The connection's other end is told by the kernel: nobody can pass for another process.
fn frozen(connection: UnixStream, regions: Vec<MemoryRegion>) -> Result<GuestMemory, MemoryError> {
    let peer = socket_peercred(&connection).map_err(|e| system("ask who is frozen")(e.into()))?;
    GuestMemory::new(peer.pid, connection.into(), regions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(host_address: u64, size: u64, offset: u64) -> MemoryRegion {
        MemoryRegion { host_address, size, offset }
    }

    #[test]
    fn layouts_that_cannot_be_are_refused() {
        assert_eq!(check_layout(&[region(PAGE, PAGE, 0), region(1 << 40, PAGE, PAGE)]), Ok(()));
        for bad in [
            vec![],
            vec![region(PAGE, 0, 0)],
            vec![region(PAGE, PAGE + 1, 0)],
            vec![region(PAGE + 1, PAGE, 0)],
            vec![region(PAGE, PAGE, PAGE)],
            vec![region(PAGE, PAGE, 0), region(1 << 40, PAGE, 2 * PAGE)],
            vec![region(u64::MAX - PAGE + 1, 2 * PAGE, 0)],
            vec![region(PAGE, PAGE, 0); MAX_REGIONS + 1],
        ] {
            assert!(check_layout(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_process_that_does_not_freeze_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let reaper = wrenn_base::Reaper::start();
        let mut undo = UndoList::new(&reaper);
        let socket = dir.path().join("freeze.sock");
        let freezer = Freezer::bind(&socket, &mut undo).unwrap();
        let limit = Duration::from_millis(20);
        let refused = freezer.accept(vec![region(PAGE, PAGE, 0)], limit).unwrap_err();
        assert!(matches!(refused, MemoryError::NotFrozen { .. }));
        assert!(undo.run(Duration::from_secs(1)).is_empty());
        assert!(!socket.exists());
    }

    #[test]
    fn memory_is_read_until_its_process_is_gone() {
        // This process, read as if it were a monitor, with a connection for its life.
        let held: Vec<u8> = (0..4 * PAGE).map(|n| (n % 251) as u8).collect();
        let address = (held.as_ptr() as u64).next_multiple_of(PAGE);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let pid = rustix::process::getpid();
        let memory = GuestMemory::new(pid, ours.into(), vec![region(address, 2 * PAGE, 0)]).unwrap();
        let mut buf = vec![0; PAGE as usize];
        memory.read(PAGE, &mut buf).unwrap();
        let start = (address - held.as_ptr() as u64 + PAGE) as usize;
        assert_eq!(buf, held[start..start + PAGE as usize]);
        assert_eq!(memory.own_runs().unwrap(), [GuestRun { range: 0..2 * PAGE, zero: false }]);
        assert!(matches!(memory.read(2 * PAGE, &mut buf), Err(MemoryError::Layout { .. })));
        drop(theirs);
        assert!(matches!(memory.read(0, &mut buf), Err(MemoryError::Gone)));
        assert!(matches!(memory.own_runs(), Err(MemoryError::Gone)));
    }
}

//! Keeping guest memory as it is while the machine runs on.
//!
//! A fork does it: all guest memory is private, so the copy of the process shares every page until one of the two
//! writes to it, and the copy never writes. It lets go of everything but its memory (descriptors first of all: a disk
//! or a TAP would stay busy), connects to a socket so that the other end learns its process number from the kernel,
//! and sleeps until that connection ends, or the monitor does.
//!
//! Alternatives: write-protecting guest memory and copying pages before they are written costs a fault and a message
//! for each; dumping while the machine is stopped stops it for as long as the dump takes. A fork copies page tables,
//! about a millisecond for each GiB that is in use.

use std::io;
use std::path::{Path, PathBuf};

use rustix::net::SocketAddrUnix;

use super::sys;

/// Guest memory could not be frozen. Nothing was left of the attempt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FreezeError {
    #[error("{socket:?} cannot be the path of a socket")]
    Socket { socket: PathBuf, source: io::Error },
    #[error("the process could not be copied")]
    Fork(#[source] io::Error),
}

/// Makes a copy of this process that holds guest memory as it is now and connects to `socket`.
pub(super) fn freeze(socket: &Path) -> Result<(), FreezeError> {
    // Made before the fork, after which nothing may be allocated.
    let address = SocketAddrUnix::new(socket)
        .map_err(|e| FreezeError::Socket { socket: socket.to_owned(), source: e.into() })?;
    sys::fork_to(&address).map_err(FreezeError::Fork)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixListener;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{Memory, regions_of};

    #[test]
    fn the_copy_keeps_memory_as_it_was_and_goes_with_its_connection() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("freeze.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let memory = Memory::fresh(&regions_of(1 << 20)).unwrap();
        memory.guest().write_obj(1u8, GuestAddress(0x3000)).unwrap();
        freeze(&socket).unwrap();
        memory.guest().write_obj(2u8, GuestAddress(0x3000)).unwrap();

        let (connection, _) = listener.accept().unwrap();
        let copy = rustix::net::sockopt::socket_peercred(&connection).unwrap().pid.as_raw_nonzero();
        assert_ne!(copy.get() as u32, std::process::id());
        let mut byte = [0];
        let its_memory = File::open(format!("/proc/{copy}/mem")).unwrap();
        its_memory.read_exact_at(&mut byte, memory.layout()[0].host_address + 0x3000).unwrap();
        assert_eq!(byte, [1]);
        let open = std::fs::read_dir(format!("/proc/{copy}/fd")).unwrap().count();
        assert_eq!(open, 1, "the connection is all that it has open");

        drop(connection);
        while std::path::Path::new(&format!("/proc/{copy}")).exists() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_before_the_fork() {
        let error = freeze(Path::new(&"x".repeat(200))).unwrap_err();
        assert!(matches!(error, FreezeError::Socket { .. }));
    }
}

//! Handing guest memory to a fault server.
//!
//! The handshake is Firecracker's: connect, then one message with the regions as JSON and the userfaultfd as
//! `SCM_RIGHTS`. From then on the server answers every first touch of a page.
//!
//! The monitor keeps its own copy of the userfaultfd. Were the server's the only one, its death would
//! unregister the memory, and missing pages would silently read as zero. As it is, they wait; and the
//! connection, which the server holds open as long as it serves, tells the monitor that they wait in vain
//! ([`FaultLink`] is watched by the main loop).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::Serialize;
use userfaultfd::{Uffd, UffdBuilder};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::GuestMemory;
use super::map::with_offsets;
use crate::layout::PAGE_SIZE;

/// Guest memory could not be handed to a fault server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(
        "the system gives no userfaultfd that serves the kernel's own accesses: it takes root, access to /dev/userfaultfd, or vm.unprivileged_userfaultfd=1"
    )]
    Create(#[source] userfaultfd::Error),
    #[error("guest memory at {address:#x} could not be registered with the userfaultfd")]
    Register { address: u64, source: userfaultfd::Error },
    #[error("nobody serves page faults at {socket:?}")]
    Connect { socket: PathBuf, source: io::Error },
    #[error("the fault server at {socket:?} did not take the guest's memory")]
    Send { socket: PathBuf, source: io::Error },
}

/// What keeps lazily loaded memory served: the userfaultfd, and the connection to its server.
#[derive(Debug)]
pub(crate) struct FaultLink {
    connection: UnixStream,
    _uffd: Uffd,
}

impl AsFd for FaultLink {
    /// The connection: it hangs up when the server stops serving.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// One region in the handshake, as Firecracker's fault handlers read it.
#[derive(Debug, Serialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    /// Where the region begins in the memory file.
    offset: u64,
    page_size: u64,
    /// The former name of `page_size`: bytes as well, whatever it says.
    page_size_kib: u64,
}

/// Registers all of `guest` with a userfaultfd and gives that to the server at `socket`.
pub(crate) fn hand_over(guest: &GuestMemory, socket: &Path) -> Result<FaultLink, LinkError> {
    // Connect first: the likeliest failure should cost nothing.
    let connection = UnixStream::connect(socket)
        .map_err(|source| LinkError::Connect { socket: socket.to_owned(), source })?;
    let uffd = UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        // KVM touches guest memory from inside the kernel.
        .user_mode_only(false)
        .create()
        .map_err(LinkError::Create)?;
    for region in guest.iter() {
        let address = region.start_addr().0;
        uffd.register(region.as_ptr().cast(), region.size())
            .map_err(|source| LinkError::Register { address, source })?;
    }
    let message = serde_json::to_vec(&mappings(guest)).expect("numbers are valid JSON");
    let sent = connection.send_with_fd(message.as_slice(), uffd.as_raw_fd());
    let failed = |source| LinkError::Send { socket: socket.to_owned(), source };
    match sent {
        Ok(count) if count == message.len() => Ok(FaultLink { connection, _uffd: uffd }),
        Ok(_) => Err(failed(io::Error::from(io::ErrorKind::WriteZero))),
        Err(error) => Err(failed(io::Error::from_raw_os_error(error.errno()))),
    }
}

fn mappings(guest: &GuestMemory) -> Vec<Mapping> {
    let mapping = |(region, offset): (&super::GuestRegion, u64)| Mapping {
        base_host_virt_addr: region.as_ptr() as u64,
        size: region.len(),
        offset,
        page_size: PAGE_SIZE,
        page_size_kib: PAGE_SIZE,
    };
    with_offsets(guest).map(mapping).collect()
}

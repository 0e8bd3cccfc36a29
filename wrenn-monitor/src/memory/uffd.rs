//! Handing guest memory to a fault server.
//!
//! The handshake is Firecracker's: connect, then one message with the regions as JSON and the userfaultfd as
//! `SCM_RIGHTS`. From then on the server answers every first touch of a page. A server with a cache speaks first: one
//! message, `{"cache_size":N}`, with the cache's memfd as `SCM_RIGHTS`.
//!
//! The monitor keeps its own copy of the userfaultfd. Were the server's the only one, its death would
//! unregister the memory, and missing pages would silently read as zero. As it is, they wait; and the
//! connection, which the server holds open as long as it serves, tells the monitor that they wait in vain
//! ([`FaultLink`] is watched by the main loop).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use userfaultfd::{FeatureFlags, Uffd, UffdBuilder};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::GuestMemory;
use super::map::with_offsets;
use crate::layout::PAGE_SIZE;

/// How long a server may take to offer its cache.
const OFFER_LIMIT: Duration = Duration::from_secs(10);

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
    #[error("the fault server at {socket:?} offers no cache for this guest's memory")]
    NoCache { socket: PathBuf, source: io::Error },
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

/// What a server with a cache says first.
#[derive(Debug, Deserialize)]
struct CacheOffer {
    cache_size: u64,
}

/// A connection to a fault server that does not serve yet.
#[derive(Debug)]
pub(super) struct Server {
    connection: UnixStream,
    socket: PathBuf,
}

/// Connects to the fault server at `socket`.
pub(super) fn connect(socket: &Path) -> Result<Server, LinkError> {
    let connected = UnixStream::connect(socket);
    let connection = connected.map_err(|source| LinkError::Connect { socket: socket.to_owned(), source })?;
    Ok(Server { connection, socket: socket.to_owned() })
}

impl Server {
    /// Receives the cache of a guest with `size` bytes of memory.
    pub(super) fn receive_cache(&self, size: u64) -> Result<File, LinkError> {
        let failed = |source: io::Error| LinkError::NoCache { socket: self.socket.clone(), source };
        let foreign = |why: &str| failed(io::Error::new(io::ErrorKind::InvalidData, why));
        let wait = Some(OFFER_LIMIT);
        self.connection.set_read_timeout(wait).map_err(failed)?;
        let mut message = [0; 256];
        let received = self.connection.recv_with_fd(&mut message);
        let (len, file) = received.map_err(|e| failed(io::Error::from_raw_os_error(e.errno())))?;
        let file = file.ok_or_else(|| foreign("it came without a descriptor"))?;
        let offer: CacheOffer = serde_json::from_slice(&message[..len]).map_err(|e| failed(e.into()))?;
        let held = file.metadata().map_err(failed)?.len();
        // A mapping that is longer than its file would end the process when the guest touches the rest.
        if offer.cache_size != size || held < size {
            return Err(foreign("it is not of the size of the guest's memory"));
        }
        Ok(file)
    }

    /// Registers all of `guest` with a userfaultfd and gives that to the server.
    pub(super) fn hand_over(self, guest: &GuestMemory) -> Result<FaultLink, LinkError> {
        let uffd = UffdBuilder::new()
            .close_on_exec(true)
            .non_blocking(true)
            // KVM touches guest memory from inside the kernel.
            .user_mode_only(false)
            // A server with a cache must hear of pages that are given up: the cache would bring back what they held.
            .require_features(FeatureFlags::EVENT_REMOVE)
            .create()
            .map_err(LinkError::Create)?;
        for region in guest.iter() {
            let address = region.start_addr().0;
            uffd.register(region.as_ptr().cast(), region.size())
                .map_err(|source| LinkError::Register { address, source })?;
        }
        let message = serde_json::to_vec(&mappings(guest)).expect("numbers are valid JSON");
        let failed = |source| LinkError::Send { socket: self.socket.clone(), source };
        match self.connection.send_with_fd(message.as_slice(), uffd.as_raw_fd()) {
            Ok(count) if count == message.len() => Ok(FaultLink { connection: self.connection, _uffd: uffd }),
            Ok(_) => Err(failed(io::Error::from(io::ErrorKind::WriteZero))),
            Err(error) => Err(failed(io::Error::from_raw_os_error(error.errno()))),
        }
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

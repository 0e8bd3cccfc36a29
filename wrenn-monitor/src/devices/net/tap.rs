//! A TAP interface: the host's end of a virtual cable.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use crate::devices::sys;
use crate::devices::virtio::Buffers;

/// A TAP interface that this process is attached to.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    /// Whether this is a test's stand-in, which keeps frames apart but knows nothing of offloads.
    #[cfg(test)]
    stand_in: bool,
}

impl Tap {
    /// Attaches to the existing TAP `name`, whose frames are to begin with a header of `header` bytes.
    pub(super) fn open(name: &str, header: usize) -> io::Result<Self> {
        // TUNSETIFF makes an interface where there is none, and a guest on that would be connected to nothing.
        let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        name_to_index(&socket, name)?;
        let tun =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        sys::attach_tap(tun.as_fd(), name, header as libc::c_int)?;
        Ok(Self {
            file: tun,
            #[cfg(test)]
            stand_in: false,
        })
    }

    /// Lets the kernel leave to the guest what it has agreed to finish: checksums, and large segments.
    pub(super) fn leave_to_guest(&self, features: u64) -> io::Result<()> {
        let agreed = |bit: u32| features & (1 << bit) != 0;
        let mut offload = 0;
        // Segments are unfinished checksums too, so the one goes not without the other.
        if agreed(VIRTIO_NET_F_GUEST_CSUM) {
            offload |= libc::TUN_F_CSUM;
            for (bit, flag) in
                [(VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4), (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6)]
            {
                offload |= if agreed(bit) { flag } else { 0 };
            }
        }
        #[cfg(test)]
        if self.stand_in {
            return Ok(());
        }
        sys::set_tap_offload(self.file.as_fd(), offload)
    }

    /// Takes the next frame, with its header.
    pub(super) fn read(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Sends a frame, with its header.
    pub(super) fn write(&self, frame: &Buffers<'_>) -> io::Result<()> {
        sys::write_packet(self.file.as_fd(), frame).map(drop)
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
impl Tap {
    /// A cable whose other end a test holds: any descriptor that keeps frames apart.
    pub(super) fn from_file(file: File) -> Self {
        Self { file, stand_in: true }
    }
}

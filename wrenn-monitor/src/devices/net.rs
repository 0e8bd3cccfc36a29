//! A network interface: virtio-net (virtio 1.2, section 5.1) on a TAP of the host.
//!
//! Queue 0 receives, queue 1 sends. Frames carry the virtio-net header on the TAP too, so that checksums and
//! segmentation can be left to whoever does them last.
//!
//! Backpressure: the TAP is read only while the guest has a receive buffer free; until then the kernel
//! queues, and drops what is too much. A frame that the TAP does not take is dropped, as on any wire.
//!
//! So it does while the guest may receive no more. A limit on what the guest sends leaves its requests waiting.
//!
//! A frame that was read but not yet delivered is not part of a snapshot: it is lost like one on the wire.

mod tap;

use std::io;
use std::os::fd::AsRawFd;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};
use wrenn_vmm::api::{NetworkInterface, NetworkOverride};

use super::limiter::{Limiter, LimiterState};
use super::virtio::{Backend, DeviceState, ROUND, Ring, RingError, Served, VirtioDevice};
use crate::logger::GUEST;
use tap::Tap;

const QUEUE_SIZES: &[u16] = &[256, 256];
const RECEIVE: usize = 0;
/// `virtio_net_hdr_v1`, with `num_buffers` as its last field.
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;
/// An Ethernet header: less is no frame.
const MIN_FRAME: usize = 14;
/// The largest segment that is left unfinished, 64 KiB, with its headers.
const MAX_FRAME: usize = 65_536 + 18;

/// Why a network interface cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum NetError {
    #[error("interface {iface:?} cannot use the TAP device {tap:?}")]
    Tap { iface: String, tap: String, source: io::Error },
    #[error("interface {iface:?} has the address {mac:?}, which is not six hexadecimal bytes with colons")]
    Mac { iface: String, mac: String },
    #[error("interface {iface:?} has an MTU of {mtu}: the least is 68")]
    Mtu { iface: String, mtu: u16 },
}

/// What a snapshot keeps of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetState {
    iface_id: String,
    tap: String,
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    receive: LimiterState,
    send: LimiterState,
}

impl NetState {
    /// The interface's name.
    pub(super) fn iface_id(&self) -> &str {
        &self.iface_id
    }
}

/// A network interface.
pub(crate) struct Net {
    state: NetState,
    tap: Tap,
    receiving: Limiter,
    sending: Limiter,
    mergeable: bool,
    /// A frame with its header; the first `waiting` bytes of it are still to be delivered.
    frame: Box<[u8]>,
    waiting: usize,
}

impl Net {
    /// Attaches to the interface's TAP device, which exists in the process's network namespace.
    ///
    /// # Errors
    /// If there is no such TAP or somebody else holds it, or the interface asks for something that is not
    /// offered.
    pub(crate) fn open(interface: &NetworkInterface) -> Result<Self, NetError> {
        let iface = interface.iface_id.clone();
        if let Some(mtu) = interface.mtu.filter(|mtu| *mtu < 68) {
            return Err(NetError::Mtu { iface, mtu });
        }
        let mac = match &interface.guest_mac {
            None => None,
            Some(text) => match text.parse::<Mac>() {
                Ok(mac) => Some(mac.0),
                Err(()) => return Err(NetError::Mac { iface, mac: text.clone() }),
            },
        };
        let tap = interface.host_dev_name.clone();
        let limits = [&interface.rx_rate_limiter, &interface.tx_rate_limiter]
            .map(|wanted| Limiter::new(wanted.as_ref()));
        let [receive, send] = limits.each_ref().map(Limiter::save);
        Self::attach(NetState { iface_id: iface, tap, mac, mtu: interface.mtu, receive, send }, limits)
    }

    /// Attaches to the TAP of a saved interface, or to the one that replaces it.
    pub(super) fn restore(mut state: NetState, overrides: &[NetworkOverride]) -> Result<Self, NetError> {
        if let Some(new) = overrides.iter().find(|new| new.iface_id == state.iface_id) {
            state.tap.clone_from(&new.host_dev_name);
        }
        let limits = [state.receive, state.send].map(Limiter::restore);
        Self::attach(state, limits)
    }

    fn attach(state: NetState, limits: [Limiter; 2]) -> Result<Self, NetError> {
        match Tap::open(&state.tap, HEADER) {
            Ok(tap) => Ok(Self::on(tap, state, limits)),
            Err(source) => Err(NetError::Tap { iface: state.iface_id, tap: state.tap, source }),
        }
    }

    fn on(tap: Tap, state: NetState, [receiving, sending]: [Limiter; 2]) -> Self {
        let frame = vec![0; HEADER + MAX_FRAME].into_boxed_slice();
        Self { state, tap, receiving, sending, mergeable: false, frame, waiting: 0 }
    }

    fn receive(&mut self, ring: &mut Ring) -> Result<Served, RingError> {
        for _ in 0..ROUND {
            if self.waiting == 0 {
                if let Some(pause) = self.receiving.pause() {
                    return Ok(Served::Later(pause));
                }
                if !ring.has_request()? {
                    return Ok(Served::All);
                }
                self.waiting = match self.tap.read(&mut self.frame) {
                    Ok(len) => len,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Served::All),
                    Err(error) => {
                        log::warn!(target: GUEST, "{:?}: cannot read the TAP: {error}", self.state.iface_id);
                        return Ok(Served::All);
                    }
                };
                self.receiving.take(self.waiting);
                if self.waiting < HEADER + MIN_FRAME {
                    self.waiting = 0;
                    continue;
                }
            }
            if !ring.deliver(&mut self.frame[..self.waiting], NUM_BUFFERS, self.mergeable)? {
                return Ok(Served::All);
            }
            self.waiting = 0;
        }
        Ok(Served::Some)
    }

    fn send(&mut self, ring: &mut Ring) -> Result<Served, RingError> {
        let Self { state, tap, sending, .. } = self;
        ring.serve(sending, |chain| {
            let len = chain.readable.len();
            if !(HEADER + MIN_FRAME..=HEADER + MAX_FRAME).contains(&len) {
                let len = len.saturating_sub(HEADER);
                log::warn!(target: GUEST, "{:?}: a frame of {len} bytes was dropped", state.iface_id);
            } else if let Err(error) = tap.write(&chain.readable) {
                log::debug!(target: GUEST, "{:?}: a frame was dropped: {error}", state.iface_id);
            }
            Ok(0)
        })
    }
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let mut features = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_MRG_RXBUF,
        ]
        .iter()
        .fold(0, |features, bit| features | 1 << bit);
        if self.state.mac.is_some() {
            features |= 1 << VIRTIO_NET_F_MAC;
        }
        if self.state.mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// `virtio_net_config` up to the MTU: address, status and number of queue pairs (neither offered), MTU.
    fn config_space(&self) -> Vec<u8> {
        let mut config = self.state.mac.unwrap_or_default().to_vec();
        config.extend([0; 4]);
        config.extend(self.state.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    fn activate(&mut self, features: u64) -> io::Result<()> {
        self.waiting = 0;
        self.mergeable = features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0;
        self.tap.leave_to_guest(features)
    }

    fn serve(&mut self, index: usize, ring: &mut Ring) -> Result<Served, RingError> {
        if index == RECEIVE { self.receive(ring) } else { self.send(ring) }
    }

    fn backend(&self) -> Option<Backend> {
        Some(Backend { fd: self.tap.as_raw_fd(), queue: RECEIVE })
    }

    fn is_limited(&self) -> bool {
        self.receiving.limits() || self.sending.limits()
    }

    fn save(&self) -> io::Result<DeviceState> {
        Ok(DeviceState::Net(self.state.clone()))
    }
}

/// A hardware address, written as six hexadecimal bytes with colons.
struct Mac([u8; 6]);

impl FromStr for Mac {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or(())?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| ())?;
        }
        if parts.next().is_none() { Ok(Self(mac)) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests;

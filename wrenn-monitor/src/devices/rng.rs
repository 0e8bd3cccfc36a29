//! A source of randomness: virtio-rng (virtio 1.2, section 5.4), from the host's `getrandom`.
//!
//! What a request gets is bounded, so that one request costs the main loop no more than one of a disk.

use std::io;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use wrenn_vmm::api::EntropyDevice;

use super::limiter::{Limiter, LimiterState};
use super::virtio::{Chain, DeviceState, Ring, RingError, Served, VirtioDevice};
use crate::logger::GUEST;

const QUEUE_SIZES: &[u16] = &[64];
/// The most bytes for one request. A driver that wants more asks again.
const MAX_BYTES: usize = 4096;

/// What a snapshot keeps of the entropy device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RngState {
    limits: LimiterState,
}

/// The entropy device.
#[derive(Debug)]
pub(crate) struct Rng {
    limiter: Limiter,
}

impl Rng {
    /// The device.
    pub(crate) fn new(device: &EntropyDevice) -> Self {
        Self { limiter: Limiter::new(device.rate_limiter.as_ref()) }
    }

    pub(super) fn restore(state: RngState) -> Self {
        Self { limiter: Limiter::restore(state.limits) }
    }
}

fn fill(chain: &Chain<'_>) -> u32 {
    let mut bytes = [0u8; MAX_BYTES];
    let len = chain.writable.len().min(MAX_BYTES);
    let filled = getrandom::fill(&mut bytes[..len]).map_err(io::Error::from);
    match filled.and_then(|()| chain.writable.write(0, &bytes[..len]).map_err(io::Error::other)) {
        Ok(()) => len as u32,
        Err(error) => {
            log::warn!(target: GUEST, "no randomness for the guest: {error}");
            0
        }
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn config_space(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn serve(&mut self, _index: usize, ring: &mut Ring) -> Result<Served, RingError> {
        ring.serve(&mut self.limiter, |chain| Ok(fill(chain)))
    }

    fn is_limited(&self) -> bool {
        self.limiter.limits()
    }

    fn save(&self) -> io::Result<DeviceState> {
        Ok(DeviceState::Rng(RngState { limits: self.limiter.save() }))
    }
}

#[cfg(test)]
mod tests;

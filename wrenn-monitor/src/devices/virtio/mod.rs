//! Virtio devices behind the memory-mapped transport (virtio 1.2, section 4.2).
//!
//! - [`mmio`]: the registers, as the guest's driver sees them.
//! - [`worker`]: the device at work, on the main thread.
//! - [`ring`] and [`chain`]: one queue, and one request of it, checked.
//! - [`signals`]: what a device tells its driver: interrupts, and that it needs a reset.
//! - [`state`]: what a snapshot keeps of all this, and how it is checked when it comes back.

mod chain;
mod mmio;
mod registers;
mod ring;
mod signals;
mod state;
mod worker;

#[cfg(test)]
pub(super) mod chaos;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::RawFd;

pub(crate) use chain::{Buffers, Chain, GuestSlice, TooShort};
pub(crate) use mmio::VirtioMmio;
pub(crate) use ring::{ROUND, Ring, RingError, Served};
pub(crate) use state::{DeviceState, RestoreDeviceError, VirtioMmioState};
pub(crate) use worker::Worker;

/// One kind of device: what it offers, and how it serves a queue.
///
/// The transport owns the registers and the worker owns the queues, so that a device is only about its own
/// requests. Everything but the feature bits and the configuration space is called on the main thread.
pub(crate) trait VirtioDevice: Send {
    /// The device type (virtio 1.2, section 5).
    fn device_id(&self) -> u32;

    /// The feature bits of this kind of device; the transport adds its own.
    fn features(&self) -> u64;

    /// The size of each queue, in descriptors.
    fn queue_sizes(&self) -> &'static [u16];

    /// The configuration space, which never changes while the machine exists.
    fn config_space(&self) -> Vec<u8>;

    /// Takes note of what was negotiated. Called before anything is served, and again after each reset.
    fn activate(&mut self, features: u64) -> io::Result<()>;

    /// Serves what is waiting in queue `index`, at most [`ROUND`] requests of it.
    fn serve(&mut self, index: usize, ring: &mut Ring) -> Result<Served, RingError>;

    /// A host descriptor that, when readable, means that there is something for a queue.
    fn backend(&self) -> Option<Backend> {
        None
    }

    /// Whether it may have to [wait](Served::Later).
    fn is_limited(&self) -> bool {
        false
    }

    /// What a snapshot keeps of the device itself. Makes durable what the guest believes to be.
    fn save(&self) -> io::Result<DeviceState>;
}

/// A host descriptor, and the queue to serve when it is readable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backend {
    pub(crate) fd: RawFd,
    pub(crate) queue: usize,
}

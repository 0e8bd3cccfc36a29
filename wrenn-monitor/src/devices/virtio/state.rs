//! What a snapshot keeps of a virtio device, and how it is checked when it comes back.
//!
//! Invariant: a snapshot is hostile. Nothing of it is believed until [`TransportState::check`] and the rings'
//! own checks have passed; whatever passes is a state that a guest could have brought about itself.

use std::io;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use wrenn_vmm::api::NetworkOverride;

use super::VirtioDevice;
use super::registers::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, Progress, QueueRegisters, Registers,
    features_acceptable,
};
use super::ring::RingError;
use crate::devices::block::{Block, BlockError, BlockState};
use crate::devices::net::{Net, NetError, NetState};
use crate::devices::rng::{Rng, RngState};

/// One virtio device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VirtioMmioState {
    pub(super) transport: TransportState,
    pub(super) device: DeviceState,
}

/// The transport's registers and the queues' positions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TransportState {
    pub(super) registers: Registers,
    pub(super) interrupt_status: u32,
    pub(super) needs_reset: bool,
    /// One for each queue; empty if the driver has not set the device up.
    pub(super) progress: Vec<Progress>,
}

/// The part that differs from device to device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DeviceState {
    Block(BlockState),
    Net(NetState),
    Rng(RngState),
}

/// Why a saved device cannot be brought back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RestoreDeviceError {
    #[error("the saved state of a virtio device is not possible: {0}")]
    Invalid(&'static str),
    #[error("a saved queue cannot be used")]
    Ring(#[source] RingError),
    #[error("the device cannot work with the features that the guest chose")]
    Activate(#[source] io::Error),
    #[error("no file descriptors are left for a device's events")]
    Events(#[source] io::Error),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error(transparent)]
    Net(#[from] NetError),
}

impl VirtioMmioState {
    /// The network interface's name, if it is one.
    pub(crate) fn interface(&self) -> Option<&str> {
        match &self.device {
            DeviceState::Net(net) => Some(net.iface_id()),
            DeviceState::Block(_) | DeviceState::Rng(_) => None,
        }
    }
}

impl DeviceState {
    /// Opens the device's file or TAP again.
    pub(super) fn open(
        self,
        overrides: &[NetworkOverride],
    ) -> Result<Box<dyn VirtioDevice>, RestoreDeviceError> {
        Ok(match self {
            Self::Block(state) => Box::new(Block::restore(state)?),
            Self::Net(state) => Box::new(Net::restore(state, overrides)?),
            Self::Rng(state) => Box::new(Rng::restore(state)),
        })
    }
}

impl TransportState {
    /// Refuses what no driver could have brought about, given what the device offers.
    pub(super) fn check(&self, offered: u64, queue_sizes: &[u16]) -> Result<(), RestoreDeviceError> {
        let registers = &self.registers;
        let steps = [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK];
        let progress = registers.status & !FAILED;
        let running = progress == steps[3] | DRIVER_OK;
        let serving = running && !self.needs_reset;
        let size_fits = |(saved, max): (&QueueRegisters, &u16)| {
            !(serving && saved.ready) || (saved.size.is_power_of_two() && saved.size <= *max)
        };
        let rules = [
            (running || steps.contains(&progress), "its status"),
            (
                !registers.has(FEATURES_OK) || features_acceptable(registers.driver_features, offered),
                "its features",
            ),
            (registers.queues.len() == queue_sizes.len(), "the number of its queues"),
            (registers.queues.iter().zip(queue_sizes).all(size_fits), "the size of a queue"),
            (!serving || self.progress.len() == queue_sizes.len(), "its queues' positions"),
            (
                self.interrupt_status & !(VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG) == 0,
                "its interrupts",
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(RestoreDeviceError::Invalid(what)),
            None => Ok(()),
        }
    }
}

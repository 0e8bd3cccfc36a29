//! The driver-written registers of the transport: plain data with the rules of who may write what when.
//!
//! Source: virtio 1.2, sections 2.1 (device status), 3.1 (initialisation order) and 4.2.2 (registers).
//!
//! Invariant: after `DRIVER_OK` nothing here changes until a reset, so what the worker was given at that
//! moment is what a snapshot finds here.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueState;

pub(super) const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
pub(super) const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
pub(super) const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
pub(super) const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
pub(super) const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// What writing the status register asks of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusChange {
    /// Nothing further.
    Noted,
    /// The driver is ready: the queues go into service.
    Start,
    /// Everything back to how it was.
    Reset,
}

/// The registers that the driver writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registers {
    pub(super) status: u32,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    pub(super) queues: Vec<QueueRegisters>,
}

/// The registers of one queue.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct QueueRegisters {
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl Registers {
    /// As they are after a reset.
    pub(super) fn new(queue_sizes: &[u16]) -> Self {
        let queue = |size: &u16| QueueRegisters { size: *size, ..QueueRegisters::default() };
        Self {
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: queue_sizes.iter().map(queue).collect(),
        }
    }

    pub(super) fn has(&self, status: u32) -> bool {
        self.status & status == status
    }

    /// Takes a write to the status register, with the features that the device offers.
    ///
    /// A driver sets bits in order and never clears one but all; what it does against that is ignored.
    pub(super) fn write_status(&mut self, value: u32, offered: u64) -> StatusChange {
        if value == 0 {
            return StatusChange::Reset;
        }
        let mut change = StatusChange::Noted;
        for (bit, needs) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, DRIVER),
            (DRIVER_OK, FEATURES_OK),
            (FAILED, 0),
        ] {
            let wanted = value & bit != 0 && self.status & bit == 0;
            let acceptable = bit != FEATURES_OK || features_acceptable(self.driver_features, offered);
            if wanted && self.has(needs) && acceptable {
                self.status |= bit;
                if bit == DRIVER_OK {
                    change = StatusChange::Start;
                }
            }
        }
        change
    }

    /// Takes a write to the driver features register.
    pub(super) fn write_driver_features(&mut self, value: u32) {
        if !self.has(DRIVER) || self.has(FEATURES_OK) {
            return;
        }
        let shift = match self.driver_features_sel {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.driver_features &= !(u64::from(u32::MAX) << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    /// The selected queue.
    pub(super) fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.queue_sel as usize)
    }

    /// The selected queue, while it may be written: between `FEATURES_OK` and `DRIVER_OK`.
    pub(super) fn queue_mut(&mut self) -> Option<&mut QueueRegisters> {
        if !self.has(FEATURES_OK) || self.has(DRIVER_OK) {
            return None;
        }
        self.queues.get_mut(self.queue_sel as usize)
    }

    /// The selected queue, while its layout may be written: only before it is ready.
    pub(super) fn queue_layout(&mut self) -> Option<&mut QueueRegisters> {
        self.queue_mut().filter(|queue| !queue.ready)
    }

    /// Queue `index` as `virtio-queue` takes it, `None` if the driver does not use it.
    pub(super) fn queue_state(&self, index: usize, max_size: u16, progress: Progress) -> Option<QueueState> {
        let queue = self.queues.get(index).filter(|queue| queue.ready)?;
        Some(QueueState {
            max_size,
            next_avail: progress.next_avail,
            next_used: progress.next_used,
            event_idx_enabled: self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            size: queue.size,
            ready: true,
            desc_table: queue.descriptors,
            avail_ring: queue.available,
            used_ring: queue.used,
        })
    }
}

/// How far a queue has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(super) next_avail: u16,
    pub(super) next_used: u16,
}

/// Whether a driver may work with `chosen`: nothing that was not offered, and never a legacy driver.
pub(super) fn features_acceptable(chosen: u64, offered: u64) -> bool {
    chosen & !offered == 0 && chosen & (1 << VIRTIO_F_VERSION_1) != 0
}

/// Puts the low or the high half of a 64-bit register.
pub(super) fn set_low(register: &mut u64, value: u32) {
    *register = *register & !u64::from(u32::MAX) | u64::from(value);
}

/// Puts the high half of a 64-bit register.
pub(super) fn set_high(register: &mut u64, value: u32) {
    *register = *register & u64::from(u32::MAX) | u64::from(value) << 32;
}

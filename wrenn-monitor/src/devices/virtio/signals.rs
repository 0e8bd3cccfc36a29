//! What a device tells its driver: interrupts, and that it needs a reset (virtio 1.2, 4.2.2 and 2.1.2).
//!
//! Shared by the registers (vCPU threads) and the worker (main thread), without a lock: the guest reads and
//! acknowledges interrupts while the worker is busy.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

/// The interrupt status register, the interrupt line and the "needs reset" bit of one device.
#[derive(Debug)]
pub(super) struct Signals {
    pending: AtomicU32,
    needs_reset: AtomicBool,
    irq: EventFd,
}

impl Signals {
    /// Nothing to tell; interrupts go to `irq`.
    pub(super) fn new(irq: EventFd) -> Self {
        Self { pending: AtomicU32::new(0), needs_reset: AtomicBool::new(false), irq }
    }

    /// Tells that requests were answered.
    pub(super) fn answered(&self) {
        self.interrupt(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells that the device has stopped until it is reset.
    pub(super) fn stopped(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.interrupt(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Raises the line again if something is unacknowledged. A spurious interrupt is harmless; one that was
    /// lost between KVM's deferred injection and a snapshot would stop the device for ever.
    pub(super) fn repeat(&self) {
        if self.pending() != 0 {
            self.interrupt(0);
        }
    }

    fn interrupt(&self, reason: u32) {
        self.pending.fetch_or(reason, Ordering::SeqCst);
        // Fails only if the counter is at its limit, and then the interrupt is pending already.
        let _ = self.irq.write(1);
    }

    /// The interrupt status register.
    pub(super) fn pending(&self) -> u32 {
        self.pending.load(Ordering::SeqCst)
    }

    /// The driver has seen `reasons`.
    pub(super) fn acknowledge(&self, reasons: u32) {
        self.pending.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// Whether the device has stopped.
    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// Puts both registers to the given values, without an interrupt.
    pub(super) fn set(&self, pending: u32, needs_reset: bool) {
        self.pending.store(pending, Ordering::SeqCst);
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
    }
}

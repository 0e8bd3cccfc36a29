//! The pvpanic device (QEMU's "PVPANIC DEVICE" specification; ACPI `QEMU0001`): a guest kernel that panics
//! says so by writing one byte to one port.

use crate::bus::BusDevice;
use crate::logger::GUEST;

/// The guest has panicked.
const PANICKED: u8 = 1 << 0;
/// The guest has panicked and runs its own crash kernel: nothing for the host to do.
const CRASH_LOADED: u8 = 1 << 1;

/// The pvpanic port.
pub(crate) struct PvPanic {
    on_panic: Box<dyn Fn() + Send>,
}

impl PvPanic {
    /// Calls `on_panic`, on a vCPU's thread, each time the guest says that it has panicked.
    pub(crate) fn new(on_panic: Box<dyn Fn() + Send>) -> Self {
        Self { on_panic }
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, _base: u64, _offset: u64, data: &mut [u8]) {
        // The events that are understood.
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn write(&mut self, _base: u64, _offset: u64, data: &[u8]) {
        match data {
            [events] if events & PANICKED != 0 => (self.on_panic)(),
            [events] if events & CRASH_LOADED != 0 => {
                log::warn!(target: GUEST, "the guest has panicked and started its crash kernel");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_panic_is_reported_and_a_crash_kernel_is_not() {
        let count = Arc::new(AtomicU32::new(0));
        let seen = count.clone();
        let mut device = PvPanic::new(Box::new(move || _ = seen.fetch_add(1, Ordering::SeqCst)));
        let mut supported = [0];
        device.read(0x505, 0, &mut supported);
        assert_eq!(supported, [3]);
        for (data, expected) in [(&[2u8][..], 0), (&[0], 0), (&[], 0), (&[1, 1], 0), (&[1], 1), (&[3], 2)] {
            device.write(0x505, 0, data);
            assert_eq!(count.load(Ordering::SeqCst), expected, "{data:?}");
        }
    }
}

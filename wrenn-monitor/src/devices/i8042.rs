//! The keyboard controller, as far as a kernel needs one to reset the machine (`reboot=k`).
//!
//! Source: IBM PC AT technical reference: command `0xFE` to port `0x64` pulses the reset line. The status
//! register reads as zero, "ready for a command".

use crate::bus::BusDevice;
use crate::layout::I8042_RESET;

/// The command and status port, as an offset from the data port.
const COMMAND: u64 = 4;

/// The keyboard controller, with no keyboard.
pub(crate) struct I8042 {
    on_reset: Box<dyn Fn() + Send>,
}

impl I8042 {
    /// Calls `on_reset`, on a vCPU's thread, each time the guest resets the machine.
    pub(crate) fn new(on_reset: Box<dyn Fn() + Send>) -> Self {
        Self { on_reset }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, _base: u64, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _base: u64, offset: u64, data: &[u8]) {
        if offset == COMMAND && data == [I8042_RESET] {
            (self.on_reset)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn only_the_reset_command_on_the_command_port_resets() {
        let count = Arc::new(AtomicU32::new(0));
        let seen = count.clone();
        let mut device = I8042::new(Box::new(move || _ = seen.fetch_add(1, Ordering::SeqCst)));
        for (offset, data) in [(0, &[0xfe][..]), (4, &[0xfd]), (4, &[]), (4, &[0xfe, 0xfe]), (1, &[0xfe])] {
            device.write(0x60, offset, data);
        }
        assert_eq!(count.load(Ordering::SeqCst), 0);
        device.write(0x60, 4, &[0xfe]);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let mut status = [0xff];
        device.read(0x60, 4, &mut status);
        assert_eq!(status, [0]);
    }
}

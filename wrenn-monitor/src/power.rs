//! The two ACPI sleep registers, through which a guest turns itself off.
//!
//! Source: the ACPI specification 6.5, section 4.8.3.7, "Sleep Control and Status Registers".

use crate::boot::SLEEP_TYPE_OFF;
use crate::bus::BusDevice;
use crate::exit::{ExitReason, ExitSignal};

/// SLP_EN: the bit that makes a write count.
const ENABLE: u8 = 1 << 5;
/// SLP_TYP: three bits.
const TYPE_SHIFT: u8 = 2;
const TYPE_MASK: u8 = 0b111;

/// Sleep control (offset 0) and sleep status (offset 1). They keep nothing that a snapshot would have to.
#[derive(Debug)]
pub(crate) struct SleepRegisters {
    exit: ExitSignal,
}

impl SleepRegisters {
    pub(crate) fn new(exit: ExitSignal) -> Self {
        Self { exit }
    }
}

impl BusDevice for SleepRegisters {
    fn read(&mut self, _base: u64, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _base: u64, offset: u64, data: &[u8]) {
        let (0, [value]) = (offset, data) else { return };
        if value & ENABLE != 0 && (value >> TYPE_SHIFT) & TYPE_MASK == SLEEP_TYPE_OFF {
            self.exit.raise(ExitReason::GuestShutdown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_enabled_soft_off_ends_the_machine() {
        let exit = ExitSignal::new().unwrap();
        let mut registers = SleepRegisters::new(exit.clone());
        let off = SLEEP_TYPE_OFF << TYPE_SHIFT;
        for (offset, data) in [(0, &[off][..]), (0, &[ENABLE]), (1, &[off | ENABLE]), (0, &[off | ENABLE, 0])]
        {
            registers.write(0, offset, data);
            assert_eq!(exit.reason(), None);
        }
        registers.write(0, 0, &[off | ENABLE]);
        assert_eq!(exit.reason(), Some(ExitReason::GuestShutdown));
    }
}

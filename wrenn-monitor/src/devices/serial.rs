//! The serial port (16550, by `vm-superio`): the guest's console, written to the monitor's standard output.
//!
//! Output only: nothing is ever received. Each byte is a write of its own, done by the vCPU that sends it;
//! where standard output cannot take it at once, the byte is dropped rather than the vCPU held up.

use std::io;

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::output::Output;

/// "Transmitter holding register empty", in the registers that enable and identify interrupts.
const TRANSMITTER_EMPTY: u8 = 1 << 1;

/// The serial port.
pub(crate) struct Serial {
    port: vm_superio::Serial<Interrupt, NoEvents, Output>,
}

/// Raises the port's interrupt line.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// What a snapshot keeps of the port: its registers, each of which may hold anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SerialState {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
}

impl Serial {
    /// A port as it is after power-on.
    pub(crate) fn new(irq: EventFd, output: Output) -> Self {
        Self { port: vm_superio::Serial::new(Interrupt(irq), output) }
    }

    /// A port as it was saved; raises `irq` if an interrupt was pending.
    ///
    /// # Errors
    /// If the interrupt cannot be raised.
    pub(crate) fn restore(state: &SerialState, irq: EventFd, output: Output) -> io::Result<Self> {
        let state = vm_superio::SerialState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: Vec::new(),
        };
        let port = vm_superio::Serial::from_state(&state, Interrupt(irq), NoEvents, output);
        port.map(|port| Self { port }).map_err(io::Error::other)
    }

    /// Raises the interrupt line again if an interrupt is pending. For a restored machine about to run: what
    /// was raised before its interrupt controller was restored may be lost, and the guest would send no more.
    pub(crate) fn repeat(&self) {
        let state = self.port.state();
        if state.interrupt_enable & state.interrupt_identification & TRANSMITTER_EMPTY != 0 {
            // Fails only if the counter is at its limit, and then the interrupt is pending already.
            let _ = self.port.interrupt_evt().trigger();
        }
    }

    /// The port's state for a snapshot.
    pub(crate) fn save(&self) -> SerialState {
        let state = self.port.state();
        SerialState {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, _base: u64, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            *byte = self.port.read(offset);
        }
    }

    fn write(&mut self, _base: u64, offset: u64, data: &[u8]) {
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            // A lost byte or interrupt of the console is not worth a word: the word might be lost as well.
            let _ = self.port.write(offset, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek};

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn irq() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    fn port() -> (Serial, File) {
        let file = tempfile::tempfile().unwrap();
        (Serial::new(irq(), Output::new(file.try_clone().unwrap())), file)
    }

    fn read(port: &mut Serial, offset: u64) -> u8 {
        let mut data = [0xff];
        port.read(0x3f8, offset, &mut data);
        data[0]
    }

    #[test]
    fn what_the_guest_sends_is_written_out() {
        let (mut port, mut file) = port();
        for byte in b"hello\n" {
            port.write(0x3f8, 0, &[*byte]);
        }
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello\n");
        assert_eq!(read(&mut port, 5) & 0x60, 0x60, "always ready for more");
    }

    #[test]
    fn odd_accesses_are_ignored() {
        let (mut port, file) = port();
        port.write(0x3f8, 0, b"two");
        port.write(0x3f8, 300, b"x");
        port.write(0x3f8, 0, &[]);
        port.read(0x3f8, 0, &mut [0; 4]);
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    #[test]
    fn registers_survive_a_snapshot() {
        let (mut port, _file) = port();
        for (offset, value) in [(3, 0x80), (0, 0x01), (1, 0x02), (3, 0x03), (1, 0x0f), (4, 0x0b), (7, 0x5a)] {
            port.write(0x3f8, offset, &[value]);
        }
        let state = port.save();
        let json = serde_json::to_string(&state).unwrap();
        let event = irq();
        let output = Output::new(tempfile::tempfile().unwrap());
        let restored = serde_json::from_str(&json).unwrap();
        let mut port = Serial::restore(&restored, event.try_clone().unwrap(), output).unwrap();
        assert_eq!(port.save(), state);
        assert_eq!(read(&mut port, 7), 0x5a);
        assert_eq!(event.read().ok(), Some(1), "the pending interrupt is raised again");
        port.repeat();
        assert_eq!(event.read().ok(), Some(1));
        // Reading the identification acknowledges it.
        read(&mut port, 2);
        port.repeat();
        assert!(event.read().is_err());
    }
}

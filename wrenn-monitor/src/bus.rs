//! Ports and device memory: which device answers at an address.
//!
//! A bus is filled while the machine is built and never changes afterwards, so vCPU threads share it without a
//! lock; each device has its own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Something that answers reads and writes in a range of addresses.
///
/// The guest chooses `offset` (within the range that the device was given), the access size and the data: all
/// are hostile. A device that does not know an access leaves the data alone.
pub(crate) trait BusDevice: Send {
    /// Fills `data`, which holds ones when the device is called: what an empty bus reads as.
    fn read(&mut self, base: u64, offset: u64, data: &mut [u8]);
    /// Takes `data`.
    fn write(&mut self, base: u64, offset: u64, data: &[u8]);
}

/// A device as the buses hold it.
pub(crate) type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Two devices claimed the same address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len:#x} addresses from {base:#x} are taken by another device, or none at all")]
pub(crate) struct RangeTaken {
    base: u64,
    len: u64,
}

/// One address space: the guest's ports, or its device memory.
#[derive(Default)]
pub(crate) struct Bus {
    devices: BTreeMap<u64, (u64, SharedDevice)>,
}

impl Bus {
    /// Gives `device` the `len` addresses from `base` on.
    pub(crate) fn insert(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), RangeTaken> {
        let taken = RangeTaken { base, len };
        let Some(last) = len.checked_sub(1).and_then(|rest| base.checked_add(rest)) else {
            return Err(taken);
        };
        let below = self.devices.range(..=last).next_back();
        if below.is_some_and(|(other, (other_len, _))| other + (other_len - 1) >= base) {
            return Err(taken);
        }
        self.devices.insert(base, (len, device));
        Ok(())
    }

    /// Reads from whatever is at `address`; ones where nothing is.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((base, offset, device)) = self.find(address, data.len()) {
            // A device that panicked once is still better asked than the whole guest lost.
            device.lock().unwrap_or_else(PoisonError::into_inner).read(base, offset, data);
        }
    }

    /// Writes to whatever is at `address`; lost where nothing is.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((base, offset, device)) = self.find(address, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(base, offset, data);
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, u64, &SharedDevice)> {
        let (base, (device_len, device)) = self.devices.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(len as u64)?;
        (end <= *device_len).then_some((*base, offset, device))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.devices.iter().map(|(base, (len, _))| (base, len))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers what it was written, and reads as the offset.
    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, _base: u64, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, _base: u64, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn bus(ranges: &[(u64, u64)]) -> (Bus, Arc<Mutex<Recorder>>) {
        let (mut bus, device) = (Bus::default(), Arc::new(Mutex::new(Recorder::default())));
        for (base, len) in ranges {
            bus.insert(*base, *len, device.clone()).unwrap();
        }
        (bus, device)
    }

    #[test]
    fn an_access_reaches_the_device_that_holds_all_of_it() {
        let (bus, device) = bus(&[(0x100, 8), (0x108, 8)]);
        let mut data = [0u8; 4];
        bus.read(0x104, &mut data);
        assert_eq!(data, [4; 4]);
        bus.write(0x10a, &[7]);
        assert_eq!(device.lock().unwrap().0, [(2, vec![7])]);
    }

    #[test]
    fn an_access_outside_or_across_a_border_reads_as_ones_and_writes_nothing() {
        let (bus, device) = bus(&[(0x100, 8), (0x108, 8)]);
        for address in [0, 0xff, 0x105, 0x106, 0x110, u64::MAX] {
            let mut data = [0u8; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
            bus.write(address, &data);
        }
        assert!(device.lock().unwrap().0.is_empty());
    }

    #[test]
    fn overlapping_and_empty_ranges_are_refused() {
        let (mut bus, device) = bus(&[(0x100, 0x10)]);
        for (base, len) in [(0x100, 1), (0x10f, 1), (0xf0, 0x11), (0, 0x1000), (0x200, 0), (u64::MAX, 2)] {
            assert_eq!(bus.insert(base, len, device.clone()), Err(RangeTaken { base, len }));
        }
        bus.insert(0xf0, 0x10, device.clone()).unwrap();
        bus.insert(0x110, 1, device).unwrap();
    }
}

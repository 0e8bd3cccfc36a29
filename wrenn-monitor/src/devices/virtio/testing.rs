//! A guest with one device, for tests: a driver that works through the registers, the rings and the event
//! loop as a real one does, and that can break every rule.
//!
//! (`virtio-queue` has a mock of its own, but it lays the used ring over half of the available ring.)

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::registers::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use super::{VirtioDevice, VirtioMmio, Worker};
use crate::bus::BusDevice;
use crate::memory::GuestMemory;

/// Two regions with a hole between them.
pub(in crate::devices) const MEMORY: [(u64, usize); 2] = [(0, 0x20_0000), (0x40_0000, 0x10_0000)];
/// Where the queues are; each takes [`QUEUE_ROOM`].
const QUEUES: u64 = 0x1_0000;
const QUEUE_ROOM: u64 = 0x4000;
/// Free for requests.
pub(in crate::devices) const BUFFERS: u64 = 0x4_0000;
pub(in crate::devices) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(in crate::devices) const WRITE: u16 = VRING_DESC_F_WRITE as u16;

/// A descriptor as it lies in the table.
#[derive(Debug, Clone, Copy)]
pub(in crate::devices) struct Descriptor {
    pub(in crate::devices) address: u64,
    pub(in crate::devices) len: u32,
    pub(in crate::devices) flags: u16,
    pub(in crate::devices) next: u16,
}

/// A buffer that the device reads.
pub(in crate::devices) fn out(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, flags: 0, next: 0 }
}

/// A buffer that the device writes.
pub(in crate::devices) fn into(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, flags: WRITE, next: 0 }
}

/// The driver of one device, and the main loop that serves it.
pub(in crate::devices) struct Driver {
    pub(in crate::devices) memory: GuestMemory,
    pub(in crate::devices) mmio: VirtioMmio,
    irq: EventFd,
    events: EventManager<Arc<Mutex<Worker>>>,
    queues: Vec<QueueEnd>,
}

/// The driver's side of a queue.
#[derive(Debug, Default, Clone, Copy)]
struct QueueEnd {
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

pub(in crate::devices) fn memory() -> GuestMemory {
    let ranges: Vec<_> = MEMORY.iter().map(|(start, len)| (GuestAddress(*start), *len)).collect();
    GuestMemory::from_ranges(&ranges).unwrap()
}

impl Driver {
    /// Brings `device` up with every feature that it offers.
    pub(in crate::devices) fn new(device: impl VirtioDevice + 'static) -> Self {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let memory = memory();
        let mmio = VirtioMmio::new(Box::new(device), memory.clone(), irq.try_clone().unwrap()).unwrap();
        let mut driver = Self::attach(memory, mmio, irq);
        driver.bring_up(u64::MAX);
        driver
    }

    /// Takes over a device in whatever state it is.
    pub(in crate::devices) fn attach(memory: GuestMemory, mmio: VirtioMmio, irq: EventFd) -> Self {
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(mmio.worker());
        Self { memory, mmio, irq, events, queues: Vec::new() }
    }

    /// The same guest after it was saved and restored with `device` in its place.
    pub(in crate::devices) fn move_to(
        self,
        restore: impl FnOnce(GuestMemory, EventFd) -> VirtioMmio,
    ) -> Self {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let mmio = restore(self.memory.clone(), irq.try_clone().unwrap());
        let mut driver = Self::attach(self.memory, mmio, irq);
        driver.queues = self.queues;
        driver
    }

    pub(in crate::devices) fn read(&mut self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.mmio.read(0, register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub(in crate::devices) fn write(&mut self, register: u32, value: u32) {
        self.mmio.write(0, register.into(), &value.to_le_bytes());
    }

    pub(in crate::devices) fn status(&mut self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// Whether the device says that it needs a reset.
    pub(in crate::devices) fn stopped(&mut self) -> bool {
        self.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// The feature bits that the device offers.
    pub(in crate::devices) fn offered(&mut self) -> u64 {
        let mut half = |index| {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, index);
            u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Resets the device and brings it up with those of the features in `mask` that it offers.
    pub(in crate::devices) fn bring_up(&mut self, mask: u64) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        let features = self.offered() & mask;
        for (index, half) in [features as u32, (features >> 32) as u32].into_iter().enumerate() {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, index as u32);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.status() & FEATURES_OK, FEATURES_OK);
        self.queues.clear();
        for index in 0.. {
            self.write(VIRTIO_MMIO_QUEUE_SEL, index);
            let size = self.read(VIRTIO_MMIO_QUEUE_NUM_MAX);
            if size == 0 {
                break;
            }
            self.set_up_queue(index, size as u16);
        }
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.turn();
    }

    fn set_up_queue(&mut self, index: u32, size: u16) {
        let base = QUEUES + u64::from(index) * QUEUE_ROOM;
        self.memory.write_slice(&[0; QUEUE_ROOM as usize], GuestAddress(base)).unwrap();
        self.queues.push(QueueEnd { size, ..QueueEnd::default() });
        let [descriptors, available, used] = self.rings(index as usize);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size.into());
        for (low, high, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, descriptors),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, used),
        ] {
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// The addresses of descriptor table, available ring and used ring.
    pub(in crate::devices) fn rings(&self, queue: usize) -> [u64; 3] {
        let base = QUEUES + queue as u64 * QUEUE_ROOM;
        [base, base + 0x1000, base + 0x2000]
    }

    /// Puts descriptor `index` of `queue`.
    pub(in crate::devices) fn put_descriptor(&self, queue: usize, index: u16, descriptor: Descriptor) {
        let at = self.rings(queue)[0] + 16 * u64::from(index);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Makes the chain that begins at `head` available; the device is not told.
    pub(in crate::devices) fn offer(&mut self, queue: usize, head: u16) {
        let [_, available, _] = self.rings(queue);
        let end = &mut self.queues[queue];
        let slot = available + 4 + 2 * u64::from(end.available % end.size);
        end.available = end.available.wrapping_add(1);
        let index = end.available;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.memory.write_obj(index, GuestAddress(available + 2)).unwrap();
    }

    /// Adds one request of `descriptors`, linked in this order, and returns its head.
    pub(in crate::devices) fn post(&mut self, queue: usize, descriptors: &[Descriptor]) -> u16 {
        let end = self.queues[queue];
        let index = |i: usize| (end.next_descriptor + i as u16) % end.size;
        for (i, descriptor) in descriptors.iter().enumerate() {
            let link = if i + 1 < descriptors.len() { NEXT } else { 0 };
            let linked = Descriptor { flags: descriptor.flags | link, next: index(i + 1), ..*descriptor };
            self.put_descriptor(queue, index(i), linked);
        }
        self.queues[queue].next_descriptor = index(descriptors.len());
        self.offer(queue, index(0));
        index(0)
    }

    /// Tells the device that there is something in `queue`, and lets it work.
    pub(in crate::devices) fn notify(&mut self, queue: usize) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        self.turn();
    }

    /// Runs the main loop until it has nothing to do; fails if that never comes.
    pub(in crate::devices) fn turn(&mut self) {
        for _ in 0..1000 {
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device never rests");
    }

    /// Runs the main loop until `done`; fails if that has not come about within `limit`.
    pub(in crate::devices) fn turn_for(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let given_up = Instant::now() + limit;
        while !done(self) {
            assert!(Instant::now() < given_up, "not within {limit:?}");
            self.events.run_with_timeout(10).unwrap();
        }
    }

    /// How many requests have been answered, since the device was brought up.
    pub(in crate::devices) fn answered(&self, queue: usize) -> u16 {
        let [_, _, used] = self.rings(queue);
        self.memory.read_obj(GuestAddress(used + 2)).unwrap()
    }

    /// The requests that were answered since the last call: head and length.
    pub(in crate::devices) fn answers(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let [_, _, used] = self.rings(queue);
        let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let end = &mut self.queues[queue];
        let mut answers = Vec::new();
        while end.used != index {
            let slot = used + 4 + 8 * u64::from(end.used % end.size);
            answers.push(self.memory.read_obj::<[u32; 2]>(GuestAddress(slot)).unwrap().into());
            end.used = end.used.wrapping_add(1);
        }
        // `used_event`, behind the available ring: interrupt at the next answer.
        let (at, next) = (4 + 2 * u64::from(end.size), end.used);
        let [_, available, _] = self.rings(queue);
        self.memory.write_obj(next, GuestAddress(available + at)).unwrap();
        answers
    }

    /// Whether the device has interrupted since the last call.
    pub(in crate::devices) fn interrupted(&mut self) -> bool {
        self.irq.read().is_ok()
    }

    pub(in crate::devices) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(in crate::devices) fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

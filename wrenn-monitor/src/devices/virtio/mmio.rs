//! The memory-mapped transport: a device's registers as its driver sees them (virtio 1.2, section 4.2).
//!
//! ```text
//!  reset ──ACKNOWLEDGE, DRIVER──► features ──FEATURES_OK──► queues ──DRIVER_OK──► running
//!    ▲                                                                              │ protocol broken
//!    └──────────────────────────── status = 0 ◄──────── DEVICE_NEEDS_RESET ◄────────┘
//! ```
//!
//! Accesses come from vCPU threads. `DRIVER_OK` hands the queues to the [`Worker`] on the main thread, and a
//! reset takes them back before the driver's write returns, as the driver frees their memory right after.
//!
//! Failure paths: an access that the specification does not know is ignored, or reads as zero. Queues that do
//! not lie in guest memory stop the device (`DEVICE_NEEDS_RESET`).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;
use wrenn_vmm::api::NetworkOverride;

use super::registers::{DRIVER_OK, Progress, Registers, StatusChange, set_high, set_low};
use super::ring::{Ring, RingError};
use super::signals::Signals;
use super::state::{RestoreDeviceError, TransportState, VirtioMmioState};
use super::{VirtioDevice, Worker};
use crate::bus::BusDevice;
use crate::logger::GUEST;
use crate::memory::GuestMemory;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The version of the transport: 1 is legacy.
const VERSION: u32 = 2;
/// "wren": the specification leaves the vendor's number to the vendor.
const VENDOR: u32 = 0x6e65_7277;
/// What every device offers beyond its own features.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// One virtio device's register window, and its [`Worker`].
pub(crate) struct VirtioMmio {
    device_id: u32,
    features: u64,
    config: Vec<u8>,
    queue_sizes: &'static [u16],
    registers: Registers,
    memory: GuestMemory,
    signals: Arc<Signals>,
    notifiers: Arc<[EventFd]>,
    worker: Arc<Mutex<Worker>>,
}

impl VirtioMmio {
    /// Puts `device` behind a register window; it interrupts by `irq`, and works on `memory`.
    ///
    /// # Errors
    /// Where the process has no file descriptors left.
    pub(crate) fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, irq: EventFd) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let queue_sizes = device.queue_sizes();
        let notifiers: Arc<[EventFd]> = queue_sizes.iter().map(|_| event()).collect::<io::Result<_>>()?;
        let signals = Arc::new(Signals::new(irq));
        let timer = device.is_limited().then(TimerFd::new).transpose()?;
        Ok(Self {
            device_id: device.device_id(),
            features: device.features() | TRANSPORT_FEATURES,
            config: device.config_space(),
            queue_sizes,
            registers: Registers::new(queue_sizes),
            memory,
            signals: signals.clone(),
            notifiers: notifiers.clone(),
            worker: Arc::new(Mutex::new(Worker::new(device, event()?, timer, notifiers, signals))),
        })
    }

    /// Makes the device that `state` describes, as it was when it was saved. It does nothing before
    /// [`resume`](Self::resume), which wants the interrupt controller restored and `irq` registered.
    ///
    /// # Errors
    /// If the state is not one that a device can be in, or the device's file or TAP cannot be had.
    pub(crate) fn restore(
        state: VirtioMmioState,
        memory: GuestMemory,
        irq: EventFd,
        overrides: &[NetworkOverride],
    ) -> Result<Self, RestoreDeviceError> {
        let device = state.device.open(overrides)?;
        let mut mmio = Self::new(device, memory, irq).map_err(RestoreDeviceError::Events)?;
        let transport = state.transport;
        transport.check(mmio.features, mmio.queue_sizes)?;
        mmio.registers = transport.registers;
        mmio.signals.set(transport.interrupt_status, transport.needs_reset);
        mmio.lock_worker().suspend();
        if mmio.registers.has(DRIVER_OK) && !transport.needs_reset {
            let rings = mmio.rings(&transport.progress).map_err(RestoreDeviceError::Ring)?;
            let features = mmio.registers.driver_features;
            mmio.lock_worker().start_at_once(features, rings).map_err(RestoreDeviceError::Activate)?;
        }
        Ok(mmio)
    }

    /// The events that stand for a write to the queue notify register, one for each queue.
    pub(crate) fn notifiers(&self) -> &[EventFd] {
        &self.notifiers
    }

    /// The device at work, for the main loop to subscribe.
    pub(crate) fn worker(&self) -> Arc<Mutex<Worker>> {
        self.worker.clone()
    }

    /// Stops the device from touching its queues and guest memory; what it has begun is finished on return.
    pub(crate) fn suspend(&self) {
        self.lock_worker().suspend();
    }

    /// Lets the device go on, with whatever came in meanwhile.
    pub(crate) fn resume(&self) {
        self.lock_worker().resume();
    }

    /// The device's state for a snapshot; it should be [suspended](Self::suspend).
    ///
    /// # Errors
    /// If what the guest believes to be on the disk cannot be brought there.
    pub(crate) fn save(&self) -> io::Result<VirtioMmioState> {
        let worker = self.lock_worker();
        Ok(VirtioMmioState {
            transport: TransportState {
                registers: self.registers.clone(),
                interrupt_status: self.signals.pending(),
                needs_reset: self.signals.needs_reset(),
                progress: worker.progress(),
            },
            device: worker.save_device()?,
        })
    }

    fn lock_worker(&self) -> MutexGuard<'_, Worker> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queues that the driver has made ready; `progress` is empty where they are new.
    fn rings(&self, progress: &[Progress]) -> Result<Vec<Option<Ring>>, RingError> {
        let ring = |(index, max_size): (usize, &u16)| {
            let progress = progress.get(index).copied().unwrap_or_default();
            let state = self.registers.queue_state(index, *max_size, progress);
            state.map(|state| Ring::new(state, &self.memory)).transpose()
        };
        self.queue_sizes.iter().enumerate().map(ring).collect()
    }

    fn start(&mut self) {
        match self.rings(&[]) {
            Ok(rings) => self.lock_worker().start(self.registers.driver_features, rings),
            Err(error) => {
                log::warn!(target: GUEST, "virtio device {} cannot start: {error}", self.device_id);
                self.signals.stopped();
            }
        }
    }

    fn reset(&mut self) {
        self.lock_worker().stop();
        self.registers = Registers::new(self.queue_sizes);
        self.signals.set(0, false);
    }

    fn read_register(&self, offset: u32) -> u32 {
        let registers = &self.registers;
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device_id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match registers.device_features_sel {
                0 => self.features as u32,
                1 => (self.features >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.queue_sizes.get(registers.queue_sel as usize).map_or(0, |size| u32::from(*size))
            }
            VIRTIO_MMIO_QUEUE_READY => registers.queue().map_or(0, |queue| u32::from(queue.ready)),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.signals.pending(),
            VIRTIO_MMIO_STATUS if self.signals.needs_reset() => {
                registers.status | VIRTIO_CONFIG_S_NEEDS_RESET
            }
            VIRTIO_MMIO_STATUS => registers.status,
            // No shared memory: a length of all ones says so.
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            // The configuration space never changes, so it stays at its first generation.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        let registers = &mut self.registers;
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => registers.write_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => registers.queue_sel = value,
            VIRTIO_MMIO_QUEUE_READY => {
                if let Some(queue) = registers.queue_mut() {
                    queue.ready = value & 1 == 1;
                }
            }
            // KVM's ioeventfds take these; here come those that it could not.
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(notifier) = self.notifiers.get(value as usize) {
                    let _ = notifier.write(1);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.signals.acknowledge(value),
            VIRTIO_MMIO_STATUS => match registers.write_status(value, self.features) {
                StatusChange::Noted => {}
                StatusChange::Start => self.start(),
                StatusChange::Reset => self.reset(),
            },
            _ => self.write_queue_layout(offset, value),
        }
    }

    fn write_queue_layout(&mut self, offset: u32, value: u32) {
        let Some(queue) = self.registers.queue_layout() else { return };
        match offset {
            // Too large to be a size at all becomes 0, which is refused when the queue goes into service.
            VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.available, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.available, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }
}

impl BusDevice for VirtioMmio {
    fn read(&mut self, _base: u64, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            let rest = usize::try_from(at).ok().and_then(|at| self.config.get(at..)).unwrap_or_default();
            let len = rest.len().min(data.len());
            data[..len].copy_from_slice(&rest[..len]);
        } else if let Ok(register) = <&mut [u8; 4]>::try_from(data) {
            *register = self.read_register(offset as u32).to_le_bytes();
        }
    }

    fn write(&mut self, _base: u64, offset: u64, data: &[u8]) {
        // No device here has a configuration that its driver may write.
        if let (true, Ok(value)) = (offset < u64::from(VIRTIO_MMIO_CONFIG), <[u8; 4]>::try_from(data)) {
            self.write_register(offset as u32, u32::from_le_bytes(value));
        }
    }
}

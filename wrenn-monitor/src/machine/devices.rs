//! A machine's devices: put on the buses, wired to interrupt lines and doorbells, saved and brought back.
//!
//! The order of the virtio devices gives each its window and its interrupt line ([`crate::layout`]); a snapshot
//! keeps it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use wrenn_vmm::api::NetworkOverride;

use crate::bus::{Bus, RangeTaken, SharedDevice};
use crate::devices::{
    I8042, PvPanic, RestoreDeviceError, Serial, SerialState, VirtioDevice, VirtioMmio, VirtioMmioState,
    Worker,
};
use crate::exit::{ExitReason, ExitSignal};
use crate::layout;
use crate::memory::GuestMemory;
use crate::output::Output;
use crate::power::SleepRegisters;
use crate::vm::{Vm, VmError};

/// A device could not be made, wired or saved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("no file descriptors are left for a device's events")]
    Events(#[source] io::Error),
    #[error("standard output cannot be used as the guest's console")]
    Console(#[source] io::Error),
    #[error("the serial port could not be restored")]
    Serial(#[source] io::Error),
    #[error("virtio device {slot} could not be restored")]
    Restore { slot: usize, source: RestoreDeviceError },
    #[error("a device could not be wired")]
    Wire(#[from] VmError),
    #[error("a device could not be placed")]
    Place(#[from] RangeTaken),
    #[error("what the guest wrote to virtio device {slot} could not be brought to disk")]
    Save { slot: usize, source: io::Error },
}

/// The devices of a machine.
pub(crate) struct Devices {
    ports: Arc<Bus>,
    mmio: Arc<Bus>,
    serial: Arc<Mutex<Serial>>,
    virtio: Vec<Arc<Mutex<VirtioMmio>>>,
}

/// What devices are attached to.
pub(crate) struct Machinery<'a> {
    pub(crate) vm: &'a Vm,
    pub(crate) guest: &'a GuestMemory,
    pub(crate) exit: &'a ExitSignal,
}

impl Devices {
    /// The devices of a new machine.
    pub(crate) fn attach(
        to: &Machinery<'_>,
        virtio: Vec<Box<dyn VirtioDevice>>,
    ) -> Result<Self, DeviceError> {
        let output = Output::stdout().map_err(DeviceError::Console)?;
        let serial = Serial::new(interrupt_line(to.vm, layout::SERIAL_GSI)?, output);
        let virtio = virtio.into_iter().enumerate().map(|(slot, device)| {
            let interrupt = interrupt_line(to.vm, layout::virtio_gsi(slot))?;
            VirtioMmio::new(device, to.guest.clone(), interrupt).map_err(DeviceError::Events)
        });
        Self::place(to, serial, virtio.collect::<Result<_, _>>()?)
    }

    /// The devices of a snapshot; they do nothing before [`Self::resume`].
    pub(crate) fn restore(
        to: &Machinery<'_>,
        serial: &SerialState,
        virtio: Vec<VirtioMmioState>,
        overrides: &[NetworkOverride],
    ) -> Result<Self, DeviceError> {
        let output = Output::stdout().map_err(DeviceError::Console)?;
        let line = interrupt_line(to.vm, layout::SERIAL_GSI)?;
        let serial = Serial::restore(serial, line, output).map_err(DeviceError::Serial)?;
        let virtio = virtio.into_iter().enumerate().map(|(slot, state)| {
            let interrupt = interrupt_line(to.vm, layout::virtio_gsi(slot))?;
            VirtioMmio::restore(state, to.guest.clone(), interrupt, overrides)
                .map_err(|source| DeviceError::Restore { slot, source })
        });
        Self::place(to, serial, virtio.collect::<Result<_, _>>()?)
    }

    fn place(to: &Machinery<'_>, serial: Serial, virtio: Vec<VirtioMmio>) -> Result<Self, DeviceError> {
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        let serial = Arc::new(Mutex::new(serial));
        let on = |reason: ExitReason| {
            let exit = to.exit.clone();
            Box::new(move || exit.raise(reason.clone()))
        };
        let fixed: [(u16, u16, SharedDevice); 4] = [
            (layout::SERIAL_PORT, layout::SERIAL_PORT_COUNT, serial.clone()),
            (layout::I8042_PORT, layout::I8042_PORT_COUNT, shared(I8042::new(on(ExitReason::GuestReset)))),
            (
                layout::PVPANIC_PORT,
                layout::PVPANIC_PORT_COUNT,
                shared(PvPanic::new(on(ExitReason::GuestPanic))),
            ),
            (layout::SLEEP_PORT, layout::SLEEP_PORT_COUNT, shared(SleepRegisters::new(to.exit.clone()))),
        ];
        for (port, count, device) in fixed {
            ports.insert(port.into(), count.into(), device)?;
        }
        let mut placed = Vec::with_capacity(virtio.len());
        for (slot, device) in virtio.into_iter().enumerate() {
            let base = layout::virtio_base(slot);
            for (queue, doorbell) in (0..).zip(device.notifiers()) {
                to.vm.connect_doorbell(doorbell, base + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY), queue)?;
            }
            let device = Arc::new(Mutex::new(device));
            mmio.insert(base, layout::VIRTIO_MMIO_SIZE, device.clone())?;
            placed.push(device);
        }
        Ok(Self { ports: Arc::new(ports), mmio: Arc::new(mmio), serial, virtio: placed })
    }

    /// The guest's ports.
    pub(crate) fn ports(&self) -> Arc<Bus> {
        self.ports.clone()
    }

    /// The guest's device memory.
    pub(crate) fn mmio(&self) -> Arc<Bus> {
        self.mmio.clone()
    }

    /// What the main loop has to run.
    pub(crate) fn workers(&self) -> impl Iterator<Item = Arc<Mutex<Worker>>> {
        self.virtio.iter().map(|device| lock(device).worker())
    }

    /// Keeps the devices from touching guest memory; what they have begun is finished on return.
    pub(crate) fn suspend(&self) {
        self.virtio.iter().for_each(|device| lock(device).suspend());
    }

    /// Lets them go on.
    pub(crate) fn resume(&self) {
        lock(&self.serial).repeat();
        self.virtio.iter().for_each(|device| lock(device).resume());
    }

    /// The devices' states; they must be suspended.
    pub(crate) fn save(&self) -> Result<(SerialState, Vec<VirtioMmioState>), DeviceError> {
        let save = |(slot, device): (usize, &Arc<Mutex<VirtioMmio>>)| {
            lock(device).save().map_err(|source| DeviceError::Save { slot, source })
        };
        let virtio = self.virtio.iter().enumerate().map(save).collect::<Result<_, _>>()?;
        Ok((lock(&self.serial).save(), virtio))
    }
}

/// An event whose writes pulse the interrupt line `gsi`.
fn interrupt_line(vm: &Vm, gsi: u32) -> Result<EventFd, DeviceError> {
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(DeviceError::Events)?;
    vm.connect_interrupt(&event, gsi)?;
    Ok(event)
}

fn shared(device: impl crate::bus::BusDevice + 'static) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    // A device that panicked in a vCPU's thread is still the guest's device.
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

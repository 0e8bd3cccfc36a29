//! The transport's own rules, on the simplest device there is.

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
use virtio_bindings::virtio_mmio::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wrenn_vmm::api::EntropyDevice;

use super::registers::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
use super::testing::{BUFFERS, Driver, into, memory};
use super::*;
use crate::bus::BusDevice;
use crate::devices::Rng;

const VERSION_1: u32 = 1 << 0;

fn rng() -> Rng {
    Rng::new(&EntropyDevice::default())
}

/// A device that nobody has touched.
fn untouched() -> Driver {
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    let memory = memory();
    let mmio = VirtioMmio::new(Box::new(rng()), memory.clone(), irq.try_clone().unwrap()).unwrap();
    Driver::attach(memory, mmio, irq)
}

/// A device whose driver has got as far as `status`, with all features taken.
fn at(status: u32) -> Driver {
    let mut driver = untouched();
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    let features = driver.offered();
    for (index, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
        driver.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, index);
        driver.write(VIRTIO_MMIO_DRIVER_FEATURES, half);
    }
    driver.write(VIRTIO_MMIO_STATUS, status);
    driver
}

#[test]
fn the_window_says_what_it_is() {
    let mut driver = untouched();
    let registers = [VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_VERSION, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_STATUS];
    assert_eq!(registers.map(|r| driver.read(r)), [0x7472_6976, 2, 4, 0]);
    assert_eq!(driver.read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX, "no shared memory");
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES) & VERSION_1, VERSION_1);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "there is one queue");
}

#[test]
fn registers_are_four_bytes_wide() {
    let mut driver = untouched();
    for len in [1, 2, 3, 8] {
        let mut data = vec![0xff; len];
        driver.mmio.read(0, 0, &mut data);
        assert_eq!(data, vec![0; len]);
        driver.mmio.write(0, VIRTIO_MMIO_STATUS.into(), &vec![1; len]);
    }
    assert_eq!(driver.status(), 0);
    let mut data = [0xff; 8];
    driver.mmio.read(0, u64::MAX - 3, &mut data);
    driver.mmio.read(0, 0xffc, &mut data);
    assert_eq!(data, [0; 8], "beyond the configuration space");
}

#[test]
fn a_driver_goes_step_by_step() {
    let mut driver = untouched();
    for (write, status) in [
        (DRIVER, 0),
        (FEATURES_OK, 0),
        (ACKNOWLEDGE, ACKNOWLEDGE),
        (DRIVER_OK, ACKNOWLEDGE),
        // Bits stay, whether they are written again or not.
        (DRIVER, ACKNOWLEDGE | DRIVER),
        // No features were chosen, VERSION_1 among them.
        (FEATURES_OK, ACKNOWLEDGE | DRIVER),
        (FAILED, ACKNOWLEDGE | DRIVER | FAILED),
        (0, 0),
    ] {
        driver.write(VIRTIO_MMIO_STATUS, write);
        assert_eq!(driver.status(), status, "{write:#x}");
    }
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let all = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    assert_eq!(at(all).status(), all);
    let mut driver = at(ACKNOWLEDGE | DRIVER);
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES, 1 << 5);
    driver.write(VIRTIO_MMIO_STATUS, all);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
}

#[test]
fn queues_are_set_up_between_features_and_the_start() {
    let ready = |driver: &mut Driver| {
        driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        driver.read(VIRTIO_MMIO_QUEUE_READY)
    };
    assert_eq!(ready(&mut at(ACKNOWLEDGE | DRIVER)), 0);
    assert_eq!(ready(&mut at(ACKNOWLEDGE | DRIVER | FEATURES_OK)), 1);
    assert_eq!(ready(&mut at(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)), 0);
}

#[test]
fn queues_that_cannot_be_stop_the_device() {
    let bad: [&[(u32, u32)]; 6] = [
        &[(VIRTIO_MMIO_QUEUE_NUM, 0)],
        &[(VIRTIO_MMIO_QUEUE_NUM, 3)],
        &[(VIRTIO_MMIO_QUEUE_NUM, 128)],
        &[(VIRTIO_MMIO_QUEUE_NUM, 0x1_0040)],
        &[(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x8)],
        &[(VIRTIO_MMIO_QUEUE_USED_LOW, 0), (VIRTIO_MMIO_QUEUE_USED_HIGH, u32::MAX)],
    ];
    for writes in bad {
        let mut driver = at(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        for (register, value) in writes {
            driver.write(*register, *value);
        }
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert!(driver.stopped() && driver.interrupted(), "{writes:x?}");
        driver.bring_up(u64::MAX);
        assert!(!driver.stopped());
    }
}

#[test]
fn interrupts_are_pending_until_acknowledged() {
    let mut driver = Driver::new(rng());
    driver.post(0, &[into(BUFFERS, 8)]);
    driver.notify(0);
    assert!(driver.interrupted());
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert!(!driver.interrupted());
}

#[test]
fn more_requests_than_a_round_are_served_all_the_same() {
    let mut driver = Driver::new(rng());
    assert!(usize::from(rng().queue_sizes()[0]) >= ROUND);
    for round in 0..3 {
        for i in 0..ROUND as u64 {
            driver.post(0, &[into(BUFFERS + 8 * i, 8)]);
        }
        driver.notify(0);
        assert_eq!(driver.answers(0).len(), ROUND, "{round}");
    }
}

#[test]
fn a_reset_device_touches_nothing_more() {
    let mut driver = Driver::new(rng());
    driver.post(0, &[into(BUFFERS, 8)]);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    driver.notify(0);
    assert_eq!(driver.answers(0), []);
    assert_eq!(driver.get(BUFFERS, 8), [0; 8]);
}

fn save(driver: &Driver) -> VirtioMmioState {
    driver.mmio.suspend();
    driver.mmio.save().unwrap()
}

fn restore(state: VirtioMmioState) -> Result<VirtioMmio, RestoreDeviceError> {
    VirtioMmio::restore(state, memory(), EventFd::new(EFD_NONBLOCK).unwrap(), &[])
}

#[test]
fn a_device_is_restored_in_whatever_phase_it_was() {
    let set_up = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    for driver in [untouched(), at(ACKNOWLEDGE), at(set_up), at(set_up | FAILED), Driver::new(rng())] {
        let state = save(&driver);
        let restored = restore(state.clone()).unwrap();
        assert_eq!(restored.save().unwrap(), state);
    }
    let mut stopped = Driver::new(rng());
    stopped.post(0, &[into(u64::MAX, 8)]);
    stopped.notify(0);
    let state = save(&stopped);
    let mut stopped = stopped.move_to(|memory, irq| VirtioMmio::restore(state, memory, irq, &[]).unwrap());
    assert!(stopped.stopped());
    stopped.bring_up(u64::MAX);
    stopped.mmio.resume();
    stopped.post(0, &[into(BUFFERS, 8)]);
    stopped.notify(0);
    assert_eq!(stopped.answers(0).len(), 1);
}

#[test]
fn an_interrupt_that_was_pending_is_raised_again() {
    let mut driver = Driver::new(rng());
    driver.post(0, &[into(BUFFERS, 8)]);
    driver.notify(0);
    let state = save(&driver);
    let mut driver = driver.move_to(|memory, irq| VirtioMmio::restore(state, memory, irq, &[]).unwrap());
    driver.turn();
    assert!(!driver.interrupted());
    driver.mmio.resume();
    driver.turn();
    assert!(driver.interrupted());
    assert_eq!(driver.answers(0).len(), 1);
}

#[test]
fn impossible_states_are_refused() {
    let good = save(&Driver::new(rng()));
    restore(good.clone()).unwrap();
    let changes: [fn(&mut VirtioMmioState); 12] = [
        |s| s.transport.registers.status = DRIVER_OK,
        |s| s.transport.registers.status |= 0x100,
        |s| s.transport.registers.driver_features = 0,
        |s| s.transport.registers.driver_features |= 1 << 5,
        |s| s.transport.registers.queues.clear(),
        |s| s.transport.registers.queues[0].size = 0,
        |s| s.transport.registers.queues[0].size = 48,
        |s| s.transport.registers.queues[0].size = 512,
        |s| s.transport.registers.queues[0].used = u64::MAX - 3,
        |s| s.transport.registers.queues[0].descriptors = 0x30_0000,
        |s| s.transport.progress.clear(),
        |s| s.transport.interrupt_status = 4,
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut state = good.clone();
        change(&mut state);
        assert!(restore(state).is_err(), "change {i}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    /// A saved state with any bytes changed is refused, or is one that a device can be in: it works, or stops.
    #[test]
    fn no_saved_state_breaks_the_device(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        requests in 0u64..3,
    ) {
        let mut driver = Driver::new(rng());
        for i in 0..requests {
            driver.post(0, &[into(BUFFERS + 8 * i, 8)]);
        }
        driver.notify(0);
        let mut bytes = postcard::to_allocvec(&save(&driver)).unwrap();
        for (index, value) in changes {
            let len = bytes.len();
            bytes[index.index(len)] = value;
        }
        let Ok(state) = postcard::from_bytes::<VirtioMmioState>(&bytes) else { return Ok(()) };
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let memory = driver.memory.clone();
        let Ok(mmio) = VirtioMmio::restore(state, memory.clone(), irq.try_clone().unwrap(), &[]) else {
            return Ok(());
        };
        let mut driver = Driver::attach(memory, mmio, irq);
        driver.mmio.resume();
        driver.turn();
        driver.bring_up(u64::MAX);
        driver.post(0, &[into(BUFFERS, 8)]);
        driver.notify(0);
        assert_eq!(driver.answers(0).len(), 1);
    }

    /// Whatever is written to the registers, the device answers, and a reset makes it as new.
    #[test]
    fn no_sequence_of_accesses_breaks_the_registers(
        accesses in vec((prop_oneof![(0u64..0x48).prop_map(|r| r * 4), any::<u64>()],
                         prop_oneof![0u32..16, any::<u32>()], 0usize..9), 0..200),
    ) {
        let mut driver = untouched();
        for (offset, value, len) in accesses {
            let bytes = u64::from(value).to_le_bytes();
            let data = if len == 0 { &bytes[..4] } else { &bytes[..len] };
            driver.mmio.write(0, offset, data);
            driver.mmio.read(0, offset, &mut data.to_vec());
        }
        driver.turn();
        let state = save(&driver);
        restore(state).unwrap();
        driver.mmio.resume();
        driver.bring_up(u64::MAX);
        driver.post(0, &[into(BUFFERS, 8)]);
        driver.notify(0);
        assert_eq!(driver.answers(0).len(), 1);
    }
}

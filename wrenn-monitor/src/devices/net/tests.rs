use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;
use wrenn_vmm::api::{RateLimiter, TokenBucket};

use super::*;
use crate::devices::virtio::chaos::chaos;
use crate::devices::virtio::testing::{BUFFERS, Driver, into, out};

const RX: usize = 0;
const TX: usize = 1;
const BASIC: u64 = !(1 << VIRTIO_NET_F_MRG_RXBUF);

fn state() -> NetState {
    NetState {
        iface_id: "eth0".into(),
        tap: "tap0".into(),
        mac: Some([6, 0, 1, 2, 3, 4]),
        mtu: Some(1400),
        receive: LimiterState::default(),
        send: LimiterState::default(),
    }
}

/// An interface whose cable ends in the test: datagrams keep frames apart as a TAP does.
fn cable() -> (Driver, UnixDatagram) {
    limited_cable(Default::default())
}

/// With limits on what the guest receives and sends.
fn limited_cable(limits: [Limiter; 2]) -> (Driver, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    ours.set_nonblocking(true).unwrap();
    let tap = Tap::from_file(File::from(OwnedFd::from(theirs)));
    (Driver::new(Net::on(tap, state(), limits)), ours)
}

/// A frame of `len` bytes behind its header.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend((0..len).map(|i| (i % 251) as u8));
    frame
}

fn receive(cable: &UnixDatagram) -> Option<Vec<u8>> {
    let mut frame = vec![0; 100_000];
    cable.recv(&mut frame).ok().map(|len| frame[..len].to_vec())
}

#[test]
fn frames_go_out_whole_whatever_their_pieces() {
    let (mut driver, cable) = cable();
    let sent = frame(300);
    driver.put(BUFFERS, &sent);
    let head = driver.post(TX, &[out(BUFFERS, 5), out(BUFFERS + 5, 107), out(BUFFERS + 112, 200)]);
    driver.notify(TX);
    assert_eq!(receive(&cable), Some(sent));
    assert_eq!(driver.answers(TX), [(head.into(), 0)]);
    assert!(driver.interrupted());
}

#[test]
fn frames_of_no_possible_size_are_dropped() {
    let (mut driver, cable) = cable();
    for len in [0, 1, HEADER as u32, (HEADER + MIN_FRAME - 1) as u32, (HEADER + MAX_FRAME + 1) as u32] {
        driver.post(TX, &[out(BUFFERS, len)]);
        driver.notify(TX);
        assert_eq!((driver.answers(TX).len(), receive(&cable)), (1, None), "{len}");
    }
    // What the driver sends in a buffer for receiving is not read.
    driver.post(TX, &[into(BUFFERS, 100)]);
    driver.notify(TX);
    assert_eq!((driver.answers(TX).len(), receive(&cable)), (1, None));
    assert!(!driver.stopped());
}

#[test]
fn frames_come_in_as_soon_as_there_is_room() {
    let (mut driver, cable) = cable();
    let (first, second) = (frame(60), frame(1000));
    cable.send(&first).unwrap();
    cable.send(&second).unwrap();
    driver.turn();
    assert_eq!(driver.answers(RX), []);
    driver.post(RX, &[into(BUFFERS, 1536)]);
    driver.notify(RX);
    assert_eq!(driver.answers(RX), [(0, first.len() as u32)]);
    assert!(driver.interrupted());
    let received = driver.get(BUFFERS, first.len());
    assert_eq!(received[HEADER..], first[HEADER..]);
    assert_eq!(received[NUM_BUFFERS..HEADER], [1, 0]);
    driver.post(RX, &[into(BUFFERS, 1536)]);
    driver.notify(RX);
    assert_eq!(driver.answers(RX), [(1, second.len() as u32)]);
    assert_eq!(driver.get(BUFFERS + HEADER as u64, 1000), second[HEADER..]);
}

#[test]
fn a_large_frame_is_spread_over_buffers_and_seen_at_once() {
    let (mut driver, cable) = cable();
    let sent = frame(4000);
    cable.send(&sent).unwrap();
    let address = |i: u64| BUFFERS + i * 0x1000;
    for i in 0..2 {
        driver.post(RX, &[into(address(i), 1000), into(address(i) + 1000, 536)]);
        driver.notify(RX);
        assert_eq!(driver.answers(RX), [], "{i}: too little room so far");
    }
    driver.post(RX, &[into(address(2), 1536)]);
    driver.notify(RX);
    assert_eq!(driver.answers(RX), [(0, 1536), (2, 1536), (4, 4012 - 2 * 1536)]);
    assert!(driver.interrupted());
    let mut received = driver.get(address(0), 1536);
    received.extend(driver.get(address(1), 1536));
    received.extend(driver.get(address(2), 4012 - 2 * 1536));
    assert_eq!(received[NUM_BUFFERS..HEADER], [3, 0]);
    assert_eq!(received[HEADER..], sent[HEADER..]);
}

#[test]
fn many_large_frames_wrap_around_the_ring() {
    let (mut driver, cable) = cable();
    for round in 0..200u32 {
        let sent = frame(2500 + round as usize);
        for i in 0..2 {
            driver.post(RX, &[into(BUFFERS + i * 0x1000, 1536)]);
        }
        cable.send(&sent).unwrap();
        driver.notify(RX);
        let answers = driver.answers(RX);
        assert_eq!(answers.iter().map(|(_, len)| *len as usize).sum::<usize>(), sent.len(), "{round}");
        assert_eq!(driver.get(BUFFERS + 0x1000, sent.len() - 1536), sent[1536..], "{round}");
    }
}

#[test]
fn without_merging_a_frame_that_is_too_large_is_lost_alone() {
    let (mut driver, cable) = cable();
    driver.bring_up(BASIC);
    driver.post(RX, &[into(BUFFERS, 100)]);
    driver.post(RX, &[into(BUFFERS, 1536)]);
    cable.send(&frame(500)).unwrap();
    cable.send(&frame(60)).unwrap();
    driver.notify(RX);
    assert_eq!(driver.answers(RX), [(0, 0), (1, 72)]);
    assert!(!driver.stopped());
}

#[test]
fn a_flood_is_served_in_rounds() {
    let (mut driver, cable) = cable();
    for i in 0..200 {
        driver.post(TX, &[out(BUFFERS, 60 + i)]);
    }
    let mut lens = Vec::new();
    // The socket's queue is shorter than the ring; a TAP drops likewise.
    driver.notify(TX);
    while let Some(frame) = receive(&cable) {
        lens.push(frame.len());
    }
    assert_eq!(driver.answers(TX).len(), 200);
    assert!(lens.is_sorted() && !lens.is_empty());
}

#[test]
fn receive_buffers_without_any_room_stop_the_device() {
    let (mut driver, cable) = cable();
    for _ in 0..256 {
        driver.post(RX, &[out(BUFFERS, 64)]);
    }
    cable.send(&frame(60)).unwrap();
    driver.notify(RX);
    assert!(driver.stopped() && driver.answers(RX).is_empty());
    driver.bring_up(u64::MAX);
    driver.post(RX, &[into(BUFFERS, 1536)]);
    cable.send(&frame(60)).unwrap();
    driver.notify(RX);
    assert_eq!(driver.answers(RX), [(0, 72)]);
}

#[test]
fn the_guest_reads_address_and_mtu() {
    let (mut driver, _cable) = cable();
    assert_eq!([driver.read(0x100), driver.read(0x104)], [0x0201_0006, 0x0000_0403]);
    assert_eq!(driver.read(0x108), 1400 << 16);
    let offered = driver.offered();
    assert_ne!(offered & 1 << VIRTIO_NET_F_MAC, 0);
    let (_, theirs) = UnixDatagram::pair().unwrap();
    let tap = Tap::from_file(File::from(OwnedFd::from(theirs)));
    let plain = Net::on(tap, NetState { mac: None, mtu: None, ..state() }, Default::default());
    assert_eq!(plain.features() & (1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MTU), 0);
}

#[test]
fn a_limited_guest_receives_and_sends_no_faster() {
    let bucket = TokenBucket { size: 1, refill_time: 200, one_time_burst: None };
    let one_by_one = RateLimiter { bandwidth: None, ops: Some(bucket) };
    let (mut driver, cable) = limited_cable([0, 1].map(|_| Limiter::new(Some(&one_by_one))));
    let begun = std::time::Instant::now();
    for number in 0..3 {
        cable.send(&frame(60 + number)).unwrap();
        driver.post(RX, &[into(BUFFERS + 4096 * number as u64, 2048)]);
        driver.put(BUFFERS + 0x8000, &frame(60));
        driver.post(TX, &[out(BUFFERS + 0x8000, 72)]);
    }
    driver.notify(RX);
    driver.notify(TX);
    assert_eq!((driver.answered(RX), driver.answered(TX)), (1, 1));
    let limit = std::time::Duration::from_secs(20);
    driver.turn_for(limit, |driver| (driver.answered(RX), driver.answered(TX)) == (3, 3));
    assert!(begun.elapsed() >= std::time::Duration::from_millis(400), "{:?}", begun.elapsed());
    let last = driver.get(BUFFERS + 2 * 4096, HEADER + 62);
    assert_eq!(last[HEADER..], frame(62)[HEADER..], "the last one, whole and in its place");
    assert_eq!((0..3).map(|_| receive(&cable)).collect::<Vec<_>>(), vec![Some(frame(60)); 3]);
}

#[test]
fn addresses_are_read_strictly() {
    assert_eq!("06:00:aC:fe:00:15".parse::<Mac>().map(|mac| mac.0), Ok([6, 0, 0xac, 0xfe, 0, 0x15]));
    for text in [
        "",
        "06:00:ac:fe:00",
        "06:00:ac:fe:00:15:16",
        "06:00:ac:fe:00:1",
        "06-00-ac-fe-00-15",
        "+6:00:ac:fe:00:15",
    ] {
        assert!(text.parse::<Mac>().is_err(), "{text}");
    }
}

#[test]
fn interfaces_that_cannot_be_had_are_named() {
    let interface = |change: fn(&mut NetworkInterface)| {
        let mut interface = NetworkInterface {
            iface_id: "eth0".into(),
            host_dev_name: "wrenn-none".into(),
            ..NetworkInterface::default()
        };
        change(&mut interface);
        interface
    };
    for (interface, part) in [
        (interface(|_| {}), "cannot use the TAP device \"wrenn-none\""),
        (interface(|i| i.host_dev_name = "lo".into()), "cannot use the TAP device \"lo\""),
        (interface(|i| i.host_dev_name = "tap%d".into()), "cannot use the TAP device \"tap%d\""),
        (interface(|i| i.host_dev_name = String::new()), "cannot use the TAP device \"\""),
        (interface(|i| i.host_dev_name = "a-name-that-is-too-long".into()), "cannot use the TAP device"),
        (interface(|i| i.guest_mac = Some("x".into())), "six hexadecimal bytes"),
        (interface(|i| i.mtu = Some(67)), "MTU of 67"),
    ] {
        let error = Net::open(&interface).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("interface \"eth0\"") && error.contains(part), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_driver_breaks_the_interface(chaos in chaos(), len in 0usize..3000) {
        let (mut driver, cable) = cable();
        for _ in 0..3 {
            cable.send(&frame(len)).unwrap();
        }
        driver.suffer(&chaos, 2);
        while receive(&cable).is_some() {}
        driver.put(BUFFERS, &frame(60));
        driver.post(TX, &[out(BUFFERS, 72)]);
        driver.notify(TX);
        prop_assert_eq!(receive(&cable), Some(frame(60)));
    }
}

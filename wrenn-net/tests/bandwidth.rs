//! A bound on a slot's bandwidth, with packets of a guest.

mod common;
#[path = "common/net.rs"]
mod net;

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use common::guest::Guest;
use common::{on_scratch_host, run, within_path};
use net::{open, removed, spec};
use wrenn_net::{Bandwidth, NetError};

const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// How many datagrams have arrived up to the one that says it is the last.
fn arrivals(socket: &UdpSocket) -> usize {
    let mut count = 0;
    loop {
        let mut buffer = [0; 2000];
        let (length, _) = socket.recv_from(&mut buffer).unwrap();
        if &buffer[..length] == b"the last" {
            return count;
        }
        count += 1;
    }
}

#[test]
fn what_is_beyond_the_bound_is_dropped() {
    on_scratch_host(|host| {
        let internet = host.internet(&[FAR]);
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let slot = net.slot(spec(1), &mut undo).unwrap();
        let mut guest = Guest::attach(slot.netns());
        let far = internet.socket(FAR, 7000);
        let to = SocketAddrV4::new(FAR, 7000);
        let text = "x".repeat(1400);

        slot.set_bandwidth(Some(Bandwidth::new(Bandwidth::LEAST).unwrap())).unwrap();
        let start = std::time::Instant::now();
        for _ in 0..80 {
            guest.send_udp(to, &text);
        }
        let seconds = start.elapsed().as_secs_f64();
        slot.set_bandwidth(None).unwrap();
        guest.send_udp(to, "the last");
        let count = arrivals(&far);
        let most = (Bandwidth::LEAST as f64 * (1.0 + seconds) / 1428.0) as usize + 1;
        assert!((40..=most).contains(&count), "{count} came in {seconds} s, of at most {most}");

        // Without the bound they all come.
        for _ in 0..80 {
            guest.send_udp(to, &text);
        }
        guest.send_udp(to, "the last");
        assert_eq!(arrivals(&far), 80);
        drop(guest);
        removed(undo);
        let error = slot.set_bandwidth(None).unwrap_err();
        assert!(matches!(error, NetError::SlotGone { index: 1 }), "{error}");
        removed(host_undo);
    });
}

#[test]
fn both_ways_are_bounded() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let slot = net.slot(spec(1), &mut undo).unwrap();
        let rules =
            || within_path(slot.netns(), || run("nft", &["list", "chain", "inet", "wrenn", "bandwidth"]));
        let none = rules();
        slot.set_bandwidth(Some(Bandwidth::new(1 << 20).unwrap())).unwrap();
        slot.set_bandwidth(Some(Bandwidth::new(2 << 20).unwrap())).unwrap();
        for link in ["tap0", "uplink"] {
            let rule = format!("iifname \"{link}\" limit rate over 2 mbytes/second");
            assert!(rules().contains(&rule), "{}", rules());
        }
        assert!(!rules().contains("1 mbytes"), "{}", rules());
        slot.set_bandwidth(None).unwrap();
        assert_eq!(rules(), none);
        removed(undo);
        removed(host_undo);
    });
}

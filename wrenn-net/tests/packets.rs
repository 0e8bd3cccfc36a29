//! Real packets from a guest: what gets through, and what does not. Every "does not" is followed by its opposite:
//! the rule is taken away and the same packet arrives, so that the silence before was the rule's doing.

mod common;
#[path = "common/net.rs"]
mod net;

use std::net::{Ipv4Addr, SocketAddrV4};

use common::guest::{GUEST, Guest};
use common::{Host, WAN, is_silent, listen, on_scratch_host, run, within_path};
use net::{removed, spec};
use wrenn_base::UndoList;
use wrenn_net::{HostNet, HostNetSpec, Slot};

const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// A host with a guest, ready to send.
struct Bed<'a> {
    host: &'a Host,
    net: HostNet,
    slot: Slot,
    guest: Guest,
    host_undo: UndoList,
    undo: UndoList,
}

impl<'a> Bed<'a> {
    fn new(host: &'a Host, dns: Option<Ipv4Addr>) -> Self {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let mut config = HostNetSpec::new(host.id.clone(), host.netns_dir());
        config.dns.extend(dns);
        let net = HostNet::open(config, &mut host_undo).unwrap();
        let slot = net.slot(spec(1), &mut undo).unwrap();
        let guest = Guest::attach(slot.netns());
        Self { host, net, slot, guest, host_undo, undo }
    }

    /// Takes the rules of one of the host's chains away.
    fn without(&self, chain: &str) {
        run("nft", &["flush", "chain", "inet", &format!("wrenn_{}", self.host.id), chain]);
    }

    fn remove(self) {
        drop(self.guest);
        removed(self.undo);
        removed(self.host_undo);
    }
}

fn to(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

#[test]
fn a_guest_reaches_the_internet_under_the_hosts_address() {
    on_scratch_host(|host| {
        let internet = host.internet(&[FAR]);
        let mut bed = Bed::new(host, None);
        bed.guest.ping_gateway();

        let far = internet.socket(FAR, 7000);
        bed.guest.send_udp(to(FAR, 7000), "question");
        let mut buffer = [0; 100];
        let (length, from) = far.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"question");
        assert_eq!(from.ip(), WAN, "addresses of the guest or the slot have left the host");
        far.send_to(b"answer", from).unwrap();
        assert_eq!(bed.guest.receive_udp(), (to(FAR, 7000), "answer".to_owned()));
        bed.remove();
    });
}

#[test]
fn private_and_link_local_addresses_are_out_of_reach() {
    const DENIED: [Ipv4Addr; 8] = [
        Ipv4Addr::new(10, 1, 2, 3),
        Ipv4Addr::new(100, 64, 0, 1),
        Ipv4Addr::new(169, 254, 169, 254),
        Ipv4Addr::new(172, 16, 0, 1),
        Ipv4Addr::new(172, 31, 255, 254),
        Ipv4Addr::new(192, 168, 7, 7),
        Ipv4Addr::new(198, 18, 0, 1),
        Ipv4Addr::new(198, 19, 200, 200),
    ];
    on_scratch_host(|host| {
        let internet = host.internet(&[&[FAR][..], &DENIED[..]].concat());
        let mut bed = Bed::new(host, None);
        let denied = DENIED.map(|address| internet.socket(address, 7000));
        let far = internet.socket(FAR, 7000);
        for address in DENIED {
            bed.guest.send_udp(to(address, 7000), "let me in");
        }
        // What was sent before this has been decided on once this has arrived.
        bed.guest.send_udp(to(FAR, 7000), "afterwards");
        far.recv_from(&mut [0; 100]).unwrap();
        for socket in &denied {
            assert!(is_silent(socket), "{socket:?}");
        }
        let counted = run("nft", &["list", "chain", "inet", &format!("wrenn_{}", host.id), "forward"]);
        assert!(counted.contains("counter packets 8 "), "{counted}");

        bed.without("forward");
        for (address, socket) in DENIED.into_iter().zip(&denied) {
            bed.guest.send_udp(to(address, 7000), "and now?");
            socket.recv_from(&mut [0; 100]).unwrap();
        }
        bed.remove();
    });
}

#[test]
fn the_hosts_own_services_are_out_of_reach() {
    on_scratch_host(|host| {
        let internet = host.internet(&[FAR]);
        let mut bed = Bed::new(host, None);
        let far = internet.socket(FAR, 7000);
        let service = listen(Ipv4Addr::UNSPECIFIED, 7000);
        let veth = Ipv4Addr::from_bits(bed.slot.address().to_bits() - 1);
        for address in [WAN, veth] {
            bed.guest.send_udp(to(address, 7000), "let me in");
        }
        bed.guest.send_udp(to(FAR, 7000), "afterwards");
        far.recv_from(&mut [0; 100]).unwrap();
        assert!(is_silent(&service));

        bed.without("input");
        for address in [WAN, veth] {
            bed.guest.send_udp(to(address, 7000), "and now?");
            service.recv_from(&mut [0; 100]).unwrap();
        }
        bed.remove();
    });
}

#[test]
fn a_configured_resolver_is_reached_on_its_port_alone() {
    const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 53);
    on_scratch_host(|host| {
        let internet = host.internet(&[PRIVATE, FAR]);
        let mut bed = Bed::new(host, Some(PRIVATE));
        assert_eq!(bed.slot.guest().dns.last(), Some(&PRIVATE));
        let (resolver, other) = (internet.socket(PRIVATE, 53), internet.socket(PRIVATE, 54));
        bed.guest.send_udp(to(PRIVATE, 54), "let me in");
        bed.guest.send_udp(to(PRIVATE, 53), "a name");
        let (_, from) = resolver.recv_from(&mut [0; 100]).unwrap();
        assert!(is_silent(&other));
        resolver.send_to(b"an address", from).unwrap();
        assert_eq!(bed.guest.receive_udp().1, "an address");
        bed.remove();
    });
}

#[test]
fn a_resolver_on_the_host_itself_is_reached_when_named() {
    on_scratch_host(|host| {
        let _internet = host.internet(&[]);
        let mut bed = Bed::new(host, Some(WAN));
        let (resolver, other) = (listen(WAN, 53), listen(WAN, 54));
        bed.guest.send_udp(to(WAN, 54), "let me in");
        bed.guest.send_udp(to(WAN, 53), "a name");
        let (_, from) = resolver.recv_from(&mut [0; 100]).unwrap();
        assert!(is_silent(&other));
        resolver.send_to(b"an address", from).unwrap();
        assert_eq!(bed.guest.receive_udp().1, "an address");
        bed.remove();
    });
}

#[test]
fn other_slots_are_out_of_reach() {
    on_scratch_host(|host| {
        let internet = host.internet(&[FAR]);
        let mut bed = Bed::new(host, None);
        let mut undo = host.undo();
        let other = bed.net.slot(spec(2), &mut undo).unwrap();
        let far = internet.socket(FAR, 7000);
        let service = within_path(other.netns(), || {
            // Its own rules would refuse the packet as well; what the host's do shows without them.
            run("nft", &["delete", "table", "inet", "wrenn"]);
            listen(other.address(), 7000)
        });
        bed.guest.send_udp(to(other.address(), 7000), "let me in");
        bed.guest.send_udp(to(FAR, 7000), "afterwards");
        far.recv_from(&mut [0; 100]).unwrap();
        assert!(is_silent(&service));

        bed.without("forward");
        bed.guest.send_udp(to(other.address(), 7000), "and now?");
        service.recv_from(&mut [0; 100]).unwrap();
        removed(undo);
        bed.remove();
    });
}

#[test]
fn nobody_reaches_a_slot_unasked() {
    on_scratch_host(|host| {
        let internet = host.internet(&[FAR]);
        let bed = Bed::new(host, None);
        let outsider = internet.socket(FAR, 7000);
        let slot = bed.slot.address();
        common::within(&internet.namespace, || {
            run("ip", &["route", "add", &format!("{slot}/32"), "via", &WAN.to_string()]);
        });
        let service = within_path(bed.slot.netns(), || {
            run("nft", &["delete", "table", "inet", "wrenn"]);
            listen(slot, 7000)
        });
        outsider.send_to(b"let me in", (slot, 7000)).unwrap();
        // The host answers this one itself, after it has dealt with the first.
        let knock = listen(WAN, 7001);
        outsider.send_to(b"afterwards", (WAN, 7001)).unwrap();
        knock.recv_from(&mut [0; 100]).unwrap();
        assert!(is_silent(&service));

        bed.without("forward");
        outsider.send_to(b"and now?", (slot, 7000)).unwrap();
        service.recv_from(&mut [0; 100]).unwrap();
        bed.remove();
    });
}

#[test]
fn forged_sources_go_nowhere() {
    on_scratch_host(|host| {
        let internet = host.internet(&[FAR]);
        let mut bed = Bed::new(host, None);
        let far = internet.socket(FAR, 7000);
        let forged = Ipv4Addr::new(169, 254, 0, 21 ^ 0x10);
        bed.guest.send_udp_as(forged, to(FAR, 7000), "forged");
        bed.guest.send_udp_as(GUEST, to(FAR, 7000), "honest");
        let mut buffer = [0; 100];
        let (length, _) = far.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"honest");

        // A process in the namespace could send as another slot; the host sees through that one.
        let sender = within_path(bed.slot.netns(), || {
            run("nft", &["delete", "table", "inet", "wrenn"]);
            run("ip", &["address", "add", "198.19.0.99/32", "dev", "lo"]);
            listen(Ipv4Addr::new(198, 19, 0, 99), 7000)
        });
        sender.send_to(b"forged", (FAR, 7000)).unwrap();
        let honest = within_path(bed.slot.netns(), || listen(bed.slot.address(), 7000));
        honest.send_to(b"honest", (FAR, 7000)).unwrap();
        let (length, _) = far.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"honest");

        bed.without("from_slot");
        sender.send_to(b"forged", (FAR, 7000)).unwrap();
        let (length, _) = far.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"forged");
        bed.remove();
    });
}

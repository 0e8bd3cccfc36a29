//! Egress policies and real packets: what each lets through and what not, and what a change does to connections.

mod common;
#[path = "common/net.rs"]
mod net;
#[path = "common/world.rs"]
mod world;

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{PATIENCE, WAN, is_silent, listen, on_scratch_host, run, within, within_path};
use net::{removed, spec};
use world::{MARK, RESOLVER, World, carries, is_cut, nothing, sender};
use wrenn_net::{AllowRule, Cidr, EgressPolicy, Protocol};

const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 1);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

fn block(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn everywhere() -> AllowRule {
    AllowRule::to(block("0.0.0.0/0"))
}

#[test]
fn a_rule_opens_its_block_and_no_more() {
    on_scratch_host(|host| {
        let policy = EgressPolicy::internet().allow(AllowRule::to(block("10.20.0.0/24"))).unwrap();
        let world = World::new(host, &[FAR, PRIVATE, NEIGHBOUR, METADATA], &policy);
        assert!(world.udp(FAR, 7000) && world.tcp(FAR, 7000), "the internet");
        assert!(world.udp(PRIVATE, 7000) && world.tcp(PRIVATE, 7000), "what was allowed");
        assert!(!world.udp(NEIGHBOUR, 7000) && world.no_tcp(NEIGHBOUR, 7000), "what was not");
        assert!(!world.udp(METADATA, 80) && world.no_tcp(METADATA, 80), "metadata");

        // Only what was not allowed is counted as refused.
        let counted = run("nft", &["list", "chain", "inet", &world.table(), "forward"]);
        assert!(!counted.contains("counter packets 0 "), "{counted}");
        world.remove();
    });
}

#[test]
fn deny_all_leaves_what_is_allowed() {
    on_scratch_host(|host| {
        let policy = nothing().allow(AllowRule::to(FAR.into())).unwrap();
        let elsewhere = Ipv4Addr::new(198, 51, 100, 8);
        let world = World::new(host, &[FAR, elsewhere, PRIVATE], &policy);
        assert!(world.udp(FAR, 7000) && world.tcp(FAR, 7000));
        assert!(!world.udp(elsewhere, 7000) && world.no_tcp(elsewhere, 7000));
        assert!(!world.udp(PRIVATE, 7000));
        world.slot.set_egress(&nothing()).unwrap();
        assert!(!world.udp(FAR, 7000) && world.no_tcp(FAR, 7000));
        world.slot.set_egress(&EgressPolicy::default()).unwrap();
        assert!(world.udp(elsewhere, 7000) && world.tcp(FAR, 7000));
        assert!(!world.udp(PRIVATE, 7000));
        world.remove();
    });
}

#[test]
fn the_metadata_address_opens_only_when_named() {
    on_scratch_host(|host| {
        let world = World::new(host, &[METADATA], &EgressPolicy::internet());
        assert!(world.no_tcp(METADATA, 80));
        let rule = AllowRule::to(METADATA.into()).protocol(Protocol::Tcp).ports(80..=80);
        world.slot.set_egress(&EgressPolicy::internet().allow(rule).unwrap()).unwrap();
        assert!(world.tcp(METADATA, 80));
        assert!(world.no_tcp(METADATA, 81) && !world.udp(METADATA, 80));
        world.remove();
    });
}

#[test]
fn protocols_and_ports_are_kept_apart() {
    on_scratch_host(|host| {
        let to = || AllowRule::to(block("10.20.0.0/24"));
        let policy = nothing()
            .allow(to().protocol(Protocol::Tcp).ports(80..=90))
            .and_then(|policy| policy.allow(to().protocol(Protocol::Udp).ports(53..=53)))
            .and_then(|policy| policy.allow(AllowRule::to(NEIGHBOUR.into()).ports(1000..=1001)))
            .and_then(|policy| policy.allow(AllowRule::to(FAR.into()).protocol(Protocol::Udp)))
            .unwrap();
        let world = World::new(host, &[FAR, PRIVATE, NEIGHBOUR], &policy);
        for (to, port, tcp, udp) in [
            (PRIVATE, 79, false, false),
            (PRIVATE, 80, true, false),
            (PRIVATE, 90, true, false),
            (PRIVATE, 91, false, false),
            (PRIVATE, 53, false, true),
            (NEIGHBOUR, 999, false, false),
            (NEIGHBOUR, 1000, true, true),
            (NEIGHBOUR, 1001, true, true),
            (NEIGHBOUR, 1002, false, false),
            (FAR, 1, false, true),
            (FAR, 65535, false, true),
        ] {
            assert!(if tcp { world.tcp(to, port) } else { world.no_tcp(to, port) }, "TCP to {to}:{port}");
            assert_eq!(world.udp(to, port), udp, "UDP to {to}:{port}");
        }
        world.remove();
    });
}

#[test]
fn what_is_denied_wins_over_what_is_allowed() {
    on_scratch_host(|host| {
        let policy = EgressPolicy::internet()
            .deny(block("10.20.0.0/24"))
            .and_then(|policy| policy.allow(AllowRule::to(block("10.0.0.0/8"))))
            .and_then(|policy| policy.allow(AllowRule::to(PRIVATE.into()).ports(80..=80)))
            .and_then(|policy| policy.deny(FAR.into()))
            .unwrap();
        let world = World::new(host, &[FAR, PRIVATE, NEIGHBOUR], &policy);
        assert!(world.tcp(NEIGHBOUR, 80) && world.udp(NEIGHBOUR, 80));
        assert!(world.no_tcp(PRIVATE, 80) && !world.udp(PRIVATE, 80));
        assert!(world.no_tcp(FAR, 80) && !world.udp(FAR, 80), "a denied part of the internet");
        world.remove();
    });
}

#[test]
fn names_are_asked_for_unless_nothing_is_allowed() {
    on_scratch_host(|host| {
        let denied = EgressPolicy::internet().deny(block("10.0.0.0/8")).unwrap();
        let world = World::new(host, &[], &denied);
        assert!(world.udp(RESOLVER, 53) && world.tcp(RESOLVER, 53), "in a denied block");
        assert!(!world.udp(RESOLVER, 54) && world.no_tcp(RESOLVER, 54), "another port");
        world.slot.set_egress(&nothing()).unwrap();
        assert!(!world.udp(RESOLVER, 53) && world.no_tcp(RESOLVER, 53), "nothing allowed");
        world.slot.set_egress(&nothing().dns(true)).unwrap();
        assert!(world.udp(RESOLVER, 53) && world.tcp(RESOLVER, 53), "names allowed");
        world.slot.set_egress(&EgressPolicy::internet().dns(false)).unwrap();
        assert!(!world.udp(RESOLVER, 53), "no names, but the internet");
        world.remove();
    });
}

#[test]
fn no_rule_opens_the_host_or_another_slot() {
    on_scratch_host(|host| {
        let pool = AllowRule::to(block("198.19.0.0/16"));
        let policy = EgressPolicy::internet().allow(everywhere()).unwrap().allow(pool).unwrap();
        let world = World::new(host, &[PRIVATE], &policy);
        let mut undo = host.undo();
        let other = world.net.slot_with_egress(spec(2), &policy, &mut undo).unwrap();
        let theirs = within_path(other.netns(), || {
            // Its own rules would refuse the packet as well; what the host's do shows without them.
            run("nft", &["delete", "table", "inet", "wrenn"]);
            listen(other.address(), 7000)
        });
        let service = listen(Ipv4Addr::UNSPECIFIED, 7000);
        let veth = Ipv4Addr::from_bits(world.slot.address().to_bits() - 1);
        let targets = [other.address(), WAN, veth];
        let attempt = || {
            for to in targets {
                world.inside(|| sender().send_to(b"let me in", (to, 7000)).unwrap());
            }
        };
        assert!(world.udp(PRIVATE, 7000), "the rule is in force");
        attempt();
        world.settle();
        assert!(is_silent(&theirs) && is_silent(&service));

        world.without("forward");
        world.without("input");
        attempt();
        theirs.recv_from(&mut [0; 100]).unwrap();
        for _ in &targets[1..] {
            service.recv_from(&mut [0; 100]).unwrap();
        }
        removed(undo);
        world.remove();
    });
}

#[test]
fn a_change_cuts_connections_there_are() {
    on_scratch_host(|host| {
        let open = EgressPolicy::internet().allow(AllowRule::to(block("10.0.0.0/8"))).unwrap();
        let world = World::new(host, &[FAR, PRIVATE], &open);
        let (ours, theirs) = world.connection(PRIVATE, 7000);
        let (kept, kept_end) = world.connection(FAR, 7000);
        let between = || carries(&ours, &theirs, PATIENCE) && carries(&theirs, &ours, PATIENCE);
        assert!(between() && carries(&kept, &kept_end, PATIENCE));

        for closed in
            [EgressPolicy::internet(), EgressPolicy::internet().deny(FAR.into()).unwrap(), nothing()]
        {
            world.slot.set_egress(&closed).unwrap();
            assert!(is_cut(&ours, &theirs), "out of the slot, under {closed:?}");
            assert!(is_cut(&theirs, &ours), "into the slot, under {closed:?}");
            // What was lost is sent again, as ever with TCP; one byte each way is what was cut.
            world.slot.set_egress(&open).unwrap();
            assert!(between(), "open again");
            let mut rest = [0];
            for end in [&theirs, &ours] {
                end.set_read_timeout(Some(PATIENCE)).unwrap();
                std::io::Read::read_exact(&mut &*end, &mut rest).unwrap();
            }
        }
        assert!(carries(&kept, &kept_end, PATIENCE) && carries(&kept_end, &kept, PATIENCE));
        world.remove();
    });
}

#[test]
fn datagrams_come_in_no_longer_than_they_may_go_out() {
    on_scratch_host(|host| {
        let world = World::new(host, &[FAR], &EgressPolicy::internet());
        let far = world.internet.socket(FAR, 7000);
        let ours = world.inside(sender);
        ours.send_to(b"question", (FAR, 7000)).unwrap();
        let (_, from) = far.recv_from(&mut [0; 100]).unwrap();
        far.send_to(b"answer", from).unwrap();
        ours.recv_from(&mut [0; 100]).unwrap();

        world.slot.set_egress(&nothing()).unwrap();
        far.send_to(b"news", from).unwrap();
        // The same way through the host, for a connection that is allowed.
        let mark = world.internet.socket(MARK, 10);
        let knock = world.inside(sender);
        knock.send_to(b"question", (MARK, 10)).unwrap();
        let (_, from_knock) = mark.recv_from(&mut [0; 100]).unwrap();
        mark.send_to(b"answer", from_knock).unwrap();
        knock.recv_from(&mut [0; 100]).unwrap();
        assert!(is_silent(&ours));

        world.without("to_slot");
        far.send_to(b"news", from).unwrap();
        ours.recv_from(&mut [0; 100]).unwrap();
        world.remove();
    });
}

#[test]
fn no_change_lets_through_what_neither_policy_allows() {
    on_scratch_host(|host| {
        // What the one closes by a rule the other closes by having no rule for it.
        let wide = EgressPolicy::internet()
            .allow(AllowRule::to(block("10.0.0.0/8")).ports(1..=9000))
            .and_then(|policy| policy.deny(PRIVATE.into()))
            .and_then(|policy| policy.deny(FAR.into()))
            .unwrap();
        let narrow = nothing().allow(AllowRule::to(NEIGHBOUR.into())).unwrap();
        let world = World::new(host, &[FAR, PRIVATE, NEIGHBOUR], &wide);
        let closed = [world.internet.socket(FAR, 7000), world.internet.socket(PRIVATE, 7000)];
        let open = world.internet.socket(NEIGHBOUR, 7000);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let sender = world.inside(sender);
                while !done.load(Ordering::Relaxed) {
                    for to in [FAR, PRIVATE, NEIGHBOUR] {
                        sender.send_to(b"let me in", (to, 7000)).unwrap();
                    }
                }
            });
            for _ in 0..100 {
                world.slot.set_egress(&narrow).unwrap();
                world.slot.set_egress(&wide).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        world.settle();
        assert!(closed.iter().all(is_silent));
        assert!(!is_silent(&open), "nothing was sent");
        world.slot.set_egress(&EgressPolicy::internet()).unwrap();
        assert!(world.udp(FAR, 7001), "it is the policies that kept it out");
        world.remove();
    });
}

#[test]
fn ipv6_is_dropped_under_every_policy() {
    on_scratch_host(|host| {
        let policy = EgressPolicy::internet().allow(everywhere()).unwrap();
        let world = World::new(host, &[], &policy);
        let link = world.slot.link().to_owned();
        let switch =
            |path: &str, value: &str| std::fs::write(format!("/proc/sys/net/ipv6/conf/{path}"), value);
        // A slot that somebody inside has given IPv6, on a host that routes it.
        let address = |it: &str, dev: &str| run("ip", &["-6", "address", "add", it, "dev", dev, "nodad"]);
        switch("all/forwarding", "1").unwrap();
        switch(&format!("{link}/disable_ipv6"), "0").unwrap();
        address("fd00:1::1/64", &link);
        address("fd00:2::2/64", "wan");
        let shown = run("ip", &["-br", "link", "show", "dev", &link]);
        let mac = shown.split_whitespace().find(|word| word.matches(':').count() == 5).unwrap().to_owned();
        world.inside(|| {
            for of in ["all", "default", "uplink"] {
                switch(&format!("{of}/disable_ipv6"), "0").unwrap();
            }
            address("fd00:1::2/64", "uplink");
            run("ip", &["-6", "neighbour", "replace", "fd00:1::1", "lladdr", &mac, "dev", "uplink"]);
            run("ip", &["-6", "route", "add", "default", "via", "fd00:1::1"]);
        });
        let service = within(&world.internet.namespace, || {
            address("fd00:2::1/64", "lan");
            run("ip", &["-6", "route", "add", "fd00:1::/64", "via", "fd00:2::2"]);
            let service = UdpSocket::bind("[fd00:2::1]:7000").unwrap();
            service.set_read_timeout(Some(PATIENCE)).unwrap();
            service
        });
        let ours = world.inside(|| UdpSocket::bind("[fd00:1::2]:0").unwrap());
        ours.send_to(b"let me in", "[fd00:2::1]:7000").unwrap();
        world.settle();
        assert!(is_silent(&service));

        world.without("forward");
        ours.send_to(b"and now?", "[fd00:2::1]:7000").unwrap();
        service.recv_from(&mut [0; 100]).unwrap();
        world.remove();
    });
}

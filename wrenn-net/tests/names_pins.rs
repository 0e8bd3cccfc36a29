//! What names have opened: for how long, for whom, how much at most, and what a change of policy leaves of it.

mod common;
#[path = "common/machine.rs"]
mod machine;
#[path = "common/named.rs"]
mod named;
#[path = "common/nameserver.rs"]
mod nameserver;
#[path = "common/net.rs"]
mod net;
#[path = "common/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use common::{PATIENCE, eventually, on_scratch_host, run, within_path};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use named::{ANY_SERVER, Named, https, to_names};
use nameserver::{Says, a, addresses, exchange, question};
use net::{open, removed, spec};
use world::{RESOLVER, carries, is_cut, nothing};
use wrenn_net::{AllowRule, EgressPolicy, SlotPool};

const WWW: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const API: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);

/// Two names with an address each, as many below *.many.example.com, all for no time at all.
fn zone(name: &str, _: RecordType) -> Says {
    let address = match name {
        "www.example.com" => WWW,
        "api.example.com" => API,
        _ => {
            let number =
                name.strip_prefix('n').and_then(|rest| rest.split('.').next()?.parse::<u32>().ok())?;
            Ipv4Addr::from_bits(Ipv4Addr::new(198, 51, 101, 0).to_bits() + number)
        }
    };
    Some((ResponseCode::NoError, vec![a(name, 0, address)]))
}

#[test]
fn what_is_open_closes_in_time_but_for_the_connections_there_are() {
    on_scratch_host(|host| {
        let least = Duration::from_secs(4);
        let it = Named::pinning(host, &[WWW], &to_names(&["www.example.com"]), least, zone);
        assert_eq!(it.addresses("www.example.com"), [WWW]);
        let start = Instant::now();
        let (ours, theirs) = it.world.connection(WWW, 443);
        assert!(start.elapsed() < least, "too slow a machine to tell");

        eventually("its end", || !it.set("pinned_ports").contains("198.51"));
        assert!(start.elapsed() >= least, "too soon: {:?}", start.elapsed());
        assert!(it.world.no_tcp(WWW, 443), "a new connection");
        assert!(carries(&ours, &theirs, PATIENCE) && carries(&theirs, &ours, PATIENCE), "one that there was");
        assert_eq!(it.addresses("www.example.com"), [WWW]);
        assert!(it.world.tcp(WWW, 443), "asked for again");
        it.remove();
    });
}

#[test]
fn asking_again_keeps_it_open() {
    on_scratch_host(|host| {
        let least = Duration::from_secs(2);
        let it = Named::pinning(host, &[WWW], &to_names(&["www.example.com"]), least, zone);
        let start = Instant::now();
        while start.elapsed() < 4 * least {
            assert_eq!(it.addresses("www.example.com"), [WWW]);
            assert!(it.set("pinned_ports").contains("198.51.100.7"));
            std::thread::sleep(least / 8);
        }
        assert!(it.world.tcp(WWW, 443));
        it.remove();
    });
}

#[test]
fn an_answer_opens_for_as_long_as_it_says() {
    on_scratch_host(|host| {
        let says = |name: &str, _: RecordType| {
            let ttl = if name == "www.example.com" { 3600 } else { u32::MAX };
            Some((ResponseCode::NoError, vec![a(name, ttl, if ttl == 3600 { WWW } else { API })]))
        };
        let it = Named::new(host, &[], &to_names(&["www.example.com", "api.example.com"]), says);
        assert_eq!(it.addresses("www.example.com"), [WWW]);
        // And half as long again; the kernel gets what is left of it at its turn.
        let pinned = it.set("pinned_ports");
        assert!(pinned.contains("timeout 1h29m") || pinned.contains("timeout 1h30m"), "{pinned}");
        let day = it.ask("api.example.com", RecordType::A);
        assert_eq!(day.answers[0].ttl, 24 * 60 * 60);
        let pinned = it.set("pinned_ports");
        assert!(pinned.contains("timeout 1d11h59m") || pinned.contains("timeout 1d12h"), "{pinned}");
        it.remove();
    });
}

#[test]
fn a_name_opens_nothing_for_another_slot() {
    on_scratch_host(|host| {
        let policy = to_names(&["www.example.com"]);
        let it = Named::new(host, &[WWW], &policy, zone);
        let mut undo = host.undo();
        let other = it.world.net.slot_with_egress(spec(2), &policy, &mut undo).unwrap();
        assert_eq!(it.addresses("www.example.com"), [WWW]);
        assert!(it.world.tcp(WWW, 443));
        let elsewhere = || {
            let _listener = common::within(&it.world.internet.namespace, || {
                std::net::TcpListener::bind((WWW, 443)).unwrap()
            });
            let time = Duration::from_millis(300);
            within_path(other.netns(), || std::net::TcpStream::connect_timeout(&(WWW, 443).into(), time))
                .is_ok()
        };
        assert!(!elsewhere());
        let machine = machine::Machine::attach(other.netns());
        let asked = question("www.example.com", RecordType::A, None);
        machine.inside(|| exchange(ANY_SERVER, &asked));
        assert!(elsewhere(), "once it has asked itself");
        drop(machine);
        removed(undo);
        it.remove();
    });
}

#[test]
fn a_change_of_policy_closes_what_is_no_longer_allowed_at_once() {
    on_scratch_host(|host| {
        let it = Named::new(host, &[WWW, API], &to_names(&["www.example.com", "api.example.com"]), zone);
        assert_eq!(
            (it.addresses("www.example.com"), it.addresses("api.example.com")),
            (vec![WWW], vec![API])
        );
        let (kept, kept_end) = it.world.connection(API, 443);
        let (lost, lost_end) = it.world.connection(WWW, 443);

        it.world.slot.set_egress(&to_names(&["*.example.com"]).deny(WWW.into()).unwrap()).unwrap();
        assert!(is_cut(&lost, &lost_end) && is_cut(&lost_end, &lost) && it.world.no_tcp(WWW, 443));
        assert!(
            carries(&kept, &kept_end, PATIENCE) && carries(&kept_end, &kept, PATIENCE),
            "what stays allowed"
        );
        assert_eq!(it.addresses("www.example.com"), [] as [Ipv4Addr; 0]);

        let rule = AllowRule::to_name("api.example.com".parse().unwrap());
        it.world.slot.set_egress(&nothing().allow(rule).unwrap()).unwrap();
        assert!(it.world.tcp(API, 80) && it.world.udp(API, 443), "everything of a name asked for before");
        assert!(carries(&kept, &kept_end, PATIENCE));

        it.world.slot.set_egress(&to_names(&["www.example.com"])).unwrap();
        assert!(it.world.no_tcp(API, 443) && is_cut(&kept, &kept_end));
        assert_eq!(it.code("api.example.com"), ResponseCode::Refused);
        for set in ["pinned_hosts", "pinned_ports", "kept_hosts", "kept_ports"] {
            assert!(!it.set(set).contains("198.51.100"), "{}", it.set(set));
        }
        it.remove();
    });
}

#[test]
fn names_come_into_a_policy_and_go_from_it() {
    on_scratch_host(|host| {
        let it = Named::new(host, &[WWW, API], &EgressPolicy::internet(), zone);
        let ask = |name| {
            let answer = it.machine.inside(|| exchange(RESOLVER, &question(name, RecordType::A, None)));
            Message::from_vec(&answer).unwrap()
        };
        let inside = || within_path(it.world.slot.netns(), || run("nft", &["list", "tables"]));
        for _ in 0..2 {
            assert_eq!(addresses(&ask("api.example.com")), [API], "the server itself");
            assert!(!inside().contains("wrenn_names"));
            it.world.slot.set_egress(&to_names(&["www.example.com"])).unwrap();
            assert!(it.world.no_tcp(WWW, 443) && it.world.no_tcp(API, 443));
            assert_eq!(ask("api.example.com").metadata.response_code, ResponseCode::Refused);
            assert_eq!(addresses(&ask("www.example.com")), [WWW]);
            assert!(it.world.tcp(WWW, 443));
            it.world.slot.set_egress(&EgressPolicy::internet()).unwrap();
        }
        it.world.slot.set_egress(&EgressPolicy::deny_all()).unwrap();
        assert!(!it.set("kept_ports").contains("198.51"));
        it.remove();
    });
}

#[test]
fn a_flood_of_names_is_bounded_and_the_newest_are_open() {
    on_scratch_host(|host| {
        let policy = to_names(&["*.many.example.com", "www.example.com"]);
        let last = Ipv4Addr::new(198, 51, 102, 144);
        let it = Named::new(host, &[last, WWW], &policy, zone);
        assert_eq!(it.addresses("www.example.com"), [WWW]);
        let rules = || run("nft", &["--terse", "list", "table", "inet", &it.world.table()]);
        let before = rules();
        it.machine.inside(|| {
            for number in 0..=400 {
                exchange(ANY_SERVER, &question(&format!("n{number}.many.example.com"), RecordType::A, None));
            }
        });
        assert_eq!(rules(), before);
        for set in ["pinned_ports", "kept_ports"] {
            assert_eq!(it.set(set).matches("expires").count(), 256, "{set}");
        }
        assert!(it.world.tcp(last, 443), "the one asked for last");
        assert!(it.world.no_tcp(WWW, 443), "the one asked for first");
        it.remove();
    });
}

#[test]
fn all_goes_with_the_slot_and_the_host() {
    on_scratch_host(|host| {
        // The first one opens what all runtimes of a process share.
        drop(tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
        let before = host.state();
        let mut host_undo = host.undo();
        let net = open(host, &mut host_undo);
        let opened = run("nft", &["list", "ruleset"]);
        let pool = SlotPool::start(&net, 1..=8, 2, &host.reaper).unwrap();
        let mut taken = Vec::new();
        for n in 0..4 {
            let mut undo = host.undo();
            let policy = nothing().allow(https(&format!("n{n}.example.com"))).unwrap();
            let slot = pool.take(&policy, &mut undo).unwrap();
            assert!(
                within_path(slot.netns(), || run("ss", &["-lntu"])).matches("169.254.0.22:53").count() == 2
            );
            taken.push(undo);
        }
        for undo in taken {
            removed(undo);
        }
        assert!(pool.close(net::LIMIT).is_empty());
        assert_eq!(run("nft", &["list", "ruleset"]), opened);
        removed(host_undo);
        drop(net);
        eventually("the ends of the links", || host.state() == before);
    });
}

#[test]
fn what_a_killed_process_had_open_is_closed_by_the_next() {
    on_scratch_host(|host| {
        let Named { world, machine, server } =
            Named::new(host, &[WWW], &to_names(&["www.example.com"]), zone);
        let answer =
            machine.inside(|| exchange(ANY_SERVER, &question("www.example.com", RecordType::A, None)));
        assert_eq!(addresses(&Message::from_vec(&answer).unwrap()), [WWW]);
        assert!(world.tcp(WWW, 443));
        drop((machine, server));
        let (slot, internet) = world.abandon();
        let mut host_undo = host.undo();
        let net = open(host, &mut host_undo);
        let _listener =
            common::within(&internet.namespace, || std::net::TcpListener::bind((WWW, 443)).unwrap());
        let time = Duration::from_millis(300);
        let connect = || std::net::TcpStream::connect_timeout(&(WWW, 443).into(), time);
        assert!(within_path(slot.netns(), connect).is_err());
        net.sweep(&BTreeSet::new()).unwrap();
        removed(host_undo);
    });
}

//! Policies with names and real questions: what a guest is told, and what is open for it from then on.

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

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{PATIENCE, WAN, eventually, is_silent, listen, on_scratch_host, run, within, within_path};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use named::{ANY_SERVER, Named, https, to_names};
use nameserver::{NameServer, Says, a, aaaa, addresses, ask_by_tcp, cname, exchange, question, txt};
use net::{removed, spec};
use world::{RESOLVER, World, nothing, sender};
use wrenn_net::{AllowRule, EgressPolicy};

const WWW: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const API: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// www.example.com and below api.example.com, for a minute; a private address; and no other name.
fn zone(name: &str, kind: RecordType) -> Says {
    let records = match (name, kind) {
        ("www.example.com", RecordType::A) => vec![a(name, 60, WWW)],
        ("www.example.com", RecordType::AAAA) => vec![aaaa(name)],
        ("www.example.com", RecordType::TXT) => vec![txt(name, "hello")],
        ("inside.example.com", RecordType::A) => vec![a(name, 60, PRIVATE)],
        (below, RecordType::A) if below.ends_with(".api.example.com") => vec![a(name, 60, API)],
        ("alias.example.com", _) => {
            // The address comes before the alias, as some servers have it.
            vec![
                a("real.example.net", 60, WWW),
                cname(name, "real.example.net"),
                a("stray.example.net", 60, API),
            ]
        }
        _ => return Some((ResponseCode::NXDomain, Vec::new())),
    };
    Some((ResponseCode::NoError, records))
}

#[test]
fn an_allowed_name_opens_its_address_on_its_ports() {
    on_scratch_host(|host| {
        // With its first runtime a process may get descriptors for signals, which Tokio keeps for good.
        drop(tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
        let before = host.state();
        let it = Named::new(host, &[WWW, API], &to_names(&["www.example.com"]), zone);
        let www = SocketAddr::from((WWW, 443));
        assert!(it.world.no_tcp(WWW, 443), "nobody has asked for it");

        assert_eq!(it.addresses("WWW.example.com"), [WWW]);
        assert!(it.world.tcp(WWW, 443));
        let listener = within(&it.world.internet.namespace, || TcpListener::bind(www).unwrap());
        it.machine.inside(|| TcpStream::connect_timeout(&www, PATIENCE)).expect("from the guest itself");
        drop(listener);
        assert!(it.world.no_tcp(WWW, 80) && !it.world.udp(WWW, 443), "another port, another protocol");
        assert!(it.world.no_tcp(API, 443), "an address that no name stood for");
        it.remove();
        eventually("the other machine's end", || !run("ip", &["link"]).contains("wan"));
        assert_eq!(host.state(), before);
    });
}

#[test]
fn other_names_are_refused_and_passed_on_to_nobody() {
    on_scratch_host(|host| {
        let it = Named::new(host, &[WWW, API], &to_names(&["www.example.com", "*.api.example.com"]), zone);
        for name in ["example.com", "api.example.com", "secret.evil.net", "www.example.com.evil.net", "."] {
            assert_eq!(it.code(name), ResponseCode::Refused, "{name}");
        }
        assert_eq!(it.server.asked(), [""; 0]);
        assert_eq!(it.addresses("a.b.api.example.com"), [API]);
        assert_eq!(it.code("www.example.com"), ResponseCode::NoError);
        assert_eq!(it.server.asked(), ["a.b.api.example.com", "www.example.com"]);
        it.remove();
    });
}

#[test]
fn other_kinds_of_records_pass_but_for_ipv6() {
    on_scratch_host(|host| {
        let it = Named::new(host, &[WWW], &to_names(&["www.example.com", "none.example.com"]), zone);
        let text = it.ask("www.example.com", RecordType::TXT);
        assert!(matches!(&text.answers[..], [record] if matches!(record.data, RData::TXT(_))), "{text:?}");
        let ipv6 = it.ask("www.example.com", RecordType::AAAA);
        assert_eq!((ipv6.metadata.response_code, ipv6.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!(it.code("none.example.com"), ResponseCode::NXDomain);
        assert_eq!(it.ask("www.example.com", RecordType::AXFR).metadata.response_code, ResponseCode::Refused);
        assert!(!it.set("pinned_ports").contains("198.51"), "{}", it.set("pinned_ports"));
        it.remove();
    });
}

#[test]
fn whichever_server_is_asked_by_udp_or_tcp_the_resolver_answers() {
    on_scratch_host(|host| {
        let many = |name: &str, _| {
            let address = |n| a(name, 60, Ipv4Addr::new(198, 51, 100, n));
            let records = (1..=100).map(address).chain([txt(name, &"x".repeat(255)), txt(name, "y")]);
            Some((ResponseCode::NoError, records.collect()))
        };
        let it = Named::new(host, &[WWW], &to_names(&["www.example.com"]), many);
        let asked = || question("www.example.com", RecordType::A, None);
        for server in [RESOLVER, ANY_SERVER, PRIVATE, Ipv4Addr::new(169, 254, 0, 22), WAN] {
            // So many records do not fit into what a client without extensions takes.
            let short = it.machine.inside(|| exchange(server, &asked()));
            let short = Message::from_vec(&short).unwrap();
            assert!(short.metadata.truncation && short.answers.is_empty(), "{server}");
            let whole =
                it.machine.inside(|| ask_by_tcp(server, &[asked(), question("b.c", RecordType::A, None)]));
            assert_eq!(addresses(&whole[0]).len(), 16, "{server}: what is told is what is open");
            assert_eq!(whole[1].metadata.response_code, ResponseCode::Refused);
        }
        let extended =
            it.machine.inside(|| exchange(RESOLVER, &question("www.example.com", RecordType::A, Some(4096))));
        assert!(extended.len() > 512, "{} bytes", extended.len());
        assert_eq!(addresses(&Message::from_vec(&extended).unwrap()).len(), 16);
        assert!(it.world.tcp(WWW, 443));
        it.remove();
    });
}

#[test]
fn what_is_no_question_is_answered_as_such_or_not_at_all() {
    on_scratch_host(|host| {
        let it = Named::new(host, &[WWW], &to_names(&["www.example.com"]), zone);
        let whole = question("www.example.com", RecordType::A, None);
        let code = |packet: &[u8]| {
            let answer = it.machine.inside(|| exchange(ANY_SERVER, packet));
            Message::from_vec(&answer).unwrap().metadata.response_code
        };
        assert_eq!(code(&whole[..20]), ResponseCode::FormErr, "half a question");
        let mut two = whole.clone();
        two[5] = 2;
        two.extend(&whole[12..]);
        assert_eq!(code(&two), ResponseCode::FormErr, "two questions");
        let mut update = whole.clone();
        update[2] = 5 << 3;
        assert_eq!(code(&update), ResponseCode::NotImp, "an update");

        let mut answer = whole.clone();
        answer[2] |= 0x80;
        let socket = it.machine.inside(sender);
        for packet in [&answer[..], &whole[..11], b""] {
            socket.send_to(packet, (ANY_SERVER, 53)).unwrap();
        }
        // One after the other they are read; the others were before it.
        assert_eq!(code(&whole), ResponseCode::NoError);
        assert!(is_silent(&socket));
        assert_eq!(it.server.asked(), ["www.example.com"]);
        it.remove();
    });
}

#[test]
fn an_alias_counts_as_the_name_that_was_asked_for() {
    on_scratch_host(|host| {
        let it = Named::new(host, &[WWW, API], &to_names(&["alias.example.com"]), zone);
        assert_eq!(it.code("real.example.net"), ResponseCode::Refused);
        assert_eq!(it.addresses("alias.example.com"), [WWW], "what it is no alias of is left out");
        assert!(it.world.tcp(WWW, 443));
        assert!(it.world.no_tcp(API, 443));
        it.remove();
    });
}

#[test]
fn no_answer_opens_what_is_closed_or_denied() {
    on_scratch_host(|host| {
        let slot = Ipv4Addr::new(198, 19, 0, 5);
        let hostile =
            [METADATA, PRIVATE, Ipv4Addr::LOCALHOST, slot, Ipv4Addr::new(0, 0, 0, 0), API, WAN, WWW];
        let says = move |name: &str, _| {
            Some((ResponseCode::NoError, hostile.iter().map(|&address| a(name, 60, address)).collect()))
        };
        let policy = to_names(&["www.example.com"]).deny(API.into()).unwrap();
        let it = Named::new(host, &[WWW, API, PRIVATE, METADATA], &policy, says);
        let mut undo = host.undo();
        let other = it.world.net.slot(spec(2), &mut undo).unwrap();
        assert_eq!(other.address(), slot);
        // The host's own address is like any other on the internet; what is sent there never leaves the host.
        assert_eq!(it.addresses("www.example.com"), [WAN, WWW]);
        let service = TcpListener::bind((WAN, 443)).unwrap();
        service.set_nonblocking(true).unwrap();
        let to_host =
            || it.world.inside(|| TcpStream::connect_timeout(&(WAN, 443).into(), Duration::from_millis(300)));
        assert!(to_host().is_err());
        for address in [API, PRIVATE, METADATA] {
            assert!(it.world.no_tcp(address, 443), "{address}");
        }
        assert!(it.world.tcp(WWW, 443));
        let pinned = it.set("pinned_ports");
        assert!(
            !pinned.contains("10.20.0.1") && !pinned.contains("169.254.169") && !pinned.contains("198.19")
        );

        it.world.without("input");
        assert!(to_host().is_ok(), "it is the rules that kept it out");
        removed(undo);
        it.remove();
    });
}

#[test]
fn a_closed_address_is_told_where_a_rule_opens_it() {
    on_scratch_host(|host| {
        let rule = AllowRule::to(PRIVATE.into()).ports(5432..=5432);
        let policy = to_names(&["inside.example.com"]).allow(rule).unwrap();
        let it = Named::new(host, &[PRIVATE], &policy, zone);
        assert_eq!(it.addresses("inside.example.com"), [PRIVATE]);
        assert!(it.world.tcp(PRIVATE, 5432) && it.world.no_tcp(PRIVATE, 443));
        it.remove();
    });
}

#[test]
fn other_names_are_answered_where_the_policy_says_so_and_open_nothing() {
    on_scratch_host(|host| {
        let policy = to_names(&["www.example.com"]).dns(true);
        let it = Named::new(host, &[WWW, API], &policy, zone);
        assert_eq!(it.addresses("x.api.example.com"), [API]);
        assert!(it.world.no_tcp(API, 443));
        let past = || TcpStream::connect_timeout(&(RESOLVER, 53).into(), Duration::from_millis(300));
        assert!(it.world.inside(past).is_err(), "the server itself");
        it.remove();
    });
}

#[test]
fn names_add_nothing_to_the_internet() {
    on_scratch_host(|host| {
        let policy = EgressPolicy::internet().allow(https("inside.example.com")).unwrap();
        let it = Named::new(host, &[WWW, PRIVATE], &policy, zone);
        let ask = |name| it.machine.inside(|| exchange(RESOLVER, &question(name, RecordType::A, None)));
        assert_eq!(
            addresses(&Message::from_vec(&ask("inside.example.com")).unwrap()),
            [PRIVATE],
            "the server itself"
        );
        assert!(it.world.no_tcp(PRIVATE, 443) && it.world.tcp(WWW, 7));
        it.remove();
    });
}

#[test]
fn silent_servers_end_in_a_failure_in_time() {
    on_scratch_host(|host| {
        let it = Named::new(host, &[], &to_names(&["www.example.com"]), |_, _| None);
        let start = Instant::now();
        assert_eq!(it.code("www.example.com"), ResponseCode::ServFail);
        assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
        it.remove();
    });
}

#[test]
fn the_next_server_is_asked_where_one_is_silent_or_fails() {
    on_scratch_host(|host| {
        let second = Ipv4Addr::new(9, 9, 9, 9);
        let policy = to_names(&["www.example.com", "*.api.example.com"]);
        let world = World::of(host, &[WWW, API, second], &policy, |spec| spec.dns.push(second));
        let first = NameServer::start(&world.internet, RESOLVER, |name, _| match name {
            "www.example.com" => None,
            _ => Some((ResponseCode::ServFail, Vec::new())),
        });
        let server = NameServer::start(&world.internet, second, zone);
        let it = Named { machine: machine::Machine::attach(world.slot.netns()), world, server };
        assert_eq!(it.addresses("www.example.com"), [WWW]);
        assert_eq!(it.addresses("x.api.example.com"), [API]);
        assert!(first.asked().contains(&"www.example.com".into()), "{:?}", first.asked());
        drop(first);
        it.remove();
    });
}

#[test]
fn the_resolver_is_reached_by_its_slot_alone() {
    on_scratch_host(|host| {
        let it = Named::new(host, &[WWW], &to_names(&["www.example.com"]), zone);
        assert_eq!(it.addresses("www.example.com"), [WWW], "it listens");
        let mut undo = host.undo();
        let other = it.world.net.slot_with_egress(spec(2), &nothing(), &mut undo).unwrap();
        let asked = question("www.example.com", RecordType::A, None);
        let socket = within_path(other.netns(), sender);
        let outside = listen(Ipv4Addr::UNSPECIFIED, 0);
        for to in [it.world.slot.address(), Ipv4Addr::new(169, 254, 0, 22), WAN] {
            socket.send_to(&asked, (to, 53)).unwrap();
        }
        outside.send_to(&asked, (it.world.slot.address(), 53)).unwrap();
        it.world.settle();
        assert!(is_silent(&socket) && is_silent(&outside));
        assert_eq!(it.server.asked(), ["www.example.com"]);
        removed(undo);
        it.remove();
    });
}

#[test]
fn a_namespace_taken_over_gets_no_further_than_its_guest() {
    on_scratch_host(|host| {
        let it = Named::new(host, &[WWW, API], &to_names(&["www.example.com"]), zone);
        assert_eq!(it.addresses("www.example.com"), [WWW]);
        // All that the namespace has to say is gone: no redirection, no translation, no filter.
        it.world.inside(|| run("nft", &["flush", "ruleset"]));
        let other = question("x.api.example.com", RecordType::A, None);
        let past = || TcpStream::connect_timeout(&(RESOLVER, 53).into(), Duration::from_millis(300));
        it.world.inside(|| {
            sender().send_to(&other, (RESOLVER, 53)).unwrap();
            assert!(past().is_err());
        });
        it.world.settle();
        assert_eq!(it.server.asked(), ["www.example.com"]);
        let told = it.world.inside(|| exchange(Ipv4Addr::new(169, 254, 0, 22), &other));
        assert_eq!(Message::from_vec(&told).unwrap().metadata.response_code, ResponseCode::Refused);
        assert!(it.world.tcp(WWW, 443) && it.world.no_tcp(API, 443));

        // Nor does it keep the host from changing the policy.
        it.world.slot.set_egress(&nothing()).unwrap();
        assert!(it.world.no_tcp(WWW, 443));
        it.world.slot.set_egress(&to_names(&["*.api.example.com"])).unwrap();
        it.world.inside(|| exchange(Ipv4Addr::new(169, 254, 0, 22), &other));
        assert!(it.world.tcp(API, 443));
        it.remove();
    });
}

#[test]
fn an_address_that_cannot_be_opened_is_not_told() {
    on_scratch_host(|host| {
        let it = Named::new(host, &[WWW], &to_names(&["www.example.com"]), zone);
        run("nft", &["delete", "table", "inet", &it.world.table()]);
        assert_eq!(it.code("www.example.com"), ResponseCode::ServFail);
        assert_eq!(it.server.asked(), ["www.example.com"]);
        it.remove();
    });
}

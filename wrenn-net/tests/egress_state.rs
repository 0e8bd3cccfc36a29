//! What egress policies leave in the host's table, and when it goes.

mod common;
#[path = "common/net.rs"]
mod net;
#[path = "common/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use common::{eventually, on_scratch_host, run, within_path};
use net::{LIMIT, open, removed, spec};
use world::{World, nothing};
use wrenn_net::{AllowRule, Cidr, EgressPolicy, NetError};

const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// A policy unlike those of other `n`.
fn policy(n: u8) -> EgressPolicy {
    EgressPolicy::internet()
        .allow(AllowRule::to(Ipv4Addr::new(10, n, 0, 1).into()).ports(80..=80 + u16::from(n)))
        .and_then(|policy| policy.deny(Cidr::new([1, n, 0, 0].into(), 16).unwrap()))
        .unwrap()
}

#[test]
fn twenty_slots_have_as_many_rules_as_one() {
    on_scratch_host(|host| {
        let mut host_undo = host.undo();
        let net = open(host, &mut host_undo);
        let before = host.state();
        // Without the elements of its sets it is the rules.
        let rules = || run("nft", &["--terse", "list", "table", "inet", &format!("wrenn_{}", host.id)]);
        let none = rules();
        let mut slots = Vec::new();
        for index in 1..=20 {
            let mut undo = host.undo();
            let slot = net.slot_with_egress(spec(index), &policy(index as u8), &mut undo).unwrap();
            slots.push((slot, undo));
            assert_eq!(rules(), none, "{index} slots");
        }
        let sets = run("nft", &["list", "table", "inet", &format!("wrenn_{}", host.id)]);
        assert!(sets.contains("10.20.0.1"), "{sets}");
        for (slot, undo) in slots {
            slot.set_egress(&policy(100)).unwrap();
            removed(undo);
        }
        assert_eq!(host.state(), before, "after 20 slots");
        removed(host_undo);
    });
}

#[test]
fn the_default_policy_leaves_nothing_in_the_table() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let rules = run("nft", &["list", "ruleset"]);
        let slot = net.slot(spec(1), &mut undo).unwrap();
        assert_eq!(run("nft", &["list", "ruleset"]), rules);
        slot.set_egress(&EgressPolicy::deny_all()).unwrap();
        assert_ne!(run("nft", &["list", "ruleset"]), rules);
        // The same thing said otherwise.
        let rule = AllowRule::to("1.0.0.0/8".parse().unwrap());
        slot.set_egress(&EgressPolicy::internet().allow(rule).unwrap()).unwrap();
        assert_eq!(run("nft", &["list", "ruleset"]), rules);
        removed(undo);
        removed(host_undo);
    });
}

#[test]
fn the_largest_policy_fits() {
    on_scratch_host(|host| {
        let mut policy = nothing();
        let mut rules = 1;
        while let Ok(larger) =
            policy.clone().allow(AllowRule::to(Ipv4Addr::new(10, 0, rules, 1).into()).ports(7..=7))
        {
            (policy, rules) = (larger, rules + 1);
        }
        assert_eq!(usize::from(rules), EgressPolicy::MOST_RULES);
        let last = Ipv4Addr::new(10, 0, rules - 1, 1);
        let world = World::new(host, &[last], &policy);
        assert!(world.udp(last, 7) && world.tcp(last, 7));
        assert!(!world.udp(last, 8));
        world.remove();
    });
}

#[test]
fn a_handle_changes_its_own_slot_alone() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let old = net.slot(spec(1), &mut undo).unwrap();
        removed(undo);
        let error = old.set_egress(&EgressPolicy::deny_all()).unwrap_err();
        assert!(matches!(error, NetError::SlotGone { index: 1 }), "{error}");

        let mut undo = host.undo();
        net.slot(spec(1), &mut undo).unwrap();
        let rules = run("nft", &["list", "ruleset"]);
        let error = old.set_egress(&EgressPolicy::deny_all()).unwrap_err();
        assert!(matches!(error, NetError::SlotGone { index: 1 }), "{error}");
        assert_eq!(run("nft", &["list", "ruleset"]), rules);
        removed(undo);
        removed(host_undo);
        drop(net);
        let error = old.set_egress(&EgressPolicy::deny_all()).unwrap_err();
        assert!(matches!(error, NetError::SlotGone { index: 1 }), "{error}");
    });
}

#[test]
fn a_change_that_fails_changes_nothing() {
    on_scratch_host(|host| {
        let before = host.state();
        let world = World::new(host, &[FAR], &nothing());
        run("nft", &["delete", "table", "inet", &world.table()]);
        let error = world.slot.set_egress(&EgressPolicy::default()).unwrap_err();
        assert!(matches!(error, NetError::Firewall { .. }), "{error}");
        // With the table gone there is nothing left to take out of it.
        let (net, slot) = (world.net.clone(), world.slot.clone());
        world.remove();
        drop((net, slot));
        eventually("the other machine's end", || !run("ip", &["link"]).contains("wan"));
        assert_eq!(host.state(), before);
    });
}

#[test]
fn rules_stay_as_long_as_the_link_does() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let before = host.state();
        let slot = net.slot_with_egress(spec(1), &EgressPolicy::deny_all(), &mut undo).unwrap();
        run("ip", &["link", "delete", slot.link()]);
        run("ip", &["link", "add", slot.link(), "type", "bridge"]);
        let failures = undo.run(LIMIT);
        let said: Vec<_> = failures.iter().map(|failure| failure.what.to_string()).collect();
        assert_eq!(said, [format!("link {}", slot.link()), format!("egress rules of {}", slot.link())]);
        assert!(run("nft", &["list", "ruleset"]).contains(slot.link()), "its guest would have the default");

        run("ip", &["link", "delete", slot.link()]);
        let mut undo = host.undo();
        net.slot(spec(1), &mut undo).unwrap();
        assert!(!run("nft", &["list", "ruleset"]).contains(slot.link()), "a slot with the default policy");
        removed(undo);
        assert_eq!(host.state(), before);
        removed(host_undo);
    });
}

#[test]
fn what_a_killed_process_held_back_stays_held_back() {
    on_scratch_host(|host| {
        let world = World::new(host, &[FAR], &nothing());
        let mut undo = host.undo();
        let default = world.net.slot(spec(2), &mut undo).unwrap();
        undo.commit();
        let (slot, internet) = world.abandon();
        // Twice, as the second one finds what the first one made of it.
        let mut host_undo = host.undo();
        open(host, &mut host_undo);
        host_undo.commit();
        let mut host_undo = host.undo();
        let net = open(host, &mut host_undo);

        let held_back = || run("nft", &["list", "set", "inet", &format!("wrenn_{}", host.id), "own_policy"]);
        assert!(
            held_back().contains(slot.link()) && !held_back().contains(default.link()),
            "{}",
            held_back()
        );
        let far = internet.socket(FAR, 7000);
        for (text, slot) in [("let me in", &slot), ("I may", &default)] {
            within_path(slot.netns(), || world::sender().send_to(text.as_bytes(), (FAR, 7000)).unwrap());
        }
        let mut buffer = [0; 100];
        let (length, _) = far.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"I may");

        net.sweep(&BTreeSet::new()).unwrap();
        assert!(!held_back().contains(slot.link()), "{}", held_back());
        removed(host_undo);
    });
}

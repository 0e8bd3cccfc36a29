//! Slots made ahead: taken, made anew, and all gone at the end, however that comes.

mod common;
#[path = "common/net.rs"]
mod net;

use std::collections::BTreeSet;

use common::{Host, eventually, on_scratch_host, run, within_path};
use net::{LIMIT, open, removed, spec};
use wrenn_base::HostId;
use wrenn_net::{EgressPolicy, HostNet, HostNetSpec, NetError, Slot, SlotPool};

/// A pool of three with all three ready.
fn full(host: &Host, net: &HostNet, indices: std::ops::RangeInclusive<u16>) -> SlotPool {
    let pool = SlotPool::start(net, indices, 3, &host.reaper).unwrap();
    eventually("three slots", || pool.ready() == 3);
    pool
}

fn closed(pool: SlotPool) {
    let failures = pool.close(LIMIT);
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn slots_are_taken_and_made_anew() {
    on_scratch_host(|host| {
        let mut host_undo = host.undo();
        let net = open(host, &mut host_undo);
        let before = host.state();
        let pool = full(host, &net, 1..=100);
        let mut taken = Vec::new();
        for _ in 0..8 {
            let mut undo = host.undo();
            let slot = pool.take(&EgressPolicy::default(), &mut undo).unwrap();
            let inside = within_path(slot.netns(), || run("ip", &["-o", "address"]));
            assert!(inside.contains(&slot.address().to_string()) && inside.contains("tap0"), "{inside}");
            taken.push((slot, undo));
        }
        let indices: BTreeSet<_> = taken.iter().map(|(slot, _)| slot.index()).collect();
        assert_eq!(indices.len(), 8, "{indices:?}");
        eventually("three slots again", || pool.ready() == 3);
        for (_, undo) in taken {
            removed(undo);
        }
        closed(pool);
        assert_eq!(host.state(), before);
        removed(host_undo);
    });
}

#[test]
fn a_taken_slot_outlives_the_pool_and_has_its_policy() {
    on_scratch_host(|host| {
        let mut host_undo = host.undo();
        let net = open(host, &mut host_undo);
        let before = host.state();
        let pool = full(host, &net, 1..=100);
        let mut undo = host.undo();
        let slot = pool.take(&EgressPolicy::deny_all(), &mut undo).unwrap();
        closed(pool);
        assert!(slot.netns().exists());
        let links = run("ip", &["-br", "link"]);
        assert_eq!(links.matches(&format!("w{}v", host.id)).count(), 1, "{links}");
        assert!(run("nft", &["list", "ruleset"]).contains(slot.link()), "its policy");
        slot.set_egress(&EgressPolicy::default()).unwrap();
        removed(undo);
        assert_eq!(host.state(), before);
        removed(host_undo);
    });
}

/// Slots with these policies, as a process that was killed leaves them.
fn left_by_a_killed_process(host: &Host, policies: &[EgressPolicy]) -> Vec<Slot> {
    let mut killed = host.undo();
    let net = open(host, &mut killed);
    let pool = SlotPool::start(&net, 1..=100, 0, &host.reaper).unwrap();
    let take = |policy: &EgressPolicy| {
        let mut undo = host.undo();
        let slot = pool.take(policy, &mut undo).unwrap();
        undo.commit();
        slot
    };
    let slots = policies.iter().map(take).collect();
    closed(pool);
    killed.commit();
    slots
}

/// Has `work` done by a later process, which keeps the slots `keep`; all that it makes is removed.
fn later(host: &Host, keep: &[Slot], work: impl FnOnce(&SlotPool)) {
    let mut host_undo = host.undo();
    let net = open(host, &mut host_undo);
    net.sweep(&keep.iter().map(Slot::index).collect()).unwrap();
    let pool = SlotPool::start(&net, 1..=100, 0, &host.reaper).unwrap();
    work(&pool);
    closed(pool);
    removed(host_undo);
}

/// What a killed process had is taken over with its policy, and goes as any other slot; what nobody takes over goes first.
#[test]
fn a_later_process_takes_over_the_slots_that_it_keeps() {
    on_scratch_host(|host| {
        let before = host.state();
        let policies = [EgressPolicy::deny_all(), EgressPolicy::default(), EgressPolicy::default()];
        let slots = left_by_a_killed_process(host, &policies);
        let (kept, lost) = (&slots[..2], &slots[2]);
        later(host, kept, |pool| {
            let links = run("ip", &["-br", "link"]);
            assert!(!links.contains(&format!("{} ", lost.link())) && !lost.netns().exists(), "{links}");
            let (mut undo, mut other) = (host.undo(), host.undo());
            let denied = pool.take_over(kept[0].index(), &policies[0], &mut undo).unwrap();
            let allowed = pool.take_over(kept[1].index(), &policies[1], &mut undo).unwrap();
            assert_eq!((denied.netns(), denied.link()), (kept[0].netns(), kept[0].link()));
            let rules = run("nft", &["list", "ruleset"]);
            let has_own = |slot: &Slot| rules.contains(&format!("{}\"", slot.link()));
            assert!(rules.contains(denied.link()) && !has_own(&allowed), "{rules}");
            let new = pool.take(&EgressPolicy::default(), &mut other).unwrap();
            assert!(!kept.iter().any(|slot| slot.index() == new.index()), "theirs are in use");
            for index in [lost.index(), new.index(), kept[0].index()] {
                let refused = pool.take_over(index, &EgressPolicy::default(), &mut other).unwrap_err();
                assert!(matches!(refused, NetError::SlotGone { .. }), "{refused:?}");
            }
            removed(other);
            removed(undo);
        });
        assert_eq!(host.state(), before);
    });
}

#[test]
fn a_slot_that_is_not_whole_is_not_taken_over_and_goes() {
    on_scratch_host(|host| {
        let before = host.state();
        let slots = left_by_a_killed_process(host, &[EgressPolicy::default()]);
        let slot = &slots[0];
        run("ip", &["link", "del", slot.link()]);
        later(host, &slots, |pool| {
            let mut undo = host.undo();
            let error = pool.take_over(slot.index(), &EgressPolicy::default(), &mut undo).unwrap_err();
            assert!(error.to_string().contains(slot.link()), "{error}");
            removed(undo);
        });
        assert_eq!(host.state(), before);
    });
}

#[test]
fn a_dropped_pool_leaves_nothing() {
    on_scratch_host(|host| {
        let mut host_undo = host.undo();
        let net = open(host, &mut host_undo);
        let before = host.state();
        drop(full(host, &net, 1..=100));
        assert!(host.reaper.wait_idle(LIMIT));
        assert_eq!(host.state(), before, "of a full pool");
        // At whatever the thread is just then.
        for _ in 0..10 {
            drop(SlotPool::start(&net, 1..=100, 3, &host.reaper).unwrap());
            assert!(host.reaper.wait_idle(LIMIT));
            assert_eq!(host.state(), before, "of a pool that has just begun");
        }
        removed(host_undo);
    });
}

#[test]
fn an_empty_pool_makes_slots_as_they_are_asked_for() {
    on_scratch_host(|host| {
        let mut host_undo = host.undo();
        let net = open(host, &mut host_undo);
        let before = host.state();
        let pool = SlotPool::start(&net, 1..=3, 0, &host.reaper).unwrap();
        let mut taken = Vec::new();
        for index in 1..=3 {
            let mut undo = host.undo();
            let slot = pool.take(&EgressPolicy::deny_all(), &mut undo).unwrap();
            assert_eq!(slot.index(), index);
            taken.push(undo);
        }
        let mut undo = host.undo();
        let error = pool.take(&EgressPolicy::default(), &mut undo).unwrap_err();
        assert!(matches!(error, NetError::NoFreeIndex { first: 1, last: 3 }), "{error}");
        assert!(undo.is_empty());
        removed(taken.pop().unwrap());
        let slot = pool.take(&EgressPolicy::default(), &mut undo).unwrap();
        assert_eq!(slot.index(), 3);
        removed(undo);
        taken.into_iter().for_each(removed);
        closed(pool);
        assert_eq!(host.state(), before);
        removed(host_undo);
    });
}

#[test]
fn many_take_at_once() {
    on_scratch_host(|host| {
        let mut host_undo = host.undo();
        let net = open(host, &mut host_undo);
        let before = host.state();
        let pool = full(host, &net, 1..=100);
        let taken: Vec<_> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8)
                .map(|_| {
                    let mut undo = host.undo();
                    let pool = &pool;
                    scope.spawn(move || (pool.take(&EgressPolicy::default(), &mut undo).unwrap(), undo))
                })
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        let indices: BTreeSet<_> = taken.iter().map(|(slot, _)| slot.index()).collect();
        assert_eq!(indices.len(), 8, "{indices:?}");
        for (_, undo) in taken {
            removed(undo);
        }
        closed(pool);
        assert_eq!(host.state(), before);
        removed(host_undo);
    });
}

#[test]
fn indices_of_others_are_passed_over() {
    on_scratch_host(|host| {
        let (mut host_undo, mut other_undo, mut undo) = (host.undo(), host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        // A slot of this host, and one of another on the same machine.
        net.slot(spec(1), &mut undo).unwrap();
        let other = HostNetSpec::new(HostId::random(), host.dir.path().join("other"));
        let other = HostNet::open(other, &mut other_undo).unwrap();
        other.slot(spec(3), &mut undo).unwrap();
        eventually("the links' carriers", || !run("ip", &["link"]).contains("NO-CARRIER"));
        let before = host.state();

        let pool = full(host, &net, 1..=5);
        let mut taken = Vec::new();
        for _ in 0..3 {
            let mut undo = host.undo();
            let slot = pool.take(&EgressPolicy::default(), &mut undo).unwrap();
            taken.push((slot.index(), undo));
        }
        let indices: BTreeSet<_> = taken.iter().map(|(index, _)| *index).collect();
        assert_eq!(indices, [2, 4, 5].into());
        for (_, undo) in taken {
            removed(undo);
        }
        closed(pool);
        assert_eq!(host.state(), before);

        let error = SlotPool::start(&net, 0..=5, 3, &host.reaper).unwrap_err();
        assert!(matches!(error, NetError::IndexOutOfRange { index: 0, .. }), "{error}");
        removed(undo);
        removed(other_undo);
        removed(host_undo);
    });
}

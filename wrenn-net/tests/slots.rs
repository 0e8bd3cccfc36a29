//! Making and removing slots: alone, many, many at once, over leftovers, with others on the machine.

mod common;
#[path = "common/net.rs"]
mod net;

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use common::{eventually, on_scratch_host, run, within_new_namespace, within_path};
use net::{LIMIT, open, removed, spec};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn fifty_slots_in_turn_leave_the_host_as_it_was() {
    on_scratch_host(|host| {
        let before = host.state();
        let mut host_undo = host.undo();
        let net = open(host, &mut host_undo);
        let open = host.state();
        let (mut makes, mut removals) = (Vec::new(), Vec::new());
        for index in 1..=50 {
            let mut undo = host.undo();
            let start = Instant::now();
            let slot = net.slot(spec(index), &mut undo).unwrap();
            makes.push(start.elapsed());
            let with_slot = run("ip", &["-o", "link", "show", "dev", slot.link()]);
            assert!(with_slot.contains(",UP,LOWER_UP>"), "{with_slot}");
            let start = Instant::now();
            removed(undo);
            removals.push(start.elapsed());
        }
        assert_eq!(host.state(), open, "after 50 slots");
        removed(host_undo);
        drop(net);
        assert_eq!(host.state(), before, "after the host's network");
        eprintln!("slot made in {:?}, removed in {:?} (medians of 50)", median(makes), median(removals));
    });
}

#[test]
fn eight_slots_at_once_leave_the_host_as_it_was() {
    on_scratch_host(|host| {
        let before = host.state();
        let mut host_undo = host.undo();
        let net = open(host, &mut host_undo);
        let rules = run("nft", &["list", "ruleset"]);
        std::thread::scope(|scope| {
            let slots: Vec<_> = (1..=8)
                .map(|index| {
                    let (net, mut undo) = (net.clone(), host.undo());
                    scope.spawn(move || (net.slot(spec(index), &mut undo).unwrap(), undo))
                })
                .collect();
            let slots: Vec<_> = slots.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert_eq!(run("nft", &["list", "ruleset"]), rules, "the host's rules grow with the slots");
            let mut addresses: Vec<_> = slots.iter().map(|(slot, _)| slot.address()).collect();
            addresses.dedup();
            assert_eq!(addresses.len(), 8);
            for (_, undo) in slots {
                scope.spawn(move || removed(undo));
            }
        });
        removed(host_undo);
        drop(net);
        assert_eq!(host.state(), before);
    });
}

#[test]
fn the_namespace_is_set_up_as_promised() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let slot = net.slot(spec(3), &mut undo).unwrap();
        assert_eq!(slot.address(), Ipv4Addr::new(198, 19, 0, 7));
        assert_eq!(slot.guest().mac.to_string(), "06:00:a9:fe:00:15");
        assert_eq!(slot.guest().dns, [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)]);
        let file = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_owned();
        within_path(slot.netns(), || {
            let tap = run("ip", &["-details", "address", "show", "dev", "tap0"]);
            assert!(!tap.contains("multi_queue on"), "{tap}");
            for part in [
                "169.254.0.22/30",
                "06:00:a9:fe:00:16",
                "type tap",
                "vnet_hdr on",
                "numtxqueues 1",
                "persist on",
            ] {
                assert!(tap.contains(part), "no {part} in {tap}");
            }
            let routes = run("ip", &["route"]);
            assert!(routes.contains("default via 198.19.0.6 dev uplink"), "{routes}");
            let neighbours = run("ip", &["neighbour", "show", "dev", "tap0"]);
            assert!(neighbours.contains("169.254.0.21 lladdr 06:00:a9:fe:00:15 PERMANENT"), "{neighbours}");
            assert_eq!(file("/proc/sys/net/ipv4/ip_forward"), "1");
            assert_eq!(run("ip", &["-6", "address"]), "", "IPv6 in the namespace");
        });
        assert_eq!(run("ip", &["-6", "address", "show", "dev", slot.link()]), "", "IPv6 on the host's end");
        let note = run("ip", &["link", "show", "dev", slot.link()]);
        assert!(note.contains("alias wrenn sandbox "), "{note}");
        assert_eq!(file("/proc/sys/net/ipv4/ip_forward"), "1");
        removed(undo);
        removed(host_undo);
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn connect(slot: &wrenn_net::Slot, port: u16, limit: Duration) -> std::io::Result<std::net::TcpStream> {
    let stream = runtime().block_on(slot.connect(port, limit))?.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[test]
fn connect_reaches_a_port_of_the_guest() {
    on_scratch_host(|host| {
        // The first one opens what all runtimes of a process share.
        drop(runtime());
        let before = host.state();
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let slot = net.slot(spec(1), &mut undo).unwrap();
        // The guest's address on the loopback device stands in for a guest.
        let listener = within_path(slot.netns(), || {
            run("ip", &["address", "add", "169.254.0.21/32", "dev", "lo"]);
            TcpListener::bind("169.254.0.21:49983").unwrap()
        });
        let ours = connect(&slot, 49983, LIMIT).unwrap();
        let (theirs, from) = listener.accept().unwrap();
        assert_eq!(ours.peer_addr().unwrap(), "169.254.0.21:49983".parse().unwrap());
        assert_eq!(ours.local_addr().unwrap(), from);
        std::io::Write::write_all(&mut &ours, b"hello").unwrap();
        let mut heard = [0; 5];
        std::io::Read::read_exact(&mut &theirs, &mut heard).unwrap();
        assert_eq!(&heard, b"hello");

        assert_eq!(connect(&slot, 1, LIMIT).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        drop((ours, theirs, listener));
        removed(undo);
        assert_eq!(connect(&slot, 49983, LIMIT).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        removed(host_undo);
        drop(net);
        assert_eq!(host.state(), before);
    });
}

#[test]
fn connect_asks_anew_when_a_packet_is_lost() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let slot = open(host, &mut host_undo).slot(spec(1), &mut undo).unwrap();
        let _listener = within_path(slot.netns(), || {
            run("ip", &["address", "add", "169.254.0.21/32", "dev", "lo"]);
            run("nft", &["add set inet wrenn asked { type inet_service; flags dynamic; size 99; }"]);
            run("nft", &["add chain inet wrenn lossy { type filter hook input priority -1; }"]);
            run("nft", &["add rule inet wrenn lossy tcp dport 49983 add @asked { tcp sport } drop"]);
            TcpListener::bind("169.254.0.21:49983").unwrap()
        });
        std::thread::scope(|scope| {
            let ours = scope.spawn(|| connect(&slot, 49983, LIMIT));
            within_path(slot.netns(), || {
                // One port is one attempt; what TCP itself repeats has the same.
                let ports = || run("nft", &["list set inet wrenn asked"]).matches(',').count() + 1;
                eventually("a second attempt", || ports() >= 2);
                run("nft", &["flush chain inet wrenn lossy"]);
            });
            ours.join().unwrap().unwrap();
        });
        removed(undo);
        removed(host_undo);
    });
}

#[test]
fn connecting_to_a_silent_guest_ends_in_time() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let slot = open(host, &mut host_undo).slot(spec(1), &mut undo).unwrap();
        let error = connect(&slot, 49983, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        removed(undo);
        removed(host_undo);
    });
}

#[test]
fn leftovers_of_a_killed_process_are_cleaned() {
    on_scratch_host(|host| {
        let before = host.state();
        let left = spec(7);
        {
            let (mut host_undo, mut undo) = (host.undo(), host.undo());
            open(host, &mut host_undo).slot(left.clone(), &mut undo).unwrap();
            undo.commit();
            host_undo.commit();
        }
        let path = host.netns_dir().join(left.sandbox.as_str());
        // Worse than what a kill leaves: the namespace's name twice over.
        rustix::mount::mount_bind(&path, &path).unwrap();

        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let slot = net.slot(left.clone(), &mut undo).unwrap();
        assert!(within_path(slot.netns(), || run("ip", &["link"])).contains("uplink"));
        removed(undo);

        // A kill between making the file and mounting leaves a plain file.
        std::fs::write(&path, "").unwrap();
        let mut undo = host.undo();
        net.slot(left, &mut undo).unwrap();
        removed(undo);
        removed(host_undo);
        drop(net);
        assert_eq!(host.state(), before);
    });
}

#[test]
fn an_undo_finds_parts_gone_already() {
    on_scratch_host(|host| {
        let before = host.state();
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let slot = net.slot(spec(1), &mut undo).unwrap();
        run("ip", &["link", "delete", slot.link()]);
        rustix::mount::unmount(slot.netns(), UnmountFlags::DETACH).unwrap();
        std::fs::remove_file(slot.netns()).unwrap();
        run("nft", &["delete", "table", "inet", &format!("wrenn_{}", host.id)]);
        removed(undo);
        removed(host_undo);
        drop(net);
        assert_eq!(host.state(), before);
    });
}

#[test]
fn the_host_is_where_it_was_opened_whoever_calls() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let before = host.state();
        let slot = within_new_namespace(|| net.slot(spec(1), &mut undo).unwrap());
        assert!(run("ip", &["link"]).contains(slot.link()));
        within_new_namespace(|| removed(undo));
        assert_eq!(host.state(), before);
        removed(host_undo);
    });
}

#[test]
fn a_dropped_list_removes_the_slot() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let before = host.state();
        net.slot(spec(1), &mut undo).unwrap();
        drop(undo);
        assert!(host.reaper.wait_idle(LIMIT));
        assert_eq!(host.state(), before);
        removed(host_undo);
    });
}

/// A monitor's private mount namespace has copies of the other sandboxes' namespace mounts.
#[test]
fn a_private_copy_of_the_mount_does_not_keep_the_namespace() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let slot = net.slot(spec(1), &mut undo).unwrap();
        // A link of which one end is in the namespace shows whether that lives.
        within_path(slot.netns(), || run("ip", &["link", "add", "inside", "type", "bridge"]));
        let home =
            format!("/proc/{}/task/{}/ns/net", std::process::id(), rustix::thread::gettid().as_raw_nonzero());
        within_path(slot.netns(), || {
            run("ip", &["link", "add", "twin", "type", "veth", "peer", "name", "canary", "netns", &home]);
        });
        let (copied, go_on) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                common::sys::unshare(UnshareFlags::NEWNS).unwrap();
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                rustix::mount::mount_change("/", private).unwrap();
                let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
                assert!(mounts.contains(slot.netns().to_str().unwrap()), "no copy to test with");
                copied.wait();
                go_on.wait();
            });
            copied.wait();
            removed(undo);
            eventually("the namespace's end", || !run("ip", &["link"]).contains("canary"));
            go_on.wait();
        });
        removed(host_undo);
    });
}

//! What is refused, by which error, and that nothing of it stays.

mod common;
#[path = "common/net.rs"]
mod net;

use std::net::Ipv4Addr;
use std::path::Path;

use common::{on_scratch_host, on_thread, run};
use net::{LIMIT, open, removed, spec};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use wrenn_base::{HostId, SandboxId};
use wrenn_net::{HostNet, HostNetSpec, NetError, SlotSpec};

#[test]
fn an_undo_that_fails_does_not_keep_the_others_from_running() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let slot = net.slot(spec(1), &mut undo).unwrap();
        run("ip", &["link", "delete", slot.link()]);
        run("ip", &["link", "add", slot.link(), "type", "bridge"]);
        let failures = undo.run(LIMIT);
        assert_eq!(failures.len(), 1, "{failures:#?}");
        assert!(
            failures[0].source.to_string().contains("is bridge, not a leftover"),
            "{}",
            failures[0].source
        );
        assert!(!slot.netns().exists());

        let mut undo = host.undo();
        let error = net.slot(spec(1), &mut undo).unwrap_err();
        assert!(matches!(&error, NetError::NameClash { name, .. } if name == slot.link()), "{error}");
        run("ip", &["link", "delete", slot.link()]);
        removed(undo);
        removed(host_undo);
    });
}

#[test]
fn an_index_is_in_use_until_its_undo_has_run() {
    on_scratch_host(|host| {
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        net.slot(spec(9), &mut undo).unwrap();
        let mut second = host.undo();
        let error = net.slot(spec(9), &mut second).unwrap_err();
        assert!(matches!(error, NetError::IndexInUse { index: 9, .. }), "{error}");
        assert!(second.is_empty(), "it would have removed the first slot");
        let error = net.slot(spec(0), &mut second).unwrap_err();
        assert!(matches!(error, NetError::IndexOutOfRange { index: 0, last: 32766, .. }), "{error}");
        assert!(second.is_empty());
        removed(undo);
        net.slot(spec(9), &mut second).unwrap();
        removed(second);
        removed(host_undo);
    });
}

#[test]
fn two_hosts_share_a_machine_and_a_pool() {
    on_scratch_host(|host| {
        let before = host.state();
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        net.slot(spec(1), &mut undo).unwrap();

        let (mut other_undo, mut both) = (host.undo(), host.undo());
        let other = HostNetSpec::new(HostId::random(), host.dir.path().join("other"));
        let other = HostNet::open(other, &mut other_undo).unwrap();
        let sandbox = SandboxId::random();
        let error = other.slot(SlotSpec { sandbox: sandbox.clone(), index: 1 }, &mut both).unwrap_err();
        assert!(matches!(error, NetError::IndexTaken { index: 1, .. }), "{error}");
        let slot = other.slot(SlotSpec { sandbox, index: 2 }, &mut both).unwrap();
        assert!(slot.netns().exists());
        removed(both);
        let routes = run("ip", &["route"]);
        assert!(routes.contains("198.19.0.3"), "the first host's slot lost its route: {routes}");
        removed(undo);
        removed(other_undo);
        removed(host_undo);
        drop((net, other));
        assert_eq!(host.state(), before);
    });
}

#[test]
fn a_pool_in_use_is_refused_before_anything_is_done() {
    on_scratch_host(|host| {
        run("ip", &["link", "add", "lan0", "type", "bridge"]);
        run("ip", &["address", "add", "198.19.77.1/24", "dev", "lan0"]);
        // An IPv6 address would still be changing its state while the test looks.
        std::fs::write("/proc/sys/net/ipv6/conf/lan0/disable_ipv6", "1").unwrap();
        run("ip", &["link", "set", "lan0", "up"]);
        run("ip", &["route", "add", "128.0.0.0/1", "dev", "lan0"]);
        let before = host.state();
        let mut undo = host.undo();
        let spec = HostNetSpec::new(host.id.clone(), host.netns_dir());
        let error = HostNet::open(spec.clone(), &mut undo).unwrap_err();
        assert!(error.to_string().contains("route to 198.19.77.0/24"), "{error}");
        assert!(undo.is_empty());
        assert_eq!(host.state(), before);

        let mut elsewhere = spec;
        elsewhere.pool = "10.123.0.0/24".parse().unwrap();
        let slot_address = {
            let mut slot_undo = host.undo();
            let net = HostNet::open(elsewhere, &mut undo).unwrap();
            let slot = net.slot(self::spec(126), &mut slot_undo).unwrap();
            removed(slot_undo);
            slot.address()
        };
        assert_eq!(slot_address, Ipv4Addr::new(10, 123, 0, 253));
        removed(undo);
        assert_eq!(host.state(), before);
    });
}

#[test]
fn without_the_tun_driver_the_error_says_what_to_load() {
    on_scratch_host(|host| {
        let before = host.state();
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        // Copies of the mounts that are there, so that hiding the device is seen by nobody else.
        on_thread(|| {
            common::sys::unshare(UnshareFlags::NEWNS).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            rustix::mount::mount("none", "/dev/net", "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>)
                .unwrap();
            let net = open(host, &mut host_undo);
            let error = net.slot(spec(1), &mut undo).unwrap_err();
            assert!(matches!(error, NetError::NoTun { .. }), "{error}");
            removed(std::mem::replace(&mut undo, host.undo()));
            removed(std::mem::replace(&mut host_undo, host.undo()));
        });
        assert_eq!(host.state(), before);
    });
}

#[test]
fn without_capabilities_the_error_says_which() {
    on_scratch_host(|host| {
        let before = host.state();
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        let open = host.state();
        on_thread(|| {
            let all = rustix::thread::capabilities(None).unwrap();
            let unneeded = rustix::thread::CapabilitySet::DAC_OVERRIDE | rustix::thread::CapabilitySet::CHOWN;
            let few = rustix::thread::CapabilitySets { effective: unneeded, permitted: unneeded, ..all };
            rustix::thread::set_capabilities(None, few).unwrap();
            let error = net.slot(spec(1), &mut undo).unwrap_err();
            assert!(matches!(error, NetError::NotPermitted { .. }), "{error}");
            assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        });
        removed(undo);
        assert_eq!(host.state(), open);
        removed(host_undo);
        drop(net);
        assert_eq!(host.state(), before);
    });
}

#[test]
fn a_directory_that_cannot_hold_namespaces_is_named() {
    on_scratch_host(|host| {
        let mut undo = host.undo();
        let error =
            HostNet::open(HostNetSpec::new(host.id.clone(), "/nowhere/netns"), &mut undo).unwrap_err();
        assert!(error.to_string().contains("/nowhere/netns"), "{error}");
        removed(undo);

        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let net = open(host, &mut host_undo);
        std::fs::remove_dir(host.netns_dir()).unwrap();
        let error = net.slot(spec(1), &mut undo).unwrap_err();
        let expected = |path: &Path| path.starts_with(host.netns_dir());
        assert!(matches!(&error, NetError::KeepNamespace { path, .. } if expected(path)), "{error}");
        removed(undo);
        removed(host_undo);
    });
}

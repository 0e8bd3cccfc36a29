//! What a network slot costs: made by this crate, by the `ip` and `nft` tools, taken from a pool; a change of policy.
//!
//! `cargo bench -p wrenn-net`, as root. It plays in a network namespace of its own. Compare within one run. The tools
//! are given everything in as few processes as they allow.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/net.rs"]
mod net;

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use divan::Bencher;
use rustix::thread::UnshareFlags;
use wrenn_base::{HostId, Reaper, UndoList};
use wrenn_net::{AllowRule, EgressPolicy, HostNet, HostNetSpec, SlotPool};

fn main() {
    common::sys::unshare(UnshareFlags::NEWNET).expect("a network namespace (run as root)");
    common::run("ip", &["link", "set", "lo", "up"]);
    divan::main();
    if let Some(World { dir, .. }) = WORLD.get() {
        // Statics are never dropped.
        std::fs::remove_dir_all(dir).expect("the directory is empty by now");
    }
}

static WORLD: OnceLock<World> = OnceLock::new();

struct World {
    reaper: Reaper,
    net: HostNet,
    dir: std::path::PathBuf,
}

fn world() -> &'static World {
    WORLD.get_or_init(|| {
        let reaper = Reaper::start();
        let dir = tempfile::tempdir().expect("a directory").keep();
        let mut undo = UndoList::new(&reaper);
        let net = HostNet::open(HostNetSpec::new(HostId::random(), dir.join("netns")), &mut undo);
        // The namespace that all of it is in ends with this process.
        undo.commit();
        World { reaper, net: net.expect("the host's network"), dir }
    })
}

/// Removed as it is dropped, which divan does not measure.
struct Made(Option<UndoList>);

impl Drop for Made {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(net::removed);
    }
}

fn list() -> UndoList {
    UndoList::new(&world().reaper)
}

fn policy() -> EgressPolicy {
    let rule = AllowRule::to("10.20.0.0/16".parse().expect("a block")).ports(443..=443);
    EgressPolicy::deny_all().dns(true).allow(rule).expect("a policy")
}

#[divan::bench(sample_count = 60, sample_size = 1)]
fn slot_made_by_this_crate(bencher: Bencher<'_, '_>) {
    bencher.with_inputs(list).bench_local_values(|mut undo| {
        world().net.slot(net::spec(1), &mut undo).expect("a slot");
        Made(Some(undo))
    });
}

#[divan::bench(sample_count = 60, sample_size = 1)]
fn slot_with_a_policy_made_by_this_crate(bencher: Bencher<'_, '_>) {
    let policy = policy();
    bencher.with_inputs(list).bench_local_values(|mut undo| {
        world().net.slot_with_egress(net::spec(1), &policy, &mut undo).expect("a slot");
        Made(Some(undo))
    });
}

#[divan::bench(sample_count = 60, sample_size = 1)]
fn slot_removed_by_this_crate(bencher: Bencher<'_, '_>) {
    let made = || {
        let mut undo = list();
        world().net.slot(net::spec(1), &mut undo).expect("a slot");
        undo
    };
    bencher.with_inputs(made).bench_local_values(net::removed);
}

#[divan::bench(sample_count = 60, sample_size = 1)]
fn slot_taken_from_a_pool(bencher: Bencher<'_, '_>) {
    take(bencher, &EgressPolicy::default());
}

#[divan::bench(sample_count = 60, sample_size = 1)]
fn slot_with_a_policy_taken_from_a_pool(bencher: Bencher<'_, '_>) {
    take(bencher, &policy());
}

fn take(bencher: Bencher<'_, '_>, policy: &EgressPolicy) {
    let pool = SlotPool::start(&world().net, 100..=200, 4, &world().reaper).expect("a pool");
    let full = || {
        // The thread that makes the next ones is not to run meanwhile.
        common::eventually("a full pool", || pool.ready() == 4);
        list()
    };
    bencher.with_inputs(full).bench_local_values(|mut undo| {
        pool.take(policy, &mut undo).expect("a slot");
        Made(Some(undo))
    });
    assert!(pool.close(Duration::from_secs(10)).is_empty());
}

#[divan::bench(sample_count = 60, sample_size = 1)]
fn change_of_policy(bencher: Bencher<'_, '_>) {
    let mut undo = list();
    let slot = world().net.slot(net::spec(1), &mut undo).expect("a slot");
    let (default, narrow) = (EgressPolicy::default(), policy());
    let mut policies = [&narrow, &default].into_iter().cycle();
    bencher.bench_local(|| slot.set_egress(policies.next().expect("a policy")).expect("a change"));
    net::removed(undo);
}

const NAMESPACE: &str = "wrenn-bench-tools";

#[divan::bench(sample_count = 60, sample_size = 1)]
fn slot_made_by_tools(bencher: Bencher<'_, '_>) {
    struct Made;
    impl Drop for Made {
        fn drop(&mut self) {
            common::run("ip", &["link", "delete", "toolhost"]);
            common::run("ip", &["netns", "delete", NAMESPACE]);
        }
    }
    bencher.bench_local(|| {
        common::run("ip", &["netns", "add", NAMESPACE]);
        feed(
            "ip",
            &["-batch", "-"],
            &format!("link add toolhost type veth peer name uplink netns {NAMESPACE}\n"),
        );
        feed("ip", &["netns", "exec", NAMESPACE, "sh", "-e"], INSIDE);
        feed("ip", &["-batch", "-"], OUTSIDE);
        Made
    });
}

const INSIDE: &str = r#"
cd /proc/sys/net
echo 1 > ipv6/conf/all/disable_ipv6
echo 1 > ipv6/conf/default/disable_ipv6
echo 1 > ipv4/ip_forward
ip -batch - <<END
link set lo up
tuntap add tap0 mode tap vnet_hdr
link set tap0 address 06:00:a9:fe:00:16 up
address add 169.254.0.22/30 dev tap0
neighbour add 169.254.0.21 lladdr 06:00:a9:fe:00:15 dev tap0
END
nft -f - <<END
table inet wrenn {
    chain input {
        type filter hook input priority filter; policy drop
        iifname lo accept
        ct state established,related accept
        iifname tap0 icmp type echo-request accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop
        iifname tap0 oifname uplink ip saddr 169.254.0.21 accept
        iifname uplink oifname tap0 ct state established,related accept
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname uplink masquerade
    }
}
END
ip -batch - <<END
link set uplink up
address add 198.19.255.3/31 dev uplink
route add default via 198.19.255.2
END
"#;

const OUTSIDE: &str = "\
link set toolhost up
route add 198.19.255.3 dev toolhost
address add 198.19.255.2/32 dev toolhost
";

#[allow(clippy::disallowed_methods, reason = "the tools are what this crate is measured against")]
fn feed(program: &str, arguments: &[&str], text: &str) {
    let mut child =
        Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().expect("the tool runs");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(text.as_bytes()).expect("the tool reads");
    drop(input);
    assert!(child.wait().expect("the tool ends").success(), "{program} {arguments:?}: {text}");
}

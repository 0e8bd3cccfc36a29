//! A scratch host for each test: a network namespace that plays the machine, so that tests meet neither each other
//! nor the machine's own network. What is there is observed by `ip`, `nft` and /proc, not by the code under test.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod guest;
#[allow(unsafe_code)]
pub(crate) mod sys;

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use wrenn_base::{HostId, Reaper, UndoList};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A machine of its own, as far as the network goes. All methods run on the thread that plays it.
pub(crate) struct Host {
    pub(crate) reaper: Reaper,
    pub(crate) id: HostId,
    pub(crate) dir: tempfile::TempDir,
}

/// Runs `test` on a scratch host; prints why it cannot, where it cannot.
pub(crate) fn on_scratch_host(test: impl FnOnce(&Host) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(e) = sys::unshare(UnshareFlags::NEWNET) {
                eprintln!("SKIP: no network namespace to be had (run as root): {e}");
                return;
            }
            run("ip", &["link", "set", "lo", "up"]);
            test(&Host {
                reaper: Reaper::start(),
                id: HostId::random(),
                dir: tempfile::tempdir().expect("a temporary directory"),
            });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

impl Drop for Host {
    fn drop(&mut self) {
        // A failing test drops its undo lists half way; they are to run before the process ends.
        self.reaper.wait_idle(PATIENCE);
    }
}

impl Host {
    pub(crate) fn undo(&self) -> UndoList {
        UndoList::new(&self.reaper)
    }

    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.dir.path().join("netns")
    }

    /// All that a slot could leave behind, as text.
    pub(crate) fn state(&self) -> String {
        let mut state = String::new();
        for (program, arguments) in [
            ("ip", &["-o", "link", "show"][..]),
            ("ip", &["-o", "address", "show"]),
            ("ip", &["route", "show", "table", "all"]),
            ("ip", &["-6", "route", "show", "table", "all"]),
            ("ip", &["neighbour", "show"]),
            ("nft", &["list", "ruleset"]),
        ] {
            state += &format!("# {program} {}\n{}", arguments.join(" "), run(program, arguments));
        }
        let here = self.dir.path().to_str().expect("a plain path");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        for mount in mounts.lines().filter(|line| line.contains(here)) {
            state += &format!("mount {mount}\n");
        }
        list_files(self.dir.path(), &mut state);
        let open = std::fs::read_dir("/proc/self/fd").expect("fd").count();
        state + &format!("descriptors {open}\n")
    }

    /// A second machine, reached through the link `wan`, which has `addresses`.
    pub(crate) fn internet(&self, addresses: &[Ipv4Addr]) -> Internet {
        let namespace = within_new_namespace(|| {
            run("ip", &["link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net").expect("its namespace")
        });
        // Made over there, so that it goes with the other machine, and moved here.
        let home = File::open("/proc/thread-self/ns/net").expect("this namespace");
        let home = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&home));
        within(&namespace, || {
            run("ip", &["link", "add", "lan", "type", "veth", "peer", "name", "wan", "netns", &home]);
            run("ip", &["address", "add", "203.0.113.1/24", "dev", "lan"]);
            run("ip", &["link", "set", "lan", "up"]);
            for address in addresses {
                run("ip", &["address", "add", &format!("{address}/32"), "dev", "lo"]);
            }
        });
        run("ip", &["address", "add", "203.0.113.2/24", "dev", "wan"]);
        run("ip", &["link", "set", "wan", "up"]);
        run("ip", &["route", "add", "default", "via", "203.0.113.1"]);
        Internet { namespace }
    }
}

pub(crate) const WAN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

pub(crate) struct Internet {
    pub(crate) namespace: File,
}

impl Internet {
    pub(crate) fn socket(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        within(&self.namespace, || listen(address, port))
    }
}

/// A socket of the calling thread's namespace.
pub(crate) fn listen(address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).expect("an address to listen on");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

/// Whether nothing has reached the socket so far.
pub(crate) fn is_silent(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).expect("non-blocking");
    let silent = match socket.recv_from(&mut [0; 2048]) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => true,
        Ok(_) => false,
        Err(e) => panic!("the socket failed: {e}"),
    };
    socket.set_nonblocking(false).expect("blocking");
    silent
}

pub(crate) fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    on_thread(|| {
        let network = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), network)
            .expect("to enter the namespace");
        work()
    })
}

pub(crate) fn within_path<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    within(&File::open(namespace).expect("the namespace"), work)
}

pub(crate) fn within_new_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    on_thread(|| {
        sys::unshare(UnshareFlags::NEWNET).expect("a network namespace");
        work()
    })
}

pub(crate) fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Runs a program in the calling thread's namespace and returns what it printed.
#[allow(clippy::disallowed_methods, reason = "a test's observer, independent of the code under test")]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {complaint}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for `condition` to come true.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn list_files(dir: &Path, state: &mut String) {
    let mut paths: Vec<_> =
        std::fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        *state += &format!("file {}\n", path.display());
        if path.is_dir() {
            list_files(&path, state);
        }
    }
}

//! A machine beyond the host, as far as guests can tell: a network namespace behind a veth pair.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// The host's address on the way there.
const NEAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The other machine; it goes when it is dropped.
pub(crate) struct Elsewhere {
    namespace: String,
    address: Ipv4Addr,
    servers: Mutex<Vec<Child>>,
}

/// Sets up a machine at `address`, which the host has a route to.
pub(crate) fn elsewhere(address: Ipv4Addr) -> Elsewhere {
    let namespace = format!("wtest{}", std::process::id());
    let there = Elsewhere { namespace: namespace.clone(), address, servers: Mutex::default() };
    let link = &namespace;
    ip(&format!("netns add {namespace}"));
    ip(&format!("link add {link} type veth peer name eth0 netns {namespace}"));
    ip(&format!("addr add {NEAR}/32 dev {link}"));
    ip(&format!("link set {link} up"));
    ip(&format!("route add {address}/32 dev {link}"));
    for line in [
        "link set lo up".into(),
        "link set eth0 up".into(),
        format!("addr add {address}/32 dev eth0"),
        format!("route add {NEAR}/32 dev eth0"),
        format!("route add default via {NEAR}"),
    ] {
        ip(&format!("-n {namespace} {line}"));
    }
    there
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("ip runs");
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Elsewhere {
    /// The host's own address on the way there.
    pub(crate) fn near(&self) -> Ipv4Addr {
        NEAR
    }

    /// Has somebody there take connections to a TCP port.
    pub(crate) fn listen(&self, port: u16) -> SocketAddr {
        let program = "import socket, sys\n\
             server = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64)\n\
             print('ready', flush=True)\n\
             while True: server.accept()[0].close()";
        let mut server = Command::new("ip")
            .args(["netns", "exec", &self.namespace, "python3", "-c", program])
            .args([self.address.to_string(), port.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip runs");
        let mut ready = String::new();
        BufReader::new(server.stdout.take().expect("a pipe")).read_line(&mut ready).expect("a line");
        self.servers.lock().expect("nobody panicked with it").push(server);
        assert_eq!(ready, "ready\n");
        (self.address, port).into()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        for server in self.servers.get_mut().into_iter().flatten() {
            drop(server.kill());
            drop(server.wait());
        }
        // With the namespace goes the pair, in a while; deleted, it is gone at once.
        for line in [format!("link del {}", self.namespace), format!("netns del {}", self.namespace)] {
            drop(Command::new("ip").args(line.split(' ')).output());
        }
    }
}

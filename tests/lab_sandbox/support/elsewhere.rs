//! A machine beyond the host, as far as guests can tell: a network namespace behind a veth pair.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, flock};

/// The host's address on the way there.
const NEAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The other machine; it goes when it is dropped.
pub(crate) struct Elsewhere {
    namespace: String,
    /// Its addresses are taken by one test at a time.
    _lock: File,
    servers: Mutex<Vec<Child>>,
}

/// Sets up a machine with these addresses, to each of which the host has a route.
pub(crate) fn elsewhere(addresses: &[Ipv4Addr]) -> Elsewhere {
    let lock = File::create("/run/wrenn-test-elsewhere").expect("a lock");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock");
    let namespace = format!("wtest{}", std::process::id());
    let there = Elsewhere { namespace: namespace.clone(), _lock: lock, servers: Mutex::default() };
    let link = &namespace;
    ip(&format!("netns add {namespace}"));
    ip(&format!("link add {link} type veth peer name eth0 netns {namespace}"));
    ip(&format!("addr add {NEAR}/32 dev {link}"));
    ip(&format!("link set {link} up"));
    for line in ["link set lo up".into(), "link set eth0 up".into(), format!("route add {NEAR}/32 dev eth0")]
    {
        ip(&format!("-n {namespace} {line}"));
    }
    for address in addresses {
        ip(&format!("route add {address}/32 dev {link}"));
        ip(&format!("-n {namespace} addr add {address}/32 dev eth0"));
    }
    ip(&format!("-n {namespace} route add default via {NEAR}"));
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

    /// Has somebody there take connections to a TCP port of every address.
    pub(crate) fn listen(&self, port: u16) {
        let program = "import socket, sys\n\
             server = socket.create_server(('', int(sys.argv[1])), backlog=64)\n\
             print('ready', flush=True)\n\
             while True: server.accept()[0].close()";
        self.run(program, &[port.to_string()]);
    }

    /// Has somebody at `server` answer whoever asks for a name that it is at `address`.
    pub(crate) fn answer_names(&self, server: Ipv4Addr, address: Ipv4Addr) {
        // RFC 1035: an identifier, flags, four counts, and the question; the answer names it by its place.
        let program = "import socket, sys\n\
             server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             server.bind((sys.argv[2], 53))\n\
             print('ready', flush=True)\n\
             while True:\n\
             \x20   asked, client = server.recvfrom(512)\n\
             \x20   end = asked.index(0, 12) + 5\n\
             \x20   is_a = asked[end - 4:end - 2] == bytes([0, 1])\n\
             \x20   head = asked[:2] + bytes([0x81, 0x80, 0, 1, 0, is_a, 0, 0, 0, 0])\n\
             \x20   record = bytes([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]) + socket.inet_aton(sys.argv[1])\n\
             \x20   server.sendto(head + asked[12:end] + is_a * record, client)";
        self.run(program, &[address.to_string(), server.to_string()]);
    }

    /// Starts a program there, and waits until it is ready.
    fn run(&self, program: &str, arguments: &[String]) {
        let mut server = Command::new("ip")
            .args(["netns", "exec", &self.namespace, "/usr/bin/python3", "-ES", "-c", program])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip runs");
        let mut ready = String::new();
        BufReader::new(server.stdout.take().expect("a pipe")).read_line(&mut ready).expect("a line");
        self.servers.lock().expect("nobody panicked with it").push(server);
        assert_eq!(ready, "ready\n");
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

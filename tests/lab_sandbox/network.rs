//! A sandbox's network as its user sees it: policies and ports, with packets from a guest.

use std::fmt::Display;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::support::elsewhere::elsewhere;
use crate::support::{self, HostState, TestHost, base};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wrenn::{AllowRule, Cause, EgressPolicy, ErrorKind, Host, MiB, RestoreOptions, Sandbox};

/// Addresses beyond the host: on the internet, as far as policies can tell, of a name server there, in a private
/// network, and of the metadata service that many clouds have.
const BEHIND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const NAMES: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 7);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

async fn boot(host: &Host, policy: EgressPolicy) -> Sandbox {
    let sandbox = host.sandbox("debian").unwrap().memory(MiB(128)).egress(policy);
    sandbox.create().await.expect("the sandbox boots")
}

/// Whether the guest gets a connection to a TCP port of a name or an address.
async fn reaches(sandbox: &Sandbox, host: impl Display, port: u16) -> bool {
    let line = format!("timeout 4 bash -c ': < /dev/tcp/{host}/{port}'");
    sandbox.exec(line).await.expect("the guest answers").status.success()
}

/// Starts a server in the guest that answers with the same in capitals.
async fn serve(sandbox: &Sandbox, port: u16) {
    let program = format!(
        "import socket, threading\n\
         def answer(client):\n\
         \x20   with client:\n\
         \x20       while text := client.recv(65536): client.sendall(text.upper())\n\
         server = socket.create_server(('', {port}), backlog=64)\n\
         open('/run/serves', 'w').close()\n\
         while True: threading.Thread(target=answer, args=(server.accept()[0],)).start()\n"
    );
    sandbox.files().write("/root/serve.py", program).await.unwrap();
    drop(sandbox.command("python3").arg("/root/serve.py").spawn().await.unwrap());
    let ready = "for try in $(seq 300); do test -e /run/serves && exit; sleep 0.2; done; exit 1";
    assert!(sandbox.exec(ready).await.unwrap().status.success(), "the guest's server does not come up");
}

/// What comes back, while all of it is still being sent.
async fn echoed(stream: TcpStream, text: &str) -> String {
    let (mut from, mut to) = stream.into_split();
    let send = async {
        to.write_all(text.as_bytes()).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut answer = String::new();
    let ((), received) = tokio::join!(send, from.read_to_string(&mut answer));
    received.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_hold_from_boot_over_changes_and_resumes() {
    let test = TestHost::new();
    let host = test.open().await;
    let before = HostState::of(&test.data());
    let elsewhere = elsewhere(&[BEHIND]);
    elsewhere.listen(7000);

    let rule = AllowRule::to(BEHIND.into()).ports(7000..=7000);
    let open = EgressPolicy::deny_all().allow(rule).unwrap();
    let sandbox = boot(&host, open.clone()).await;
    assert!(reaches(&sandbox, BEHIND, 7000).await, "what the policy allows");
    assert!(!reaches(&sandbox, BEHIND, 7001).await, "another port");

    sandbox.set_egress(EgressPolicy::deny_all()).await.unwrap();
    assert_eq!(sandbox.egress(), EgressPolicy::deny_all());
    assert!(!reaches(&sandbox, BEHIND, 7000).await, "after the change");

    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    let sandbox = support::resume(paused, RestoreOptions::default()).await;
    assert_eq!(sandbox.egress(), EgressPolicy::deny_all());
    assert!(
        !reaches(&sandbox, BEHIND, 7000).await,
        "the policy in force at the pause holds after the resume"
    );
    sandbox.set_egress(open).await.unwrap();
    assert!(reaches(&sandbox, BEHIND, 7000).await, "allowed again");

    sandbox.destroy().await.unwrap();
    drop(elsewhere);
    before.assert_same(&HostState::of(&test.data()));
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_policy_opens_the_host_or_other_sandboxes() {
    let test = TestHost::new();
    let host = test.open().await;
    let elsewhere = elsewhere(&[BEHIND, PRIVATE, METADATA]);
    elsewhere.listen(7000);
    let own = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
    let port = own.local_addr().unwrap().port();
    for address in [BEHIND, PRIVATE, METADATA] {
        TcpStream::connect((address, 7000)).await.expect("the host itself gets there");
    }

    let sandbox = base::sandbox(&test, &host).await;
    assert!(reaches(&sandbox, BEHIND, 7000).await, "the internet is open where nothing was said");
    assert!(!reaches(&sandbox, PRIVATE, 7000).await, "private networks are not");
    assert!(!reaches(&sandbox, METADATA, 7000).await, "nor is the metadata service");

    let everything = AllowRule::to("0.0.0.0/0".parse().unwrap());
    sandbox.set_egress(EgressPolicy::internet().allow(everything).unwrap()).await.unwrap();
    assert!(reaches(&sandbox, PRIVATE, 7000).await, "a private network that was opened");
    assert!(!reaches(&sandbox, elsewhere.near(), port).await, "the host's own address");

    let other = base::sandbox(&test, &host).await;
    serve(&other, 7000).await;
    assert!(!reaches(&sandbox, other.address(), 7000).await, "another sandbox");
    assert_eq!(echoed(other.connect(7000).await.unwrap(), "it serves\n").await, "IT SERVES\n");

    other.destroy().await.unwrap();
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_opened_and_ipv6_is_not() {
    let test = TestHost::new();
    let elsewhere = elsewhere(&[BEHIND, NAMES]);
    elsewhere.listen(7000);
    elsewhere.answer_names(NAMES, BEHIND);
    let host = test.builder().nameservers([NAMES]).open().await.unwrap();

    let named = AllowRule::to_name("www.example.com".parse().unwrap()).ports(7000..=7000);
    let policy = EgressPolicy::deny_all().allow(named).unwrap();
    let sandbox = base::sandbox_with(&test, &host, |it| it.egress(policy)).await;
    assert!(!reaches(&sandbox, BEHIND, 7000).await, "an address that no name stood for");
    assert!(!reaches(&sandbox, "other.example.com", 7000).await, "another name");
    assert!(reaches(&sandbox, "www.example.com", 7000).await, "the name of the policy");
    assert!(reaches(&sandbox, BEHIND, 7000).await, "the address that the guest was told");

    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    let sandbox = support::resume(paused, RestoreOptions::default()).await;
    assert!(!reaches(&sandbox, BEHIND, 7000).await, "a resumed guest has been told nothing yet");
    assert!(reaches(&sandbox, "www.example.com", 7000).await, "after the resume");

    let listed = sandbox.exec("grep -v ' lo$' /proc/net/if_inet6").await.unwrap();
    assert_eq!(listed.stdout_text(), "", "no interface has an IPv6 address");
    sandbox.set_egress(EgressPolicy::internet()).await.unwrap();
    sandbox.files().write("/root/ask6.py", ASK_IPV6).await.unwrap();
    let asked = sandbox.exec("python3 /root/ask6.py").await.unwrap();
    assert_eq!((asked.stdout_text().as_str(), asked.stderr_text().as_str()), ("lo", ""));

    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

/// Switches IPv6 on, and tells by which interfaces somebody answers to an echo request to all nodes (RFC 4443).
const ASK_IPV6: &str = r"
import socket, struct, sys, time
for name in ('all', 'default', 'eth0'):
    with open(f'/proc/sys/net/ipv6/conf/{name}/disable_ipv6', 'w') as out: out.write('0')
deadline = time.monotonic() + 60
while 'eth0' not in open('/proc/net/if_inet6').read() and time.monotonic() < deadline: time.sleep(0.1)
time.sleep(2)  # Duplicate addresses are looked for, for a second, before one is used.
for name in ('lo', 'eth0'):
    asking = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
    asking.settimeout(5)
    to = '::1' if name == 'lo' else 'ff02::1'
    asking.sendto(struct.pack('>BBHHH', 128, 0, 0, 7, 7), (to, 0, 0, socket.if_nametoindex(name)))
    own = {line.split()[0] for line in open('/proc/net/if_inet6') if line.split()[-1] == 'eth0'}
    try:
        while True:
            packet, (address, *_) = asking.recvfrom(2048)
            packed = socket.inet_pton(socket.AF_INET6, address.split('%')[0]).hex()
            if packet[0] == 129 and packed not in own:
                print(name)
                break
    except TimeoutError: pass
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_reached_and_published() {
    let test = TestHost::new();
    let host = test.builder().ready_slots(2).open().await.unwrap();
    let sandbox = base::sandbox_with(&test, &host, |it| it.egress(EgressPolicy::deny_all())).await;
    serve(&sandbox, 7000).await;
    assert_eq!(echoed(sandbox.connect(7000).await.unwrap(), "one\ntwo\n").await, "ONE\nTWO\n");

    let nobody = sandbox.connect(7001).await.unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::NotFound, "{nobody:?}");
    for port in [0, 49983] {
        let refused = sandbox.connect(port).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused:?}");
        let refused = sandbox.publish(port, ([127, 0, 0, 1], 0).into()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused:?}");
    }

    let published = sandbox.publish(7000, ([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = published.address();
    let taken = sandbox.publish(7000, address).await.unwrap_err();
    assert!(matches!(taken.cause(), Cause::Listen { .. }), "{taken:?}");
    let calls = (0..20).map(|n| async move {
        let stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(echoed(stream, &format!("call {n}\n")).await, format!("CALL {n}\n"));
    });
    futures_util::future::join_all(calls).await;
    let big = "x".repeat(1 << 20) + "\n";
    assert_eq!(echoed(TcpStream::connect(address).await.unwrap(), &big).await, big.to_uppercase());

    // Its end closes what it carried, and the address is free again.
    let mut carried = TcpStream::connect(address).await.unwrap();
    carried.write_all(b"hello\n").await.unwrap();
    let mut answer = [0; 6];
    carried.read_exact(&mut answer).await.unwrap();
    drop(published);
    let ended = tokio::time::timeout(Duration::from_secs(20), carried.read(&mut answer)).await;
    assert!(matches!(ended.expect("it is closed"), Ok(0) | Err(_)));
    let again = sandbox.publish(7000, address).await.unwrap();

    // So does the sandbox's.
    sandbox.destroy().await.unwrap();
    support::eventually("the address is closed", || std::net::TcpStream::connect(address).is_err());
    drop(again);
    host.close().await.unwrap();
}

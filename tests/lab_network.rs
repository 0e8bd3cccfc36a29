//! A sandbox's network as its user sees it: policies and ports, with packets from a guest.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use support::{HostState, TestHost};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wrenn::{AllowRule, Cause, EgressPolicy, ErrorKind, Host, MiB, RestoreOptions, Sandbox};

/// An address of the machine's own, which no policy opens, and one behind it that a policy may.
const BEHIND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

async fn boot(host: &Host, policy: EgressPolicy) -> Sandbox {
    let sandbox = host.sandbox("debian").unwrap().memory(MiB(128)).egress(policy);
    sandbox.create().await.expect("the sandbox boots")
}

/// Whether the guest gets a connection to a TCP port.
async fn reaches(sandbox: &Sandbox, to: SocketAddr) -> bool {
    let line =
        format!("python3 -c 'import socket; socket.create_connection((\"{}\", {}), 4)'", to.ip(), to.port());
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
    let elsewhere = support::elsewhere::elsewhere(BEHIND);
    let service = elsewhere.listen(7000);

    let rule = AllowRule::to(BEHIND.into()).ports(7000..=7000);
    let open = EgressPolicy::deny_all().allow(rule).unwrap();
    let sandbox = boot(&host, open.clone()).await;
    assert!(reaches(&sandbox, service).await, "what the policy allows");
    assert!(!reaches(&sandbox, (BEHIND, 7001).into()).await, "another port");

    sandbox.set_egress(EgressPolicy::deny_all()).await.unwrap();
    assert_eq!(sandbox.egress(), EgressPolicy::deny_all());
    assert!(!reaches(&sandbox, service).await, "after the change");

    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    let sandbox = support::resume(paused, RestoreOptions::default()).await;
    assert_eq!(sandbox.egress(), EgressPolicy::deny_all());
    assert!(!reaches(&sandbox, service).await, "the policy in force at the pause holds after the resume");
    sandbox.set_egress(open).await.unwrap();
    assert!(reaches(&sandbox, service).await, "allowed again");

    // The host itself, whatever is allowed.
    let everything = AllowRule::to("0.0.0.0/0".parse().unwrap());
    sandbox.set_egress(EgressPolicy::internet().allow(everything).unwrap()).await.unwrap();
    let own = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
    let port = own.local_addr().unwrap().port();
    assert!(!reaches(&sandbox, (elsewhere.near(), port).into()).await, "the host's own address");

    // Another sandbox.
    let other = boot(&host, EgressPolicy::internet()).await;
    serve(&other, 7000).await;
    assert!(!reaches(&sandbox, (other.address(), 7000).into()).await, "another sandbox");
    assert_eq!(echoed(other.connect(7000).await.unwrap(), "it serves\n").await, "IT SERVES\n");

    other.destroy().await.unwrap();
    sandbox.destroy().await.unwrap();
    drop((own, elsewhere));
    before.assert_same(&HostState::of(&test.data()));
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_reached_and_published() {
    let test = TestHost::new();
    let host = test.builder().ready_slots(2).open().await.unwrap();
    let sandbox = boot(&host, EgressPolicy::deny_all()).await;
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

//! The service without a guest: who may call, what is refused, and how it ends. Needs root, as opening a host does; what
//! needs guests is in the workspace's `lab_sandbox` tests.
#![cfg(all(feature = "client", feature = "service"))]

mod support;

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use wrenn_agent_api::AccessToken;
use wrenn_base::{MiB, SandboxId};
use wrenn_core::ShutdownPolicy;
use wrenn_host::{
    Branch, ClientTls, CreateSandbox, Egress, EgressRule, HostClient, HostError, HostSecret, HostService,
    Listener, MutualTls, Reason, ServerTls, Source, Timeout,
};

use support::{Authority, Fixture, raw};

const NAME: &str = "host-1";

fn secret() -> HostSecret {
    HostSecret::new([7; 32]).unwrap()
}

fn image() -> Source {
    Source::Image("nothing".parse().unwrap())
}

async fn bind() -> (TcpListener, u16) {
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// Serves `listener` in the background.
fn serve(service: &HostService, listener: Listener) {
    let service = service.clone();
    tokio::spawn(async move { service.serve(listener, std::future::pending()).await });
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, HostError>, reason: Reason) {
    let error = result.unwrap_err();
    assert_eq!(error.reason(), Some(reason), "{error:?}");
}

#[tokio::test]
async fn over_tcp_a_token_is_needed_for_everything_but_health() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let (socket, port) = bind().await;
    serve(&service, Listener::tcp(socket, secret()));

    let endpoint = format!("http://127.0.0.1:{port}");
    let client = |secret, name: &str| {
        HostClient::builder(&endpoint).unwrap().secret(secret, name, "control").build().unwrap()
    };
    let described = client(secret(), NAME).describe().await.unwrap();
    assert_eq!(described.name, NAME);
    assert_eq!(&described.host_id, host.host.id());
    assert!(described.memory_total > MiB(0) && described.disk_total >= described.disk_free);
    assert_eq!((described.active, described.paused, described.draining), (0, 0, false));

    let other = HostSecret::new([8; 32]).unwrap();
    let id = SandboxId::random();
    let nobody = HostClient::builder(&endpoint).unwrap().build().unwrap();
    for client in [client(other, NAME), client(secret(), "host-2"), nobody] {
        refused(client.describe().await, Reason::Unauthenticated);
        refused(client.list().await, Reason::Unauthenticated);
        refused(client.tunnel(&id, 80).await, Reason::Unauthenticated);
        refused(client.watch().await, Reason::Unauthenticated);
        refused(client.destroy(&id).await, Reason::Unauthenticated);
    }

    let old = secret().sign(NAME, "control", Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(6500)).await;
    let get = |path: &str, header: &str| raw(port, format!("GET {path} HTTP/1.1\r\nhost: h\r\n{header}\r\n"));
    let answer = get("/tunnel/x/80", &format!("authorization: Bearer {old}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("expired"), "{answer}");
    for header in
        ["authorization: Basic eDp5\r\n", "authorization: Bearer\r\n", "authorization: Bearer a.b.c\r\n"]
    {
        let answer = get("/tunnel/x/80", header).await;
        assert!(
            answer.starts_with("HTTP/1.1 401") && answer.contains("www-authenticate: Bearer"),
            "{answer}"
        );
    }
    // Two are one too many: who checks the one, and who uses the other?
    let token = secret().sign(NAME, "control", Duration::from_secs(60));
    let twice = format!("authorization: Bearer {token}\r\n").repeat(2);
    assert!(get("/nothing", &twice).await.starts_with("HTTP/1.1 401"));
    assert!(get("/nothing", &format!("authorization: Bearer {token}\r\n")).await.contains("unimplemented"));
    assert!(get("/health", "").await.starts_with("HTTP/1.1 204"));
    host.close(service).await;
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_so() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let client = service.client();
    let id = SandboxId::random();
    refused(client.get(&id).await, Reason::NoSuchSandbox);
    refused(client.pause(&id).await, Reason::NoSuchSandbox);
    refused(client.resume(&id, None).await, Reason::NoSuchSandbox);
    refused(client.destroy(&id).await, Reason::NoSuchSandbox);
    refused(client.set_timeout(&id, Timeout::default()).await, Reason::NoSuchSandbox);
    refused(client.snapshot(&id, &"t".parse().unwrap()).await, Reason::NoSuchSandbox);
    refused(client.branch(Branch::new(id.clone(), vec![SandboxId::random()])).await, Reason::NoSuchSandbox);
    refused(client.stats(&id).await, Reason::NoSuchSandbox);
    refused(client.console(&id, 0).await, Reason::NoSuchSandbox);
    refused(client.tunnel(&id, 80).await, Reason::NoSuchSandbox);
    refused(client.delete_template(&"t".parse().unwrap()).await, Reason::NoSuchTemplate);
    assert!(client.list().await.unwrap().is_empty());
    assert!(client.templates().await.unwrap().is_empty());
    let agent = client.agent(&id, AccessToken::random());
    assert!(agent.health().await.unwrap_err().is_unreachable());
    drop(client);
    host.close(service).await;
}

#[tokio::test]
async fn a_bad_request_is_refused_and_leaves_nothing() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let client = service.client();
    let plain = || CreateSandbox::new(SandboxId::random(), image());
    refused(client.create(plain()).await, Reason::NoSuchImage);
    let template = CreateSandbox { source: Source::Template("nothing".parse().unwrap()), ..plain() };
    refused(client.create(template).await, Reason::NoSuchTemplate);

    let label = |key: &str| [(key.to_owned(), String::new())].into();
    let rule = EgressRule { to: "fd00::/8".into(), protocol: None, ports: None };
    let bad = [
        CreateSandbox { vcpus: Some(200), ..plain() },
        CreateSandbox { memory: Some(MiB(1)), ..plain() },
        CreateSandbox { metadata: label("wrenn.request"), ..plain() },
        CreateSandbox { metadata: label(&"k".repeat(1000)), ..plain() },
        CreateSandbox { env: label("A=B"), ..plain() },
        CreateSandbox { hostname: Some("a.b".into()), ..plain() },
        CreateSandbox { timeout: Some(Timeout::pause(Duration::ZERO)), ..plain() },
        CreateSandbox { egress: Some(Egress { allow: vec![rule], ..Egress::none() }), ..plain() },
    ];
    for request in bad {
        refused(client.create(request).await, Reason::InvalidArgument);
    }
    let id = SandboxId::random();
    for children in [vec![], vec![id.clone()]] {
        refused(client.branch(Branch::new(id.clone(), children)).await, Reason::InvalidArgument);
    }
    refused(client.tunnel(&id, 0).await, Reason::InvalidArgument);
    assert!(client.list().await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(host.data().join("sandboxes")).unwrap().count(), 0);
    drop(client);
    host.close(service).await;
}

#[tokio::test]
async fn what_is_no_request_is_answered_all_the_same() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let (socket, port) = bind().await;
    serve(&service, Listener::tcp(socket, secret()));
    let token = secret().sign(NAME, "control", Duration::from_secs(60));
    let post = |path: &str, kind: &str, length: usize, body: &str| {
        raw(
            port,
            format!(
                "POST {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\ncontent-type: {kind}\r\n\
             content-length: {length}\r\n\r\n{body}"
            ),
        )
    };
    let rpc = |method: &str| format!("/wrenn.host.v1.Host/{method}");
    for body in ["", "{", "[]", "{\"id\":7}", "{\"id\":\"../../etc\"}", "\u{0}"] {
        let answer = post(&rpc("Get"), "application/json", body.len(), body).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{body:?}: {answer}");
    }
    let answer = post(&rpc("Get"), "application/proto", 3, "\u{7f}\u{7f}\u{7f}").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(post(&rpc("Nothing"), "application/json", 2, "{}").await.starts_with("HTTP/1.1 404"));
    assert!(post(&rpc("Get"), "text/plain", 2, "{}").await.starts_with("HTTP/1.1 415"));
    let huge = post(&rpc("Get"), "application/json", 100 << 20, "{").await;
    assert!(huge.contains("resource_exhausted"), "{huge}");

    let id = SandboxId::random();
    let tunnel = |target: &str, upgrade: &str| {
        let path = format!("/tunnel/{target}");
        raw(
            port,
            format!(
                "GET {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\nconnection: upgrade\r\n\
             upgrade: {upgrade}\r\n\r\n"
            ),
        )
    };
    for target in ["", "..%2f/80", "x/80", &format!("{id}/0"), &format!("{id}/99999"), &format!("{id}/80/81")]
    {
        let answer = tunnel(target, "wrenn-tunnel").await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{target}: {answer}");
    }
    assert!(tunnel(&format!("{id}/80"), "websocket").await.starts_with("HTTP/1.1 400"));
    assert!(tunnel(&format!("{id}/80"), "wrenn-tunnel").await.starts_with("HTTP/1.1 404"));
    host.close(service).await;
}

#[tokio::test]
async fn a_host_that_drains_takes_nothing_new() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let client = service.client();
    let request = || CreateSandbox::new(SandboxId::random(), image());
    assert_eq!(client.drain(true).await.unwrap(), 0);
    refused(client.create(request()).await, Reason::Draining);
    assert!(client.describe().await.unwrap().draining);
    client.drain(false).await.unwrap();
    refused(client.create(request()).await, Reason::NoSuchImage);
    assert!(!client.describe().await.unwrap().draining);
    drop(client);
    host.close(service).await;
}

#[tokio::test]
async fn a_unix_socket_needs_no_token() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let path = host.home.path().join("host.sock");
    serve(&service, Listener::unix(&path).unwrap());
    let client = HostClient::builder(&format!("unix:{}", path.display())).unwrap().build().unwrap();
    let described = client.describe().await.unwrap();
    assert_eq!(described.name, NAME);
    assert_eq!(client.describe().await.unwrap().instance, described.instance);
    refused(client.tunnel(&SandboxId::random(), 80).await, Reason::NoSuchSandbox);
    host.close(service).await;
    assert!(!path.exists(), "it goes with the listener");
    assert!(client.describe().await.unwrap_err().is_unreachable());
}

#[tokio::test]
async fn tls_shows_the_host_and_asks_for_a_token() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (certificate, key) = ours.sign("localhost");
    let (socket, port) = bind().await;
    let tls = ServerTls::new(certificate.as_bytes(), key.as_bytes()).unwrap();
    serve(&service, Listener::tls(socket, tls, secret()));

    let client = |endpoint: &str, roots: &Authority, secret| {
        let tls = ClientTls::new(roots.pem().as_bytes()).unwrap();
        let builder = HostClient::builder(endpoint).unwrap().tls(tls);
        builder.secret(secret, NAME, "control").build().unwrap()
    };
    let endpoint = format!("https://localhost:{port}");
    assert_eq!(client(&endpoint, &ours, secret()).describe().await.unwrap().name, NAME);
    let other = HostSecret::new([8; 32]).unwrap();
    refused(client(&endpoint, &ours, other).describe().await, Reason::Unauthenticated);
    let error = client(&endpoint, &theirs, secret()).describe().await.unwrap_err();
    assert!(matches!(error, HostError::Unreachable { .. }), "{error:?}");
    let other_name = format!("https://127.0.0.1:{port}");
    assert!(client(&other_name, &ours, secret()).describe().await.unwrap_err().is_unreachable());
    let plain = HostClient::builder(&format!("http://127.0.0.1:{port}")).unwrap().build().unwrap();
    assert!(plain.describe().await.unwrap_err().is_unreachable());
    host.close(service).await;
}

#[tokio::test]
async fn a_certificate_does_instead_of_a_token() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (certificate, key) = ours.sign("localhost");
    let (socket, port) = bind().await;
    let tls = MutualTls::new(certificate.as_bytes(), key.as_bytes(), ours.pem().as_bytes()).unwrap();
    serve(&service, Listener::mutual_tls(socket, tls));

    let endpoint = format!("https://localhost:{port}");
    let client = |tls| HostClient::builder(&endpoint).unwrap().tls(tls).build().unwrap();
    let mutual = |authority: &Authority| {
        let (certificate, key) = authority.sign("control");
        ClientTls::mutual(ours.pem().as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap()
    };
    let id = SandboxId::random();
    let welcome = client(mutual(&ours));
    assert_eq!(welcome.describe().await.unwrap().name, NAME);
    refused(welcome.tunnel(&id, 80).await, Reason::NoSuchSandbox);
    for stranger in [client(mutual(&theirs)), client(ClientTls::new(ours.pem().as_bytes()).unwrap())] {
        assert!(stranger.describe().await.unwrap_err().is_unreachable());
        assert!(stranger.tunnel(&id, 80).await.unwrap_err().is_unreachable());
    }
    host.close(service).await;
}

#[tokio::test]
async fn whoever_watches_is_told_of_the_end() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let mut events = service.client().watch().await.unwrap();
    let first = service.client().describe().await.unwrap().instance;
    let waiting = tokio::spawn(async move { events.next().await });
    host.close(service).await;
    assert_eq!(waiting.await.unwrap().unwrap(), None);

    let host = host.open_again().await;
    let service = host.service(NAME).await;
    assert_ne!(service.client().describe().await.unwrap().instance, first);
    host.close(service).await;
}

#[tokio::test]
async fn a_service_that_has_ended_takes_no_calls() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let client = service.client();
    let failures = service.clone().shutdown(ShutdownPolicy::LeaveRunning, Duration::from_secs(5)).await;
    assert!(failures.is_empty());
    let error = client.create(CreateSandbox::new(SandboxId::random(), image())).await.unwrap_err();
    assert!(error.is_unreachable() || error.reason() == Some(Reason::Draining), "{error:?}");
    drop(client);
    host.close(service).await;
}

#[tokio::test]
async fn who_never_comes_to_an_end_is_given_up() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let head = "POST /wrenn.host.v1.Host/Get HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n";
    let (no_head, no_body) = (head.to_owned(), format!("{head}content-length: 100\r\n\r\n{{"));
    let (mut first, mut second) = (service.connect(), service.connect());
    // From here on the clock goes on as fast as everybody waits.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    first.write_all(no_head.as_bytes()).await.unwrap();
    second.write_all(no_body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    second.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("deadline_exceeded"), "{answer}");
    answer.clear();
    drop(first.read_to_string(&mut answer).await);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    let taken = begun.elapsed();
    assert!((Duration::from_secs(30)..Duration::from_secs(120)).contains(&taken), "{taken:?}");
    tokio::time::resume();

    // One who hangs up in the middle harms nobody.
    let mut third = service.connect();
    third.write_all(no_body.as_bytes()).await.unwrap();
    drop(third);
    service.client().describe().await.unwrap();
    host.close(service).await;
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let mut stream = service.connect();
    let mut sent = 0;
    stream.write_all(b"GET /health HTTP/1.1\r\n").await.unwrap();
    let line = format!("x-filler: {}\r\n", "x".repeat(4000));
    while sent < 4 << 20 && stream.write_all(line.as_bytes()).await.is_ok() {
        sent += line.len();
    }
    assert!(sent < 1 << 20, "{sent} bytes of a head were taken");
    let mut answer = String::new();
    drop(stream.read_to_string(&mut answer).await);
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    service.client().describe().await.unwrap();
    host.close(service).await;
}

#[tokio::test]
async fn a_paused_sandbox_that_is_damaged_can_be_removed() {
    let Some(host) = Fixture::open().await else { return };
    let service = host.service(NAME).await;
    let (client, id) = (service.client(), SandboxId::random());
    let store = host.data().join("sandboxes").join(id.as_str());
    for damage in [&b""[..], b"{\"record\":", b"\0\xff no index"] {
        std::fs::create_dir_all(store.join("snapshots/1")).unwrap();
        std::fs::write(store.join("snapshots/1/index.json"), damage).unwrap();
        let error = client.get(&id).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::Corrupt), "{error:?}");
        assert!(client.resume(&id, None).await.is_err());
        client.destroy(&id).await.unwrap();
        assert!(!store.exists());
        let error = client.destroy(&id).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::NoSuchSandbox), "{error:?}");
    }
    drop(client);
    host.close(service).await;
}

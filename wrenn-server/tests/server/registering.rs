//! Hosts that register themselves.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wrenn_core::Host;
use wrenn_host::HostSecret;
use wrenn_server::ServerError;
use wrenn_server::program::{AtEnd, HostPlace, ServeHost};

use crate::support::{TestServer, answer, refused, until};

const SECRET: &str = "what hosts and control planes share";
/// The audience of tokens for control planes.
const CONTROL_PLANE: &str = "wrenn:control-plane";

async fn server_with_secret() -> TestServer {
    TestServer::start_with(|settings| settings.host_secret = Some(SECRET.into())).await
}

/// A host's program, as it is told to be: it registers itself.
fn program(server: &TestServer, home: &Path, socket: &str) -> ServeHost {
    let socket = home.join(socket);
    ServeHost {
        name: "one".to_owned(),
        listen: None,
        unix: Some(socket.clone()),
        host_secret: Some(SECRET.into()),
        certificate: None,
        key: None,
        client_ca: None,
        register: Some(server.url("/")),
        advertise: Some(format!("unix:{}", socket.display())),
        place: HostPlace { data: Some(home.join("data")), at_end: AtEnd::Destroy },
    }
}

struct Running {
    stop: oneshot::Sender<()>,
    program: JoinHandle<Result<(), ServerError>>,
}

impl Running {
    fn start(program: ServeHost, home: &Path) -> Self {
        let never = "/bin/false";
        let host = Host::builder().run_dir(home.join("run")).monitor(never).pager(never).ready_slots(0);
        let (stop, stopped) = oneshot::channel::<()>();
        let program = tokio::spawn(program.run(host, async { drop(stopped.await) }));
        Self { stop, program }
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.program.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_host_registers_itself_and_does_it_again_where_it_is_forgotten_or_has_moved() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: opening a host makes a table of the firewall, which needs root");
        return;
    }
    let (server, home) = (server_with_secret().await, TempDir::new().unwrap());
    let host = Running::start(program(&server, home.path(), "first.sock"), home.path());
    until(&server, "SELECT up FROM hosts WHERE name = 'one'", "t").await;
    let registered = "SELECT count(*) FROM audit_log WHERE action = 'host.register' AND actor = 'host:one'";
    assert_eq!(server.database.query(registered), ["1"]);
    // An operator may drain it, which it does not undo by what it repeats.
    let root = server.operator().await;
    let path = "/v1/hosts/one/draining";
    let (status, _) = server.call(Method::PUT, path, &root, Some(json!({"draining": true}))).await;
    assert_eq!(status, 200);
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert_eq!(server.database.query("SELECT draining FROM hosts"), ["t"]);
    assert_eq!(server.database.query(registered), ["1"], "what is only repeated is no news");
    assert_eq!(server.call(Method::DELETE, "/v1/hosts/one", &root, None).await.0, 204);
    until(&server, "SELECT up FROM hosts WHERE name = 'one'", "t").await;
    host.end().await;
    // The same host at another address.
    let host = Running::start(program(&server, home.path(), "second.sock"), home.path());
    let moved = format!("unix:{}", home.path().join("second.sock").display());
    until(&server, "SELECT endpoint FROM hosts WHERE up AND last_seen_at > now() - interval '3 s'", &moved)
        .await;
    assert_eq!(server.database.query(registered), ["3"]);
    host.end().await;
    server.stop().await;
}

/// Says where a host is, with that token.
async fn announce(server: &TestServer, host: &str, token: &str, endpoint: &str) -> (StatusCode, Value) {
    let request = server.request(Method::PUT, &format!("/v1/hosts/{host}/endpoint"));
    answer(request.bearer_auth(token).json(&json!({ "endpoint": endpoint }))).await
}

#[tokio::test]
async fn only_a_host_itself_says_where_it_is() {
    let server = server_with_secret().await;
    let secret = HostSecret::new(SECRET).unwrap();
    let minute = Duration::from_secs(60);
    let token = secret.sign(CONTROL_PLANE, "one", minute);
    let there = "http://127.0.0.1:1";
    // For another host, of another secret, for hosts and not for control planes, for too long, of nobody.
    refused(announce(&server, "two", &token, there).await, 404, "not_found");
    let other = HostSecret::new("a secret that nobody else here knows").unwrap();
    for wrong in [
        other.sign(CONTROL_PLANE, "one", minute),
        secret.sign("one", "one", minute),
        secret.sign("one", "control-plane", minute),
        secret.sign(CONTROL_PLANE, "one", minute * 60),
        secret.sign(CONTROL_PLANE, "No Host", minute),
        "forged".to_owned(),
    ] {
        refused(announce(&server, "one", &wrong, there).await, 401, "unauthenticated");
    }
    // An operator has another route for it, and everybody else none.
    for user in [server.operator().await, server.account("ada@example.org").await] {
        refused(announce(&server, "one", &user, there).await, 404, "not_found");
    }
    let too_long = format!("http://{}:1", "h".repeat(400));
    for endpoint in ["", "ftp://h:1", "http://h", "unix:relative", "in-process", "https://h:1", &too_long] {
        refused(announce(&server, "one", &token, endpoint).await, 400, "invalid_request");
    }
    assert_eq!(server.database.query("SELECT count(*) FROM hosts"), ["0"]);
    assert_eq!(announce(&server, "one", &token, there).await.0, 204);
    assert_eq!(
        server.database.query("SELECT name || ' ' || endpoint FROM hosts"),
        ["one http://127.0.0.1:1"]
    );
    // One that lives in a control plane is not taken away from it.
    server.database.query("UPDATE hosts SET endpoint = 'in-process'");
    refused(announce(&server, "one", &token, there).await, 409, "conflict");
    assert_eq!(server.database.query("SELECT endpoint FROM hosts"), ["in-process"]);
    server.stop().await;
}

#[tokio::test]
async fn without_a_secret_no_host_registers_itself() {
    let server = TestServer::start().await;
    let token = HostSecret::new(SECRET).unwrap().sign(CONTROL_PLANE, "one", Duration::from_secs(60));
    refused(announce(&server, "one", &token, "http://127.0.0.1:1").await, 401, "unauthenticated");
    let home = TempDir::new().unwrap();
    let changes: [fn(&mut ServeHost); 5] = [
        |program| program.host_secret = None,
        |program| program.host_secret = Some("short".into()),
        |program| program.advertise = None,
        |program| program.advertise = Some("nowhere".to_owned()),
        |program| program.register = Some("ftp://example.org".to_owned()),
    ];
    for change in changes {
        let mut program = program(&server, home.path(), "host.sock");
        change(&mut program);
        let error = program.run(Host::builder(), std::future::pending()).await.unwrap_err();
        assert!(matches!(error, ServerError::Config(_)), "{error:?}");
        assert!(!home.path().join("data").exists(), "nothing was opened");
    }
    server.stop().await;
}

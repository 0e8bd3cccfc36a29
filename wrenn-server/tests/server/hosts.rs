//! Real hosts, which are attended to; they boot nothing, as guests need a machine that can run them.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wrenn_core::{Host, ShutdownPolicy};
use wrenn_host::{HostService, Listener};
use wrenn_server::Server;

use crate::support::{PASSWORD, TestServer, refused, settings, text};

/// A host that is served at a Unix socket, in a directory of its own.
struct TestHost {
    name: &'static str,
    home: TempDir,
    served: Option<Served>,
}

struct Served {
    host: Host,
    service: HostService,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl TestHost {
    /// `None`, said so, where this process may not open one.
    async fn start(name: &'static str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: opening a host makes a table of the firewall, which needs root");
            return None;
        }
        let home = TempDir::new().unwrap();
        // An image by its looks: it is listed, and nothing boots from it here.
        let image = home.path().join("data/images/debian");
        std::fs::create_dir_all(&image).unwrap();
        let mut host = Self { name, home, served: None };
        host.serve().await;
        Some(host)
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("host.sock")
    }

    fn endpoint(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    async fn serve(&mut self) {
        let never = "/bin/false";
        let (data, run) = (self.home.path().join("data"), self.home.path().join("run"));
        let builder = Host::builder().data_dir(data).run_dir(run).monitor(never).pager(never).ready_slots(0);
        let host = builder.open().await.unwrap();
        let service = HostService::new(host.clone(), self.name).await.unwrap();
        let listener = Listener::unix(self.socket()).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn({
            let service = service.clone();
            async move { service.serve(listener, async { drop(stopped.await) }).await }
        });
        self.served = Some(Served { host, service, stop, serving });
    }

    /// Ends the host agent; its data stay.
    async fn stop(&mut self) {
        let Served { host, service, stop, serving } = self.served.take().unwrap();
        stop.send(()).unwrap();
        let failures = service.shutdown(ShutdownPolicy::DestroyAll, Duration::from_secs(10)).await;
        assert!(failures.is_empty(), "{failures:?}");
        serving.await.unwrap();
        host.close().await.unwrap();
    }
}

/// An operator's access token.
async fn operator(server: &TestServer) -> String {
    let config = settings(&server.database.url).resolve().unwrap();
    let other = Server::open(config).await.unwrap();
    other.create_user("root@example.org", "Root", &PASSWORD.into(), true).await.unwrap();
    text(&server.log_in("root@example.org").await["access_token"])
}

/// Waits until the query finds that.
async fn until(server: &TestServer, query: &str, expected: &str) {
    let mut found = Vec::new();
    for _ in 0..600 {
        found = server.database.query(query);
        if found == [expected] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{query}: {found:?}, and {expected:?} was waited for");
}

#[tokio::test]
async fn a_host_is_registered_told_to_drain_and_forgotten() {
    let server = TestServer::start().await;
    let root = operator(&server).await;
    let Some(mut host) = TestHost::start("one").await else { return };
    let (status, made) =
        server.call(Method::PUT, "/v1/hosts/one", &root, Some(json!({"endpoint": host.endpoint()}))).await;
    assert_eq!(status, 200, "{made}");
    until(&server, "SELECT up FROM hosts WHERE name = 'one'", "t").await;
    let (_, found) = server.get("/v1/hosts/one", &root).await;
    assert!(found["memory_mib"].as_i64().unwrap() > 0 && found["vcpus"].as_i64().unwrap() > 0, "{found}");
    assert_eq!(text(&found["host_id"]).len(), 6);
    let drain =
        server.call(Method::PUT, "/v1/hosts/one/draining", &root, Some(json!({"draining": true}))).await;
    assert_eq!((drain.0.as_u16(), &drain.1["draining"]), (200, &json!(true)));
    let client = host.served.as_ref().unwrap().service.client();
    for tries in 0.. {
        if client.describe().await.unwrap().draining {
            break;
        }
        assert!(tries < 300, "the host was never told");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (name, endpoint) in [("One", "unix:/x"), ("one", "ftp://x"), ("one", "http://10.0.0.1:1")] {
        let path = format!("/v1/hosts/{name}");
        let put = server.call(Method::PUT, &path, &root, Some(json!({ "endpoint": endpoint })));
        refused(put.await, 400, "invalid_request");
    }
    assert_eq!(server.call(Method::DELETE, "/v1/hosts/one", &root, None).await.0, 204);
    refused(server.get("/v1/hosts/one", &root).await, 404, "not_found");
    host.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn what_the_host_does_not_have_is_over_and_what_it_cannot_boot_never_was() {
    let Some(mut host) = TestHost::start("one").await else { return };
    let endpoint = host.endpoint();
    let server =
        TestServer::start_with(|settings| settings.hosts = Some(vec![format!("one={endpoint}")])).await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
    until(&server, "SELECT up FROM hosts WHERE name = 'one'", "t").await;
    // As a task left them that died, or as they were before the host lost them.
    for (id, state) in [
        ("sandbox000000001", "running"),
        ("sandbox000000002", "creating"),
        ("sandbox000000003", "destroying"),
    ] {
        server.enter_sandbox(&team, id, state);
    }
    server.database.query("UPDATE sandboxes SET host = 'one', lease_until = now() - interval '1 s'");
    let states = "SELECT string_agg(state, ' ' ORDER BY id) FROM sandboxes";
    until(&server, states, "destroyed failed destroyed").await;
    until(&server, "SELECT count(*) FROM sandboxes WHERE cleared", "3").await;
    host.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn nothing_is_lost_while_a_host_is_away_or_another_is_in_its_place() {
    let Some(mut host) = TestHost::start("one").await else { return };
    let endpoint = host.endpoint();
    let server =
        TestServer::start_with(|settings| settings.hosts = Some(vec![format!("one={endpoint}")])).await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
    until(&server, "SELECT up FROM hosts WHERE name = 'one'", "t").await;
    host.stop().await;
    server.enter_sandbox(&team, "sandbox000000001", "paused");
    server.database.query("UPDATE sandboxes SET host = 'one'");
    until(&server, "SELECT state FROM sandboxes", "missing").await;
    // Another data directory at the same address: it lacks the sandbox, and that means nothing.
    let home = std::mem::replace(&mut host.home, TempDir::new().unwrap());
    std::fs::create_dir_all(host.home.path()).unwrap();
    let link = home.path().join("host.sock");
    std::os::unix::fs::symlink(host.socket(), &link).unwrap();
    host.serve().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(server.database.query("SELECT state FROM sandboxes"), ["missing"]);
    assert_eq!(server.database.query("SELECT up FROM hosts WHERE name = 'one'"), ["f"]);
    host.stop().await;
    std::fs::remove_file(&link).unwrap();
    // The host itself again: it is asked, and what it says counts.
    host.home = home;
    host.serve().await;
    until(&server, "SELECT state FROM sandboxes", "destroyed").await;
    host.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn two_control_planes_attend_to_one_host() {
    let Some(mut host) = TestHost::start("one").await else { return };
    let endpoint = host.endpoint();
    let server =
        TestServer::start_with(|settings| settings.hosts = Some(vec![format!("one={endpoint}")])).await;
    let other = TestServer::beside(&server.database.url).await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
    until(&server, "SELECT up FROM hosts WHERE name = 'one'", "t").await;
    for n in 0..20 {
        server.enter_sandbox(&team, &format!("sandbox0000000{n:02}"), "running");
    }
    server.database.query("UPDATE sandboxes SET host = 'one'");
    until(&server, "SELECT count(*) FROM sandboxes WHERE state = 'destroyed'", "20").await;
    // Each was changed once, whichever of them saw it first.
    let changes = "SELECT count(*) FROM audit_log WHERE action = 'sandbox.reconcile'";
    until(&server, changes, "20").await;
    assert_eq!(server.database.query("SELECT DISTINCT version FROM sandboxes"), ["2"]);
    host.stop().await;
    other.stop().await;
    server.stop().await;
}

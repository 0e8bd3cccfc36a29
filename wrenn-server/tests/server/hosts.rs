//! Real hosts, which are attended to; they boot nothing, as guests need a machine that can run them.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{TestHost, TestServer, refused, text, until};

#[tokio::test]
async fn a_host_is_registered_told_to_drain_and_forgotten() {
    let server = TestServer::start().await;
    let root = server.operator().await;
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
    // It keeps the service.
    drop(client);
    host.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn what_the_host_does_not_have_is_over_and_what_it_cannot_boot_never_was() {
    let Some(mut host) = TestHost::start("one").await else { return };
    let server = host.server().await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
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
    let server = host.server().await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
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
    let server = host.server().await;
    let other = TestServer::beside(&server.database.url).await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
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

#[tokio::test]
async fn a_paused_sandbox_that_is_damaged_is_not_lost_and_can_be_removed() {
    let Some(mut host) = TestHost::start("one").await else { return };
    let server = host.server().await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
    host.stop().await;
    let id = "sandbox000000001";
    let store = host.home.path().join("data/sandboxes").join(id);
    std::fs::create_dir_all(store.join("snapshots/1")).unwrap();
    std::fs::write(store.join("snapshots/1/index.json"), "no index").unwrap();
    server.enter_sandbox(&team, id, "missing");
    server.database.query("UPDATE sandboxes SET host = 'one'");
    // The host does not list it, and it is not taken for gone.
    host.serve().await;
    until(&server, "SELECT state FROM sandboxes", "paused").await;
    let path = format!("/v1/sandboxes/{id}");
    refused(server.post(&format!("{path}/resume"), &token, json!({})).await, 502, "host_failed");
    assert_eq!(server.call(Method::DELETE, &path, &token, None).await.0, 204);
    assert!(!store.exists());
    until(&server, "SELECT state FROM sandboxes WHERE cleared", "destroyed").await;
    host.stop().await;
    server.stop().await;
}

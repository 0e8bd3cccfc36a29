//! Clients, hosts and servers that are gone in the middle of something.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::support::{Api, HostAgent, eventually, kept, text};

#[tokio::test]
async fn a_pause_that_began_comes_to_its_end_without_its_client() {
    let api = Api::start().await;
    let id = api.sandbox(json!({})).await;
    let pause = api.request(Method::POST, &format!("/v1/sandboxes/{id}/pause")).send();
    // Long enough to begin it, and too short for an end.
    let left = tokio::time::timeout(Duration::from_millis(150), pause).await;
    assert!(left.is_err(), "it was over before its client could leave");
    eventually("it is paused", async || api.state(&id).await == "paused").await;
    api.call(Method::POST, &format!("/v1/sandboxes/{id}/resume"), None, 200).await;
    api.run(&id, "true").await;
}

#[tokio::test]
async fn a_host_killed_in_the_middle_of_a_create_neither_loses_nor_leaks() {
    let mut host = HostAgent::start();
    let api = Api::with_host(&host).await;
    let steady = api.sandbox(json!({})).await;
    api.run(&steady, "echo still here > /root/file").await;
    let new = json!({"template": "debian", "timeout_seconds": 0});
    let create = api.answer(Method::POST, "/v1/sandboxes", Some(new));
    let kill = async {
        eventually("it is being made", async || {
            api.database.query("SELECT count(*) FROM sandboxes WHERE state = 'creating'") == ["1"]
        })
        .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        host.kill();
    };
    let ((status, body), ()) = tokio::join!(create, kill);
    assert_eq!((status.as_u16(), text(&body["error"]["code"])), (503, "host_unavailable".to_owned()));
    eventually("the other is missing", async || api.state(&steady).await == "missing").await;
    host.run();
    eventually("the other is back", async || api.state(&steady).await == "running").await;
    assert_eq!(api.run(&steady, "cat /root/file").await, "still here\n");
    eventually("what was being made is decided", async || {
        api.database.query("SELECT count(*) FROM sandboxes WHERE state IN ('creating', 'missing')") == ["0"]
    })
    .await;
    // Whatever the API lists the host has, and the other way about.
    let listed = api.get("/v1/sandboxes").await;
    let listed: Vec<_> = listed["sandboxes"].as_array().unwrap().iter().map(|one| text(&one["id"])).collect();
    for id in &listed {
        api.run(id, "true").await;
        api.call(Method::DELETE, &format!("/v1/sandboxes/{id}"), None, 204).await;
    }
    eventually("the host has nothing left", async || kept(&host).is_empty()).await;
}

#[tokio::test]
async fn a_sandbox_that_was_removed_while_its_host_was_away_is_removed_there_too() {
    let mut host = HostAgent::start();
    let api = Api::with_host(&host).await;
    let id = api.sandbox(json!({})).await;
    api.call(Method::POST, &format!("/v1/sandboxes/{id}/pause"), None, 200).await;
    assert_eq!(kept(&host).len(), 1);
    host.kill();
    api.call(Method::DELETE, &format!("/v1/sandboxes/{id}"), None, 204).await;
    assert_eq!(api.state(&id).await, "gone");
    assert_eq!(kept(&host).len(), 1);
    host.run();
    eventually("the host has it no longer", async || kept(&host).is_empty()).await;
}

#[tokio::test]
async fn a_guest_that_ends_by_itself_is_over() {
    let api = Api::start().await;
    let id = api.sandbox(json!({})).await;
    let end = json!({"command": "echo b > /proc/sysrq-trigger"});
    let _ = api.answer(Method::POST, &format!("/v1/sandboxes/{id}/exec"), Some(end)).await;
    eventually("it is over", async || api.state(&id).await == "gone").await;
    let over = api.get("/v1/sandboxes?state=destroyed").await;
    assert!(text(&over["sandboxes"][0]["reason"]).contains("guest"), "{over}");
}

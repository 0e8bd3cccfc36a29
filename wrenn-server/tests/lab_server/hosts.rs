//! A host agent that is killed, and comes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::support::{Api, HostAgent, Server, eventually, kept, text};

#[tokio::test]
async fn a_host_that_is_killed_loses_nothing_and_leaks_nothing() {
    let mut host = HostAgent::start();
    let server = Server::with_host(&host).await;
    let api = Api::of(&server, "ada").await;
    killed_in_the_middle_of_a_create(&api, &mut host).await;
    away_while_a_sandbox_is_removed(&api, &mut host).await;
}

async fn killed_in_the_middle_of_a_create(api: &Api, host: &mut HostAgent) {
    let steady = api.sandbox(json!({})).await;
    api.run(&steady, "echo still here > /root/file").await;
    let answered = AtomicBool::new(false);
    let create = async {
        let new = json!({"template": "debian", "timeout_seconds": 0});
        let answer = api.answer(Method::POST, "/v1/sandboxes", Some(new)).await;
        answered.store(true, Ordering::SeqCst);
        answer
    };
    let kill = async {
        eventually("it is being made", async || {
            let creating = api.get("/v1/sandboxes?state=creating").await;
            assert!(!answered.load(Ordering::SeqCst), "it was answered before the host could be killed");
            creating["sandboxes"].as_array().is_some_and(|creating| !creating.is_empty())
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
        api.get("/v1/sandboxes?state=creating,missing").await["sandboxes"] == json!([])
    })
    .await;
    // Whatever the API lists the host has, and the other way about.
    let listed = api.get("/v1/sandboxes").await;
    let listed: Vec<_> = listed["sandboxes"].as_array().unwrap().iter().map(|one| text(&one["id"])).collect();
    for id in &listed {
        api.run(id, "true").await;
        api.call(Method::DELETE, &format!("/v1/sandboxes/{id}"), None, 204).await;
    }
    eventually("the host has nothing left", async || kept(host).is_empty()).await;
}

async fn away_while_a_sandbox_is_removed(api: &Api, host: &mut HostAgent) {
    let id = api.sandbox(json!({})).await;
    api.call(Method::POST, &format!("/v1/sandboxes/{id}/pause"), None, 200).await;
    assert_eq!(kept(host).len(), 1);
    host.kill();
    api.call(Method::DELETE, &format!("/v1/sandboxes/{id}"), None, 204).await;
    assert_eq!(api.state(&id).await, "gone");
    assert_eq!(kept(host).len(), 1);
    host.run();
    eventually("the host has it no longer", async || kept(host).is_empty()).await;
}

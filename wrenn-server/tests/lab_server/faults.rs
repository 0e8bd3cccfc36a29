//! Clients and guests that are gone in the middle of something.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::support::{Api, eventually, text};

pub(crate) async fn a_pause_that_began_comes_to_its_end_without_its_client(api: Api) {
    let id = api.sandbox(json!({})).await;
    let pause = api.request(Method::POST, &format!("/v1/sandboxes/{id}/pause")).send();
    // Long enough to begin it, and too short for an end.
    let left = tokio::time::timeout(Duration::from_millis(150), pause).await;
    assert!(left.is_err(), "it was over before its client could leave");
    eventually("it is paused", async || api.state(&id).await == "paused").await;
    api.call(Method::POST, &format!("/v1/sandboxes/{id}/resume"), None, 200).await;
    api.run(&id, "true").await;
}

pub(crate) async fn a_guest_that_ends_by_itself_is_over(api: Api) {
    let id = api.sandbox(json!({})).await;
    let end = json!({"command": "echo b > /proc/sysrq-trigger"});
    let _ = api.answer(Method::POST, &format!("/v1/sandboxes/{id}/exec"), Some(end)).await;
    eventually("it is over", async || api.state(&id).await == "gone").await;
    let over = api.get("/v1/sandboxes?state=destroyed").await;
    assert!(text(&over["sandboxes"][0]["reason"]).contains("guest"), "{over}");
}

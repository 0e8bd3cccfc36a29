//! API keys.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{TestServer, answer, refused, text};

async fn with_key(server: &TestServer, path: &str, key: &str) -> (reqwest::StatusCode, Value) {
    answer(server.request(Method::GET, path).header("x-api-key", key)).await
}

#[tokio::test]
async fn a_key_is_shown_once_and_only_its_hash_is_kept() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let (status, made) = server.post("/v1/keys", &token, json!({"name": "laptop"})).await;
    assert_eq!(status, 201, "{made}");
    let key = text(&made["key"]);
    assert!(key.starts_with("wrn_") && key.starts_with(&text(&made["prefix"])));
    assert_eq!(made["last_used_at"], Value::Null);
    let (status, list) = with_key(&server, "/v1/keys", &key).await;
    assert_eq!(status, 200, "{list}");
    assert_eq!(list["keys"][0]["name"], "laptop");
    assert!(!list.to_string().contains(&key));
    let list = server.get("/v1/keys", &token).await.1;
    assert!(list["keys"][0]["last_used_at"].is_string(), "{list}");
    let stored = server.database.query("SELECT k::text || encode(key_hash, 'escape') FROM api_keys k");
    assert!(!stored[0].contains(&key[10..]), "{stored:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_revoked_key_opens_nothing() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let made = server.post("/v1/keys", &token, json!({"name": "laptop"})).await.1;
    let path = format!("/v1/keys/{}", text(&made["id"]));
    let bob = server.account("bob@example.org").await;
    refused(server.call(Method::DELETE, &path, &bob, None).await, 404, "not_found");
    assert_eq!(server.call(Method::DELETE, &path, &token, None).await.0, 204);
    refused(server.call(Method::DELETE, &path, &token, None).await, 404, "not_found");
    refused(with_key(&server, "/v1/keys", &text(&made["key"])).await, 401, "unauthenticated");
    server.stop().await;
}

#[tokio::test]
async fn keys_do_not_make_keys() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let key = text(&server.post("/v1/keys", &token, json!({"name": "laptop"})).await.1["key"]);
    let request = server.request(Method::POST, "/v1/keys").header("x-api-key", &key);
    refused(answer(request.json(&json!({"name": "more"}))).await, 403, "forbidden");
    refused(with_key(&server, "/v1/me", &key).await, 403, "forbidden");
    for not in ["wrn_", "x", &key[1..]] {
        refused(with_key(&server, "/v1/keys", not).await, 401, "unauthenticated");
    }
    server.stop().await;
}

#[tokio::test]
async fn names_of_keys_are_checked() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    for body in
        [json!({"name": ""}), json!({"name": "x".repeat(101)}), json!({"name": "a\u{0}"}), json!({"name": 1})]
    {
        refused(server.post("/v1/keys", &token, body).await, 400, "invalid_request");
    }
    server.stop().await;
}

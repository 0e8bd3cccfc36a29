//! What is wrong with a request is said in one form, whatever it is.

use reqwest::Method;
use serde_json::json;

use crate::support::{TestServer, answer, refused};

#[tokio::test]
async fn every_fault_of_a_body_has_a_code() {
    let server = TestServer::start().await;
    let send = |body: Vec<u8>| {
        answer(
            server
                .request(Method::POST, "/v1/auth/login")
                .header("content-type", "application/json")
                .body(body),
        )
    };
    for malformed in ["", "{", "nonsense", "{\"email\":\"a\",\"password\":\"b\"} x", "\u{feff}{}"] {
        refused(send(malformed.as_bytes().to_vec()).await, 400, "malformed_json");
    }
    refused(send(b"{\"email\":\"\xff\xfe\"}".to_vec()).await, 400, "malformed_json");
    for wrong in
        ["[]", "{}", "{\"email\":1,\"password\":\"x\"}", "{\"email\":\"a\",\"password\":\"x\",\"more\":1}"]
    {
        refused(send(wrong.as_bytes().to_vec()).await, 400, "invalid_request");
    }
    let big = format!("{{\"email\":\"{}\"}}", "x".repeat(2 << 20));
    refused(send(big.into_bytes()).await, 413, "body_too_large");
    let text = server.request(Method::POST, "/v1/auth/login").body("email=a");
    refused(answer(text).await, 415, "unsupported_media_type");
    server.stop().await;
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_apart() {
    let server = TestServer::start().await;
    refused(server.get("/nothing/here", "").await, 404, "not_found");
    refused(server.get("/v1/teams/../../etc/passwd", "").await, 404, "not_found");
    refused(server.get("/v1/auth/login", "").await, 405, "method_not_allowed");
    refused(server.call(Method::DELETE, "/health", "", None).await, 405, "method_not_allowed");
    let token = server.account("ada@example.org").await;
    for id in ["x", "%ff", "00000000-0000-0000-0000-000000000000", "..%2f..%2fetc"] {
        refused(server.get(&format!("/v1/teams/{id}"), &token).await, 404, "not_found");
        refused(server.call(Method::DELETE, &format!("/v1/keys/{id}"), &token, None).await, 404, "not_found");
    }
    server.stop().await;
}

#[tokio::test]
async fn every_answer_carries_an_id_and_a_client_may_choose_it() {
    let server = TestServer::start().await;
    let response = server.request(Method::GET, "/nothing").send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"].len(), 36);
    let response =
        server.request(Method::GET, "/health").header("x-request-id", "mine").send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    server.stop().await;
}

#[tokio::test]
async fn pages_of_named_origins_may_call() {
    let server = TestServer::start_with(|settings| {
        settings.cors_origins = Some(vec!["https://app.example.org".to_owned()]);
    })
    .await;
    let allowed = async |origin: &str| {
        let request = server.request(Method::OPTIONS, "/v1/me").header("origin", origin);
        let request = request.header("access-control-request-method", "GET");
        let response = request.header("access-control-request-headers", "x-api-key").send().await.unwrap();
        response
            .headers()
            .get("access-control-allow-origin")
            .map(|origin| origin.to_str().unwrap().to_owned())
    };
    assert_eq!(allowed("https://app.example.org").await.as_deref(), Some("https://app.example.org"));
    assert_eq!(allowed("https://evil.example.org").await, None);
    server.stop().await;
}

#[tokio::test]
async fn metrics_name_routes_and_never_paths() {
    let server = TestServer::start().await;
    server.get("/v1/teams/secret-in-a-path", "").await;
    refused(server.post("/v1/auth/login", "", json!({})).await, 400, "invalid_request");
    let metrics = server.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("wrenn_http_requests_total{"), "{metrics}");
    assert!(metrics.contains("route=\"/v1/teams/{team}\""), "{metrics}");
    assert!(!metrics.contains("secret-in-a-path"), "{metrics}");
    server.stop().await;
}

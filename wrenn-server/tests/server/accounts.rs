//! Signing up, logging in, and sessions.

use reqwest::Method;
use serde_json::json;

use crate::support::{PASSWORD, TestServer, answer, refused, text};

#[tokio::test]
async fn who_signs_up_can_log_in_and_has_a_team() {
    let server = TestServer::start().await;
    let token = server.account("Ada@Example.org").await;
    let (status, me) = server.get("/v1/me", &token).await;
    assert_eq!((status.as_u16(), &me["email"]), (200, &json!("ada@example.org")));
    assert_eq!(me["teams"].as_array().unwrap().len(), 1);
    assert_eq!(me["teams"][0]["role"], "owner");
    assert_eq!(me["operator"], false);
    let rows = server.database.query("SELECT password_hash FROM users");
    assert!(rows[0].starts_with("$argon2id$"), "{rows:?}");
    server.stop().await;
}

#[tokio::test]
async fn signing_up_again_says_the_same_and_changes_nothing() {
    let server = TestServer::start().await;
    server.account("ada@example.org").await;
    let again = json!({"email": "ADA@example.org", "password": "another password"});
    let (status, body) = server.post("/v1/auth/signup", "", again.clone()).await;
    assert_eq!((status.as_u16(), body), (202, json!({"status": "accepted"})));
    refused(server.post("/v1/auth/login", "", again).await, 401, "invalid_credentials");
    server.log_in("ada@example.org").await;
    assert_eq!(server.database.query("SELECT count(*) FROM teams"), ["1"]);
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_address_look_alike() {
    let server = TestServer::start().await;
    server.account("ada@example.org").await;
    let wrong = server
        .post("/v1/auth/login", "", json!({"email": "ada@example.org", "password": "wrong password"}))
        .await;
    let unknown =
        server.post("/v1/auth/login", "", json!({"email": "bob@example.org", "password": PASSWORD})).await;
    assert_eq!(wrong, unknown);
    refused(wrong, 401, "invalid_credentials");
    server.stop().await;
}

#[tokio::test]
async fn a_refresh_token_is_good_once_and_its_reuse_ends_the_session() {
    let server = TestServer::start().await;
    server.account("ada@example.org").await;
    let first = server.log_in("ada@example.org").await;
    let refresh =
        |token: &serde_json::Value| server.post("/v1/auth/refresh", "", json!({"refresh_token": token}));
    let (status, second) = refresh(&first["refresh_token"]).await;
    assert_eq!(status, 200, "{second}");
    let access = text(&second["access_token"]);
    assert_eq!(server.get("/v1/me", &access).await.0, 200);
    refused(refresh(&first["refresh_token"]).await, 401, "invalid_credentials");
    refused(refresh(&second["refresh_token"]).await, 401, "invalid_credentials");
    refused(server.get("/v1/me", &access).await, 401, "unauthenticated");
    refused(refresh(&json!("wrr_made_up")).await, 401, "invalid_credentials");
    let log = server.database.query("SELECT action FROM audit_log WHERE action = 'session.reuse'");
    assert_eq!(log.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn of_many_who_show_one_refresh_token_at_most_one_gets_a_successor() {
    let server = TestServer::start().await;
    server.account("ada@example.org").await;
    let token = server.log_in("ada@example.org").await["refresh_token"].clone();
    let tries = (0..8).map(|_| server.post("/v1/auth/refresh", "", json!({"refresh_token": token.clone()})));
    let answers = futures_util::future::join_all(tries).await;
    let got: Vec<_> = answers.iter().map(|(status, _)| status.as_u16()).collect();
    assert_eq!(got.iter().filter(|status| **status == 200).count(), 1, "{got:?}");
    assert_eq!(got.iter().filter(|status| **status == 401).count(), 7, "{got:?}");
    server.stop().await;
}

#[tokio::test]
async fn logging_out_ends_the_access_token_too() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let other = text(&server.log_in("ada@example.org").await["access_token"]);
    assert_eq!(server.call(Method::POST, "/v1/auth/logout", &token, None).await.0, 204);
    refused(server.get("/v1/me", &token).await, 401, "unauthenticated");
    assert_eq!(server.get("/v1/me", &other).await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_new_password_ends_the_other_sessions() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let other = text(&server.log_in("ada@example.org").await["access_token"]);
    let change = |current: &str| json!({"current": current, "new": "a quite new password"});
    refused(server.post("/v1/me/password", &token, change("not the one")).await, 401, "invalid_credentials");
    assert_eq!(server.post("/v1/me/password", &token, change(PASSWORD)).await.0, 204);
    assert_eq!(server.get("/v1/me", &token).await.0, 200);
    refused(server.get("/v1/me", &other).await, 401, "unauthenticated");
    let old = json!({"email": "ada@example.org", "password": PASSWORD});
    refused(server.post("/v1/auth/login", "", old).await, 401, "invalid_credentials");
    server.stop().await;
}

#[tokio::test]
async fn accounts_that_cannot_be_are_refused() {
    let server = TestServer::start().await;
    let sign_up = |email: &str, password: &str, name: &str| {
        server.post("/v1/auth/signup", "", json!({"email": email, "password": password, "name": name}))
    };
    refused(sign_up("no address", PASSWORD, "").await, 400, "invalid_request");
    refused(sign_up("ada@example.org", "short", "").await, 400, "invalid_request");
    refused(sign_up("ada@example.org", &"x".repeat(257), "").await, 400, "invalid_request");
    refused(sign_up("ada@example.org", PASSWORD, &"n".repeat(101)).await, 400, "invalid_request");
    refused(sign_up("ada\0@example.org", PASSWORD, "").await, 400, "invalid_request");
    assert_eq!(server.database.query("SELECT count(*) FROM users"), ["0"]);
    server.stop().await;
}

#[tokio::test]
async fn too_many_attempts_are_told_when_to_come_back() {
    let server = TestServer::start_with(|settings| settings.auth_attempts_per_minute = Some(3)).await;
    let shown = json!({"email": "ada@example.org", "password": PASSWORD});
    for _ in 0..3 {
        refused(server.post("/v1/auth/login", "", shown.clone()).await, 401, "invalid_credentials");
    }
    let response = server.request(Method::POST, "/v1/auth/login").json(&shown).send().await.unwrap();
    let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert_eq!(response.status(), 429);
    assert!((1..=21).contains(&wait), "{wait}");
    refused(server.post("/v1/auth/signup", "", shown).await, 429, "rate_limited");
    server.stop().await;
}

#[tokio::test]
async fn where_sign_up_is_closed_an_operator_makes_accounts() {
    let server =
        TestServer::start_with(|settings| settings.sign_up = Some(wrenn_server::SignUp::Closed)).await;
    let new = json!({"email": "ada@example.org", "password": PASSWORD});
    refused(server.post("/v1/auth/signup", "", new).await, 403, "sign_up_closed");
    let settings = crate::support::settings(&server.database.url);
    let other = wrenn_server::Server::open(settings.resolve().unwrap()).await.unwrap();
    other.create_user("ada@example.org", "Ada", &PASSWORD.into(), true).await.unwrap();
    let again = other.create_user("ada@example.org", "Ada", &PASSWORD.into(), true).await;
    assert!(matches!(again, Err(wrenn_server::ServerError::AddressTaken)));
    let token = text(&server.log_in("ada@example.org").await["access_token"]);
    assert_eq!(server.get("/v1/me", &token).await.1["operator"], true);
    server.stop().await;
}

#[tokio::test]
async fn tokens_that_are_none_are_refused() {
    let server = TestServer::start().await;
    for header in ["Bearer", "Bearer x", "Basic eDp5", "Bearer a.b.c", ""] {
        let request = server.request(Method::GET, "/v1/me").header("authorization", header);
        refused(answer(request).await, 401, "unauthenticated");
    }
    refused(server.get("/v1/me", "").await, 401, "unauthenticated");
    server.stop().await;
}

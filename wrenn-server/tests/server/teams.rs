//! Teams, roles and invitations.

use reqwest::Method;
use serde_json::json;

use crate::support::{TestServer, answer, refused, text};

#[tokio::test]
async fn an_invitation_lets_one_user_in() {
    let server = TestServer::start().await;
    let (ada, bob, eve) = (
        server.account("ada@example.org").await,
        server.account("bob@example.org").await,
        server.account("eve@example.org").await,
    );
    let team = server.team(&ada).await;
    let path = format!("/v1/teams/{team}/invitations");
    let (status, invitation) = server.post(&path, &ada, json!({"role": "admin"})).await;
    assert_eq!(status, 201, "{invitation}");
    let accept = json!({"code": invitation["code"]});
    let (status, joined) = server.post("/v1/invitations/accept", &bob, accept.clone()).await;
    assert_eq!((status.as_u16(), &joined["id"], &joined["role"]), (200, &json!(team), &json!("admin")));
    refused(server.post("/v1/invitations/accept", &eve, accept).await, 404, "not_found");
    let members = server.get(&format!("/v1/teams/{team}/members"), &bob).await.1;
    assert_eq!(members["members"].as_array().unwrap().len(), 2);
    refused(server.get(&format!("/v1/teams/{team}/members"), &eve).await, 404, "not_found");
    server.stop().await;
}

#[tokio::test]
async fn roles_bound_what_members_do() {
    let server = TestServer::start().await;
    let (ada, bob) = (server.account("ada@example.org").await, server.account("bob@example.org").await);
    let team = server.team(&ada).await;
    let invitation =
        server.post(&format!("/v1/teams/{team}/invitations"), &ada, json!({"role": "member"})).await.1;
    server.post("/v1/invitations/accept", &bob, json!({"code": invitation["code"]})).await;
    let as_bob = |method: Method, path: &str, body: serde_json::Value| {
        answer(server.request(method, path).bearer_auth(&bob).header("x-team-id", &team).json(&body))
    };
    refused(as_bob(Method::POST, "/v1/keys", json!({"name": "x"})).await, 403, "forbidden");
    let path = format!("/v1/teams/{team}");
    refused(as_bob(Method::PATCH, &path, json!({"name": "x"})).await, 403, "forbidden");
    refused(
        as_bob(Method::POST, &format!("{path}/invitations"), json!({"role": "member"})).await,
        403,
        "forbidden",
    );
    let ada_id = text(&server.get("/v1/me", &ada).await.1["id"]);
    let bob_id = text(&server.get("/v1/me", &bob).await.1["id"]);
    refused(as_bob(Method::DELETE, &format!("{path}/members/{ada_id}"), json!({})).await, 403, "forbidden");
    // The last owner can neither leave nor step down.
    let own = format!("{path}/members/{ada_id}");
    refused(server.call(Method::DELETE, &own, &ada, None).await, 409, "conflict");
    refused(server.call(Method::PATCH, &own, &ada, Some(json!({"role": "member"}))).await, 409, "conflict");
    let bobs = format!("{path}/members/{bob_id}");
    assert_eq!(server.call(Method::PATCH, &bobs, &ada, Some(json!({"role": "owner"}))).await.0, 204);
    assert_eq!(as_bob(Method::POST, "/v1/keys", json!({"name": "x"})).await.0, 201);
    assert_eq!(server.call(Method::DELETE, &own, &ada, None).await.0, 204);
    refused(server.get(&path, &ada).await, 404, "not_found");
    server.stop().await;
}

#[tokio::test]
async fn two_owners_who_remove_each_other_do_not_both_succeed() {
    let server = TestServer::start().await;
    let (ada, bob) = (server.account("ada@example.org").await, server.account("bob@example.org").await);
    let team = server.team(&ada).await;
    let invitation =
        server.post(&format!("/v1/teams/{team}/invitations"), &ada, json!({"role": "admin"})).await.1;
    server.post("/v1/invitations/accept", &bob, json!({"code": invitation["code"]})).await;
    let id = async |token: &str| text(&server.get("/v1/me", token).await.1["id"]);
    let (ada_id, bob_id) = (id(&ada).await, id(&bob).await);
    let member = |id: &str| format!("/v1/teams/{team}/members/{id}");
    server.call(Method::PATCH, &member(&bob_id), &ada, Some(json!({"role": "owner"}))).await;
    let (first, second) = (member(&bob_id), member(&ada_id));
    tokio::join!(
        server.call(Method::DELETE, &first, &ada, None),
        server.call(Method::DELETE, &second, &bob, None)
    );
    let owners = server
        .database
        .query(&format!("SELECT count(*) FROM memberships WHERE team_id = '{team}' AND role = 'owner'"));
    assert_eq!(owners, ["1"]);
    server.stop().await;
}

#[tokio::test]
async fn a_request_names_the_team_that_it_is_for() {
    let server = TestServer::start().await;
    let ada = server.account("ada@example.org").await;
    let (status, second) = server.post("/v1/teams", &ada, json!({"name": "second"})).await;
    assert_eq!((status.as_u16(), &second["role"]), (201, &json!("owner")));
    let in_team =
        |team: &str| server.request(Method::POST, "/v1/keys").bearer_auth(&ada).header("x-team-id", team);
    let (status, key) = answer(in_team(&text(&second["id"])).json(&json!({"name": "k"}))).await;
    assert_eq!(status, 201, "{key}");
    assert_eq!(server.get("/v1/keys", &ada).await.1["keys"], json!([]));
    let bob = server.account("bob@example.org").await;
    let bobs = server.team(&bob).await;
    for not in [bobs.as_str(), "no-uuid", ""] {
        refused(answer(in_team(not).json(&json!({"name": "k"}))).await, 404, "not_found");
    }
    server.stop().await;
}

#[tokio::test]
async fn admins_see_what_was_done() {
    let server = TestServer::start().await;
    let ada = server.account("ada@example.org").await;
    for name in ["one", "two"] {
        server.post("/v1/keys", &ada, json!({"name": name})).await;
    }
    let page = server.get("/v1/audit?limit=2", &ada).await.1;
    let entries = page["entries"].as_array().unwrap();
    assert_eq!((entries.len(), &entries[0]["detail"]["name"]), (2, &json!("two")));
    assert!(text(&entries[0]["actor"]).starts_with("user:"));
    let rest = server.get(&format!("/v1/audit?before={}", entries[1]["id"]), &ada).await.1;
    assert_eq!(rest["entries"][0]["action"], "user.sign_up");
    refused(server.get("/v1/audit?limit=0", &ada).await, 400, "invalid_request");
    refused(server.get("/v1/audit?limit=x", &ada).await, 400, "invalid_request");
    server.stop().await;
}

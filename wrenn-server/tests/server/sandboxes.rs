//! Sandboxes as far as they go without a host that answers.

use reqwest::Method;
use serde_json::{Value, json};
use wrenn_server::Server;

use crate::support::{TestServer, answer, refused, settings, text};

#[tokio::test]
async fn what_cannot_be_asked_for_is_refused_by_field() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let wrong = [
        ("vcpus", json!({"template": "debian", "vcpus": 0})),
        ("vcpus", json!({"template": "debian", "vcpus": 33})),
        ("vcpus", json!({"template": "debian", "vcpus": "two"})),
        ("memory_mib", json!({"template": "debian", "memory_mib": 1})),
        ("timeout_seconds", json!({"template": "debian", "timeout_seconds": 9_000_000})),
        ("timeout_seconds", json!({"template": "debian", "timeout_seconds": -1})),
        ("on_timeout", json!({"template": "debian", "on_timeout": "explode"})),
        ("metadata", json!({"template": "debian", "metadata": {"": "x"}})),
        ("metadata", json!({"template": "debian", "metadata": {"a": "\u{0}"}})),
        ("metadata", json!({"template": "debian", "metadata": {"a": 1}})),
        ("env", json!({"template": "debian", "env": {"A=B": "x"}})),
        ("hostname", json!({"template": "debian", "hostname": "-x"})),
        ("egress", json!({"template": "debian", "egress": {"internet": true, "deny": vec!["x"; 300]}})),
        ("template", json!({})),
        ("colour", json!({"template": "debian", "colour": "red"})),
    ];
    for (field, body) in wrong {
        let answer = server.post("/v1/sandboxes", &token, body).await;
        assert!(answer.1["error"]["message"].as_str().unwrap().contains(field), "{field}: {}", answer.1);
        refused(answer, 400, "invalid_request");
    }
    for template in ["debian", "../../etc", "", "a\u{0}b", &"x".repeat(300)] {
        refused(server.post("/v1/sandboxes", &token, json!({"template": template})).await, 404, "not_found");
    }
    assert_eq!(server.database.query("SELECT count(*) FROM sandboxes"), ["0"]);
    server.stop().await;
}

#[tokio::test]
async fn without_room_there_is_no_sandbox_and_a_time_to_come_back() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    server.dead_host();
    server.database.query("UPDATE hosts SET images = '{debian}', up = false");
    let request = server.request(Method::POST, "/v1/sandboxes").bearer_auth(&token);
    let response = request.json(&json!({"template": "debian"})).send().await.unwrap();
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(response.status(), 503);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "no_capacity");
    // The key stands for nothing, as nothing was made.
    let request = server.request(Method::POST, "/v1/sandboxes").bearer_auth(&token);
    let request = request.header("idempotency-key", "k").json(&json!({"template": "debian"}));
    refused(answer(request).await, 503, "no_capacity");
    assert_eq!(server.database.query("SELECT count(*) FROM idempotency_keys"), ["0"]);
    server.stop().await;
}

#[tokio::test]
async fn lists_are_narrowed_and_come_in_pages() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
    for n in 0..7 {
        server.enter_sandbox(
            &team,
            &format!("sandbox00000000{n}"),
            if n % 2 == 0 { "running" } else { "paused" },
        );
    }
    server.enter_sandbox(&team, "destroyed0000000", "destroyed");
    let mut seen = Vec::new();
    let mut path = "/v1/sandboxes?limit=3".to_owned();
    loop {
        let (status, page) = server.get(&path, &token).await;
        assert_eq!(status, 200, "{page}");
        let ids = page["sandboxes"].as_array().unwrap().iter().map(|sandbox| text(&sandbox["id"]));
        seen.extend(ids);
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/sandboxes?limit=3&cursor={}", cursor.replace('+', "%2B"));
    }
    let expected: Vec<_> = (0..7).rev().map(|n| format!("sandbox00000000{n}")).collect();
    assert_eq!(seen, expected);
    let count = async |query: &str| {
        let (status, page) = server.get(&format!("/v1/sandboxes?{query}"), &token).await;
        assert_eq!(status, 200, "{page}");
        page["sandboxes"].as_array().unwrap().len()
    };
    assert_eq!(count("state=paused").await, 3);
    assert_eq!(count("state=paused,destroyed").await, 4);
    assert_eq!(count("metadata=%7B%22of%22:%22running%22%7D").await, 4);
    assert_eq!(count("metadata=%7B%22of%22:%22nothing%22%7D").await, 0);
    for wrong in
        ["state=asleep", "limit=0", "limit=101", "limit=x", "cursor=x", "metadata=x", "metadata=%5B1%5D"]
    {
        refused(server.get(&format!("/v1/sandboxes?{wrong}"), &token).await, 400, "invalid_request");
    }
    server.stop().await;
}

#[tokio::test]
async fn each_state_says_what_can_be_done_in_it() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
    for state in ["running", "paused", "creating", "pausing", "missing", "failed", "destroyed"] {
        server.enter_sandbox(&team, &format!("{state:0<16}"), state);
    }
    let post = async |state: &str, what: &str, body: Value| {
        server.post(&format!("/v1/sandboxes/{state:0<16}/{what}"), &token, body).await
    };
    refused(post("running", "resume", json!({})).await, 409, "wrong_state");
    refused(post("paused", "pause", json!({})).await, 409, "wrong_state");
    refused(post("paused", "exec", json!({"command": "true"})).await, 409, "wrong_state");
    refused(post("creating", "pause", json!({})).await, 409, "sandbox_busy");
    refused(post("pausing", "exec", json!({"command": "true"})).await, 409, "sandbox_busy");
    refused(post("missing", "pause", json!({})).await, 503, "host_unavailable");
    refused(post("missing", "exec", json!({"command": "true"})).await, 503, "host_unavailable");
    for over in ["failed", "destroyed"] {
        refused(post(over, "pause", json!({})).await, 404, "not_found");
        refused(server.get(&format!("/v1/sandboxes/{over:0<16}"), &token).await, 404, "not_found");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_operation_whose_host_saw_nothing_of_it_leaves_everything_as_it_was() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
    server.enter_sandbox(&team, "sandbox000000001", "running");
    server.enter_sandbox(&team, "sandbox000000002", "paused");
    let pause = server.post("/v1/sandboxes/sandbox000000001/pause", &token, json!({})).await;
    refused(pause, 503, "host_unavailable");
    let resume = server.post("/v1/sandboxes/sandbox000000002/resume", &token, json!({})).await;
    refused(resume, 503, "host_unavailable");
    let snapshot = json!({"sandbox": "sandbox000000001", "name": "mine"});
    refused(server.post("/v1/snapshots", &token, snapshot).await, 503, "host_unavailable");
    assert_eq!(server.get("/v1/snapshots", &token).await.1["snapshots"], json!([]));
    let states = server.database.query("SELECT state FROM sandboxes ORDER BY id");
    // Its host may have been given up meanwhile.
    assert!(states == ["running", "paused"] || states == ["missing", "missing"], "{states:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_sandbox_is_removed_though_its_host_does_not_answer() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
    server.enter_sandbox(&team, "sandbox000000001", "running");
    let path = "/v1/sandboxes/sandbox000000001";
    assert_eq!(server.call(Method::DELETE, path, &token, None).await.0, 204);
    refused(server.get(path, &token).await, 404, "not_found");
    refused(server.call(Method::DELETE, path, &token, None).await, 404, "not_found");
    // It stays known until its host was seen without it.
    let row = server.database.query("SELECT state || ' ' || cleared FROM sandboxes");
    assert_eq!(row, ["destroyed false"]);
    server.stop().await;
}

#[tokio::test]
async fn of_two_control_planes_one_does_what_both_are_asked_for() {
    let server = TestServer::start().await;
    let other = TestServer::beside(&server.database.url).await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
    for n in 0..10 {
        let id = format!("sandbox00000000{n}");
        server.enter_sandbox(&team, &id, "running");
        let path = format!("/v1/sandboxes/{id}");
        let (one, two) = tokio::join!(
            server.call(Method::DELETE, &path, &token, None),
            other.call(Method::DELETE, &path, &token, None)
        );
        let mut both = [one.0.as_u16(), two.0.as_u16()];
        both.sort_unstable();
        // The other finds it gone, at once or after it waited.
        assert_eq!(both, [204, 404]);
    }
    let removed = "SELECT count(*) FROM audit_log WHERE action = 'sandbox.destroy'";
    assert_eq!(server.database.query(removed), ["10"]);
    other.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn sandboxes_of_a_host_that_nobody_hears_of_are_missing() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let team = server.team(&token).await;
    for state in ["running", "paused", "pausing", "destroyed"] {
        server.enter_sandbox(&team, &format!("{state:0<16}"), state);
    }
    server
        .database
        .query("UPDATE sandboxes SET lease_until = now() - interval '1 s' WHERE state = 'pausing'");
    let states = async || {
        for _ in 0..200 {
            let states = server.database.query("SELECT state FROM sandboxes ORDER BY id");
            if states == ["destroyed", "missing", "missing", "missing"] {
                return states;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        server.database.query("SELECT state FROM sandboxes ORDER BY id")
    };
    assert_eq!(states().await, ["destroyed", "missing", "missing", "missing"]);
    let (_, found) = server.get("/v1/sandboxes/running000000000", &token).await;
    assert_eq!((&found["state"], &found["reason"]), (&json!("missing"), &json!("its host does not answer")));
    server.stop().await;
}

#[tokio::test]
async fn hosts_that_cannot_be_stop_a_server_from_starting() {
    let server = TestServer::start().await;
    for wrong in ["one=nonsense", "one=http://10.0.0.1:7070", "One=unix:/x"] {
        let mut settings = settings(&server.database.url);
        settings.hosts = Some(vec![wrong.to_owned()]);
        let opened = match settings.resolve() {
            Ok(config) => Server::open(config).await.map(drop).map_err(|error| format!("{error:?}")),
            Err(error) => Err(error.to_string()),
        };
        assert!(opened.as_ref().is_err_and(|error| error.contains("hosts")), "{wrong}: {opened:?}");
    }
    server.stop().await;
}

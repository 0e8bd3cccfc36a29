//! Who may do what: the token, before and after it is set, on every route.

mod support;

use serde_json::json;
use support::http::send;
use support::{TestAgent, eventually, finish, sh, shell};
use wrenn_agent_api::{AccessToken, AgentClient, AgentError, Init, ProcessEvent};

const ROUTES: &[&str] = &[
    "GET /files?path=/etc/passwd",
    "POST /files?path=/tmp/should-never-be-written",
    "GET /envs",
    "GET /metrics",
    "GET /nowhere",
    "POST /process.Process/Start",
    "POST /process.Process/Connect",
    "POST /process.Process/List",
    "POST /process.Process/Update",
    "POST /process.Process/SendInput",
    "POST /process.Process/StreamInput",
    "POST /process.Process/CloseStdin",
    "POST /process.Process/SendSignal",
    "POST /filesystem.Filesystem/Stat",
    "POST /filesystem.Filesystem/ListDir",
    "POST /filesystem.Filesystem/MakeDir",
    "POST /filesystem.Filesystem/Move",
    "POST /filesystem.Filesystem/Remove",
    "GET /process.Process/List?connect=v1&encoding=json&message=%7B%7D",
];

#[tokio::test]
async fn every_route_needs_the_token() {
    let agent = TestAgent::start();
    let refused = async |token: &[&str]| {
        for route in ROUTES {
            let headers = [token, &["content-type: application/json"]].concat();
            let answer = send(agent.address, route, &headers, b"{}").await;
            assert_eq!(answer.status, 401, "{route}");
            let code = if route.contains("/process.") || route.contains("/filesystem.") {
                json!("unauthenticated")
            } else {
                json!(401)
            };
            assert_eq!(answer.json()["code"], code, "{route}");
        }
        assert_eq!(send(agent.address, "GET /health", token, b"").await.status, 204);
    };
    // Before there is a token nobody has it.
    refused(&[]).await;
    refused(&["x-access-token: "]).await;
    refused(&["x-access-token: guess"]).await;
    // The first /init must bring one.
    assert_eq!(send(agent.address, "POST /init", &[], b"{}").await.status, 400);
    let claim = br#"{"accessToken":"right"}"#;
    assert_eq!(send(agent.address, "POST /init", &[], claim).await.status, 204);
    for token in [&[][..], &["x-access-token: "], &["x-access-token: righ"], &["x-access-token: right2"]] {
        refused(token).await;
        assert_eq!(send(agent.address, "POST /init", token, claim).await.status, 401);
    }
    assert!(!std::fs::exists("/tmp/should-never-be-written").unwrap());
    let list = send(
        agent.address,
        "POST /process.Process/List",
        &["x-access-token: right", "content-type: application/json"],
        b"{}",
    );
    assert_eq!(list.await.status, 200);
}

#[tokio::test]
async fn the_token_can_be_changed_by_who_has_it() {
    let (agent, client) = TestAgent::claimed().await;
    let new = AccessToken::random();
    client.init(Init::now().token(new.clone())).await.unwrap();
    let error = client.list().await.unwrap_err();
    assert!(matches!(error, AgentError::Unauthenticated { .. }), "{error:?}");
    let error = client.init(Init::now()).await.unwrap_err();
    assert!(matches!(error, AgentError::Unauthenticated { .. }), "{error:?}");
    let client = client.with_token(new);
    client.list().await.unwrap();
    let error = agent.client("other").read_file("/etc/passwd").await.unwrap_err();
    assert!(matches!(error, AgentError::Unauthenticated { .. }), "{error:?}");
}

#[tokio::test]
async fn a_refused_init_changes_nothing() {
    let (agent, client) = TestAgent::claimed().await;
    let bad = br#"{"accessToken":"new","envVars":{"A":"1"},"timestamp":"yesterday"}"#;
    let answer = send(agent.address, "POST /init", &["x-access-token: token-of-the-test"], bad).await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["message"].as_str().unwrap().starts_with("timestamp"));
    assert_eq!(sh(&client, "echo $A").await.stdout, b"\n");
}

#[tokio::test]
async fn signed_urls_work_until_they_expire() {
    let (agent, _client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f").display().to_string();
    std::fs::write(&path, "signed").unwrap();
    let sign = |operation: &str, user: &str, expiration: Option<u64>| {
        use base64::Engine as _;
        use sha2::Digest as _;
        let mut text = format!("{path}:{operation}:{user}:token-of-the-test");
        let mut query = format!("path={path}");
        if !user.is_empty() {
            query.push_str(&format!("&username={user}"));
        }
        if let Some(expiration) = expiration {
            text.push_str(&format!(":{expiration}"));
            query.push_str(&format!("&signature_expiration={expiration}"));
        }
        let hash = base64::engine::general_purpose::STANDARD_NO_PAD.encode(sha2::Sha256::digest(text));
        format!("{query}&signature=v1_{}", hash.replace('+', "%2B"))
    };
    let get = async |query: &str| send(agent.address, &format!("GET /files?{query}"), &[], b"").await;
    for good in [sign("read", "", None), sign("read", "root", None), sign("read", "", Some(9_999_999_999))] {
        assert_eq!(get(&good).await.body, b"signed", "{good}");
    }
    let expired = get(&sign("read", "", Some(1))).await;
    assert_eq!(expired.json(), json!({"code": 401, "message": "signature is already expired"}));
    let other = sign("read", "", None).replace("path=", "path=%2Fetc%2F..");
    for bad in [sign("write", "", None), sign("read", "", None) + "x", other] {
        assert_eq!(get(&bad).await.status, 401, "{bad}");
    }
    // Neither for another operation nor another route.
    let post = ["content-type: application/octet-stream"];
    let target = |query: &str| format!("POST /files?{query}");
    assert_eq!(send(agent.address, &target(&sign("read", "", None)), &post, b"x").await.status, 401);
    assert_eq!(send(agent.address, &target(&sign("write", "", None)), &post, b"new").await.status, 200);
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(
        send(agent.address, &format!("GET /envs?{}", sign("read", "", None)), &[], b"").await.status,
        401
    );
}

#[tokio::test]
async fn one_connection_serves_call_after_call() {
    let agent = TestAgent::start();
    let (dial, dials) = support::counting_dial(agent.address);
    let client = AgentClient::new(dial, AccessToken::random());
    client.init(Init::now()).await.unwrap();
    for _ in 0..20 {
        client.health().await.unwrap();
        assert_eq!(sh(&client, "echo hello").await.stdout, b"hello\n");
        client.start(shell("").cwd("/nope")).await.unwrap_err();
        client.write_file("/tmp/../nope\0", "").await.unwrap_err();
        client.read_file("/nope").await.unwrap_err();
        client.read_file("/etc/passwd").await.unwrap().collect(1 << 20).await.unwrap();
    }
    let dials = dials.load(std::sync::atomic::Ordering::SeqCst);
    assert!(dials <= 3, "{dials} connections for 120 calls, one after the other");
}

#[tokio::test]
async fn a_resume_cuts_connections_and_frees_commands_that_wait_for_them() {
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let script = format!("yes | head -c 50000000; touch {}", done.display());
    // A reader that has stopped reading, as one is that was left behind by a restore.
    let mut stuck = client.start(shell(&script)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!done.exists());
    client.reset();
    client.init(Init::now().resumed()).await.unwrap();
    eventually("the command goes on", || done.exists()).await;
    let error = loop {
        match stuck.next().await {
            Ok(Some(ProcessEvent::Start { .. } | ProcessEvent::Stdout(_))) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AgentError::Disconnected { .. }), "{error:?}");
    // The connection that carried the init still serves, and new ones do.
    assert_eq!(finish(client.start(shell("echo on")).await.unwrap()).await.stdout, b"on\n");
    client.reset();
    client.health().await.unwrap();
}

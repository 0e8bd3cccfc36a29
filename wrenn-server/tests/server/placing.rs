//! Which host a new sandbox comes to, where some of them cannot be reached.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

use crate::support::{DEAD_HOST, TestHost, TestServer, answer, refused};

/// Lets every host have an image, whatever it says itself.
fn all_have_debian(server: &TestServer) {
    server.database.query(
        "CREATE FUNCTION have_debian() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN NEW.images := '{debian}'; RETURN NEW; END $$",
    );
    server.database.query(
        "CREATE TRIGGER have_debian BEFORE INSERT OR UPDATE ON hosts FOR EACH ROW EXECUTE FUNCTION have_debian()",
    );
    server.database.query("UPDATE hosts SET images = '{}'");
}

/// Enters a host that is believed to be up, and that comes before any real one.
fn enter_spacious_host(server: &TestServer, name: &str, endpoint: &str, memory_mib: u64) {
    server.database.query(&format!(
        "INSERT INTO hosts (name, endpoint, up, last_seen_at, vcpus, memory_mib, available_mib)
         VALUES ('{name}', '{endpoint}', true, now(), 64, {memory_mib}, {memory_mib})"
    ));
}

async fn create(server: &TestServer, token: &str, key: &str) -> (StatusCode, Value) {
    let request = server.request(Method::POST, "/v1/sandboxes").bearer_auth(token);
    answer(request.header("idempotency-key", key).json(&json!({"template": "debian"}))).await
}

/// Which of the hosts that answer was asked in the end: the real one says that it has no such image.
#[tokio::test]
async fn a_host_that_cannot_be_reached_is_passed_over() {
    let Some(mut host) = TestHost::start("one").await else { return };
    let server = host.server().await;
    let token = server.account("ada@example.org").await;
    all_have_debian(&server);
    enter_spacious_host(&server, DEAD_HOST, "unix:/nonexistent/wrenn.sock", 1 << 40);
    // One that lives in the process of another control plane cannot be reached from this one.
    enter_spacious_host(&server, "elsewhere", "in-process", 1 << 39);
    refused(create(&server, &token, "k").await, 404, "not_found");
    let rows = server.database.query("SELECT host || ' ' || state FROM sandboxes");
    assert_eq!(rows, ["one failed"]);
    let moves =
        "SELECT string_agg(detail->>'from' || ' ' || (detail->>'to'), ', ' ORDER BY id) FROM audit_log
                 WHERE action = 'sandbox.move'";
    assert_eq!(server.database.query(moves), ["dead elsewhere, elsewhere one"]);
    host.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn where_none_can_be_reached_there_is_no_sandbox_and_the_key_is_free_again() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    all_have_debian(&server);
    for (name, memory) in [("dead-one", 3 << 30), ("dead-two", 2 << 30), ("dead-three", 1 << 30)] {
        enter_spacious_host(&server, name, &format!("unix:/nonexistent/{name}.sock"), memory);
    }
    refused(create(&server, &token, "k").await, 503, "host_unavailable");
    let rows = server.database.query("SELECT host || ' ' || state FROM sandboxes");
    assert_eq!(rows, ["dead-three failed"]);
    assert_eq!(server.database.query("SELECT count(*) FROM idempotency_keys"), ["0"]);
    server.stop().await;
}

/// Takes requests and closes their connections without an answer; how many of them were to create something.
fn break_off(socket: &Path) -> Arc<AtomicUsize> {
    let listener = UnixListener::bind(socket).unwrap();
    let creates = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&creates);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap_or(0);
            if String::from_utf8_lossy(&head[..length]).contains("/Create ") {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    creates
}

#[tokio::test]
async fn a_host_that_may_have_begun_is_the_only_one_that_is_asked() {
    let Some(mut host) = TestHost::start("one").await else { return };
    let server = host.server().await;
    let token = server.account("ada@example.org").await;
    all_have_debian(&server);
    let broken = host.home.path().join("broken.sock");
    let creates = break_off(&broken);
    enter_spacious_host(&server, "broken", &format!("unix:{}", broken.display()), 1 << 40);
    refused(create(&server, &token, "k").await, 503, "host_unavailable");
    assert_eq!(creates.load(Ordering::SeqCst), 1);
    let rows = server.database.query("SELECT host || ' ' || state FROM sandboxes");
    assert_eq!(rows, ["broken missing"]);
    // The same request again finds that one, whatever has become of it, and makes no other.
    let (status, again) = create(&server, &token, "k").await;
    assert_eq!((status.as_u16(), &again["state"]), (201, &json!("missing")), "{again}");
    assert_eq!(creates.load(Ordering::SeqCst), 1);
    assert_eq!(server.database.query("SELECT count(*) FROM sandboxes"), ["1"]);
    host.stop().await;
    server.stop().await;
}

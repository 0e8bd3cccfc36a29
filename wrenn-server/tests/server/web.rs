//! The web page, in a browser.

use std::path::Path;
use std::process::{Command, Output};

use reqwest::Method;
use serde_json::json;

use crate::support::{TestServer, answer, text};

#[expect(clippy::disallowed_methods, reason = "the browser and what drives it are programs of their own")]
fn browse(url: &str, shots: &Path) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/web/run.mjs");
    let modules = Path::new(env!("CARGO_TARGET_TMPDIR")).join("web-test");
    let mut node = Command::new("node");
    node.arg(script).args([url, "--no-guests", "--shots"]).arg(shots).env("WRENN_WEB_MODULES", modules);
    node.output().unwrap_or_else(|error| panic!("node (make setup installs it): {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_does_in_a_browser_what_it_is_for() {
    let server = TestServer::start().await;
    let (url, shots) = (server.url("/"), Path::new(env!("CARGO_TARGET_TMPDIR")).join("web-shots"));
    let seen = tokio::task::spawn_blocking(move || browse(&url, &shots)).await.unwrap();
    let (told, complaints) = (String::from_utf8_lossy(&seen.stdout), String::from_utf8_lossy(&seen.stderr));
    assert!(seen.status.success(), "{told}\n{complaints}");
    assert!(told.contains("ok pages complain about nothing"), "{told}");
    server.stop().await;
}

/// Pages set no headers of a WebSocket's request; what else is in them they offer as subprotocols.
#[tokio::test]
async fn a_websocket_may_be_for_another_team_than_the_first() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    let second = text(&server.post("/v1/teams", &token, json!({"name": "second"})).await.1["id"]);
    let bob = server.account("bob@example.org").await;
    let foreign = server.team(&bob).await;
    let open = async |team: &str| {
        let offers = format!("wrenn, wrenn.token.{token}, wrenn.team.{team}");
        let path = "/v1/sandboxes/k3v9x0q2m7b1c8za/stream";
        let (status, body) =
            answer(server.request(Method::GET, path).header("sec-websocket-protocol", offers)).await;
        assert_eq!(status, 404, "{body}");
        text(&body["error"]["message"])
    };
    assert_eq!(open(&second).await, "there is no such sandbox");
    assert_eq!(open(&foreign).await, "there is no such team");
    assert_eq!(open("none").await, "there is no such team");
    server.stop().await;
}

//! E2B's own Python library, unmodified, against this agent: see `sdk/drive.py`.
//!
//! The library finds a sandbox through a control API, which is no affair of the agent's: a few lines here answer its one
//! question with the agent's address and token.

#[path = "../../tests/shared/e2b.rs"]
mod library;
mod support;

use std::path::Path;

use support::TestAgent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread")]
async fn the_python_library_drives_the_agent() {
    let (agent, client) = TestAgent::with_empty_home().await;
    let dir = tempfile::tempdir().unwrap();
    let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = format!("http://{}", control.local_addr().unwrap());
    let control = tokio::spawn(answer_creates(control));
    let user = support::sh(&client, "id -un").await.stdout;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/drive.py");
    let (place, user) = (dir.path().display().to_string(), String::from_utf8(user).unwrap());
    let sandboxes = format!("http://{}", agent.address);
    let driven = tokio::task::spawn_blocking(move || {
        let environment = [
            ("E2B_API_KEY", "e2b_00"),
            ("E2B_API_URL", &api),
            ("E2B_SANDBOX_URL", &sandboxes),
            ("USER_OF_THE_TEST", user.trim()),
        ];
        library::run(&script, &[&place], &environment)
    });
    let driven = driven.await.unwrap();
    control.abort();
    println!("{}", driven.unwrap_or_else(|output| panic!("{output}")));
}

/// Answers every request as if it were the creation of a sandbox.
async fn answer_creates(listener: TcpListener) {
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        let complete = |request: &[u8]| {
            let text = String::from_utf8_lossy(request);
            let (head, body) = text.split_once("\r\n\r\n")?;
            let len = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            (body.len() >= len.unwrap_or(0)).then_some(())
        };
        while complete(&request).is_none() && socket.read_buf(&mut request).await.unwrap() > 0 {}
        let body = serde_json::json!({
            "templateID": "base", "sandboxID": "ofthetest", "clientID": "test", "envdVersion": "0.6.13",
            "envdAccessToken": "token-of-the-test", "domain": null,
        })
        .to_string();
        let answer = format!(
            "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(answer.as_bytes()).await.unwrap();
    }
}

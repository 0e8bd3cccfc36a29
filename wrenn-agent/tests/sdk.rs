//! E2B's own Python library, unmodified, against this agent: see `sdk/drive.py`.
//!
//! The library finds a sandbox through a control API, which is no affair of the agent's: a few lines here answer its one
//! question with the agent's address and token.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::TestAgent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// From PyPI, and the version whose wire this agent was held against.
const LIBRARY: &str = "e2b==2.63.0";

#[tokio::test(flavor = "multi_thread")]
async fn the_python_library_drives_the_agent() {
    let python = match tokio::task::spawn_blocking(library).await.unwrap() {
        Ok(python) => python,
        Err(why) => {
            eprintln!("SKIP: {LIBRARY} cannot be installed: {why}");
            return;
        }
    };
    let (agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = format!("http://{}", control.local_addr().unwrap());
    let control = tokio::spawn(answer_creates(control));
    let user = support::sh(&client, "id -un").await.stdout;
    #[allow(clippy::disallowed_methods)] // a test runs the library under test
    let mut drive = Command::new(python);
    drive
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/drive.py"))
        .arg(dir.path())
        .env("E2B_API_KEY", "e2b_00")
        .env("E2B_API_URL", api)
        .env("E2B_SANDBOX_URL", format!("http://{}", agent.address))
        .env("USER_OF_THE_TEST", String::from_utf8(user).unwrap().trim())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let done = tokio::task::spawn_blocking(move || drive.output()).await.unwrap().unwrap();
    control.abort();
    println!("{}", text(&done));
    assert!(done.status.success(), "{}", text(&done));
}

/// The Python of an environment that has the library.
fn library() -> Result<PathBuf, String> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(LIBRARY.replace("==", "-"));
    let python = home.join("bin/python3");
    let has_it = || run(&python, &["-c", "import e2b"]).is_ok();
    if has_it() {
        return Ok(python);
    }
    run("python3", &["-m", "venv", "--clear", home.to_str().ok_or("a path that is not UTF-8")?])?;
    run(&python, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", LIBRARY])?;
    Ok(python)
}

#[allow(clippy::disallowed_methods)] // a test runs the library under test
fn run(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<(), String> {
    let done = Command::new(program).args(args).output().map_err(|e| e.to_string())?;
    if done.status.success() { Ok(()) } else { Err(text(&done)) }
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
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

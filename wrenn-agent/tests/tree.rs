//! Files and directories as such: described, listed, made, moved, removed.

mod support;

use std::os::unix::fs::symlink;

use serde_json::json;
use support::http::{Answer, send};
use support::{TestAgent, is_root};
use wrenn_agent_api::{AgentError, FileKind, GuestPath};

#[tokio::test]
async fn a_host_sees_and_changes_the_tree() {
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let made = client.make_dir(at("a/b")).await.unwrap();
    assert_eq!((made.path, made.kind, made.mode), (at("a/b"), FileKind::Directory, 0o755));
    client.write_file(at("a/f"), "12345").await.unwrap();
    symlink("f", at("a/link")).unwrap();
    symlink("nothing", at("a/broken")).unwrap();
    let file = client.stat(at("a/f")).await.unwrap();
    assert_eq!((file.name.as_str(), file.kind, file.size, file.mode), ("f", FileKind::File, 5, 0o644));
    let age = std::time::SystemTime::now().duration_since(file.modified.unwrap()).unwrap_or_default();
    assert!(age < support::PATIENCE, "{age:?}");
    let link = client.stat(at("a/link")).await.unwrap();
    assert_eq!((link.kind, link.size, link.link_target), (FileKind::File, 5, Some(at("a/f"))));
    assert_eq!(link.link_text.as_deref(), Some(&b"f"[..]));
    let broken = client.stat(at("a/broken")).await.unwrap();
    assert_eq!((broken.kind, broken.link_text.as_deref()), (FileKind::BrokenLink, Some(&b"nothing"[..])));

    let listed = client.list_dir(at("a"), 1).await.unwrap();
    let names: Vec<_> = listed.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["b", "broken", "f", "link"]);
    let moved = client.rename(at("a/f"), at("new/place")).await.unwrap();
    assert_eq!((moved.path, moved.size), (at("new/place"), 5));
    client.remove(at("a")).await.unwrap();
    client.remove(at("a")).await.unwrap();
    let left: Vec<_> =
        client.list_dir(at(""), 9).await.unwrap().into_iter().map(|entry| entry.path).collect();
    assert_eq!(left, [at("new"), at("new/place")]);

    let error = client.stat(at("a")).await.unwrap_err();
    assert!(matches!(error, AgentError::NotFound { .. }), "{error:?}");
    let error = client.list_dir(at("new/place"), 1).await.unwrap_err();
    assert!(matches!(error, AgentError::InvalidArgument { .. }), "{error:?}");
    let error = client.make_dir(at("new")).await.unwrap_err();
    assert!(matches!(&error, AgentError::Failed { code, .. } if code == "already_exists"), "{error:?}");
    let error = client.stat(GuestPath::new("/").user("no-such-user")).await.unwrap_err();
    assert!(matches!(error, AgentError::UnknownUser { .. }), "{error:?}");
}

#[tokio::test]
async fn new_directories_belong_to_their_user() {
    if !is_root() {
        eprintln!("SKIP: only root can give directories away");
        return;
    }
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| GuestPath::new(dir.path().join(name).display().to_string()).user("nobody");
    client.make_dir(at("a/b")).await.unwrap();
    for path in ["a", "a/b"] {
        let entry = client.stat(at(path)).await.unwrap();
        assert_eq!((entry.owner.as_str(), entry.group.as_str()), ("nobody", "nogroup"));
    }
}

#[tokio::test]
async fn the_wire_in_json() {
    let (agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let call = async |method: &str, request: serde_json::Value| -> Answer {
        let headers = [
            "connect-protocol-version: 1",
            "accept-encoding: identity",
            "content-encoding: identity",
            "content-type: application/json",
            "connect-timeout-ms: 60000",
            "x-access-token: token-of-the-test",
        ];
        let line = format!("POST /filesystem.Filesystem/{method}");
        send(agent.address, &line, &headers, request.to_string().as_bytes()).await
    };
    client.write_file(at("a.txt"), "hi").await.unwrap();
    let entry = call("Stat", json!({"path": at("a.txt")})).await.json()["entry"].take();
    // 64-bit numbers are texts in protobuf's JSON, times are RFC 3339.
    assert_eq!(entry["size"], "2");
    assert_eq!((&entry["name"], &entry["path"]), (&json!("a.txt"), &json!(at("a.txt"))));
    assert_eq!((&entry["type"], &entry["mode"]), (&json!("FILE_TYPE_FILE"), &json!(0o644)));
    assert_eq!(entry["permissions"], "-rw-r--r--");
    assert!(entry["modifiedTime"].as_str().unwrap().ends_with('Z'));
    let missing = call("Stat", json!({"path": "/nope"})).await;
    assert_eq!((missing.status, missing.json()["code"].clone()), (404, json!("not_found")));
    let there = call("MakeDir", json!({"path": at("")})).await;
    assert_eq!((there.status, there.json()["code"].clone()), (409, json!("already_exists")));
    let listed = call("ListDir", json!({"path": at(""), "depth": 1})).await.json();
    assert_eq!(listed["entries"][0]["name"], "a.txt");
    let moved = call("Move", json!({"source": at("a.txt"), "destination": at("z.txt")})).await.json();
    assert_eq!(moved["entry"]["path"], at("z.txt"));
    for _ in 0..2 {
        let removed = call("Remove", json!({"path": at("z.txt")})).await;
        assert_eq!((removed.status, removed.json()), (200, json!({})));
    }
    assert_eq!(call("Stat", json!({"path": ""})).await.status, 400);
    assert_eq!(call("WatchNothing", json!({})).await.json()["code"], "unimplemented");
}

#[tokio::test]
async fn uploaded_metadata_is_told() {
    let (agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let upload = async |headers: &[&str]| {
        let fixed = ["x-access-token: token-of-the-test", "content-type: application/octet-stream"];
        let target = format!("POST /files?path={}", path.display());
        send(agent.address, &target, &[&fixed, headers].concat(), b"x").await.status
    };
    if upload(&["X-Metadata-Kind: first", "x-metadata-other: 1"]).await != 200 {
        eprintln!("SKIP: no extended attributes for users in {}", dir.path().display());
        return;
    }
    let told = async || {
        let request = json!({"path": path.display().to_string()}).to_string();
        let headers = ["x-access-token: token-of-the-test", "content-type: application/json"];
        let answer =
            send(agent.address, "POST /filesystem.Filesystem/Stat", &headers, request.as_bytes()).await;
        answer.json()["entry"]["metadata"].take()
    };
    assert_eq!(told().await, json!({"kind": "first", "other": "1"}));
    // The next upload replaces all of it.
    assert_eq!(upload(&["X-Metadata-Kind: second"]).await, 200);
    assert_eq!(told().await, json!({"kind": "second"}));
    client.write_file(path.display().to_string(), "x").await.unwrap();
    assert_eq!(told().await, json!(null));
}

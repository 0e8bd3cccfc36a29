//! Directories watched: what clients of E2B's agent insist on, and what they may rely on.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use support::http::{Answer, envelope, send};
use support::{PATIENCE, TestAgent};
use wrenn_agent_api::{AgentError, FileEventKind, WatchOptions, WatchStream};

const HEADERS: &[&str] =
    &["connect-protocol-version: 1", "content-type: application/json", "x-access-token: token-of-the-test"];

async fn call(agent: &TestAgent, method: &str, request: &Value) -> Answer {
    let line = format!("POST /filesystem.Filesystem/{method}");
    send(agent.address, &line, HEADERS, request.to_string().as_bytes()).await
}

async fn create(agent: &TestAgent, request: Value) -> String {
    let answer = call(agent, "CreateWatcher", &request).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    answer.json()["watcherId"].as_str().unwrap().to_owned()
}

/// What a watcher saw, as `(name, type)`.
async fn events(agent: &TestAgent, id: &str) -> Vec<(String, String)> {
    let answer = call(agent, "GetWatcherEvents", &json!({"watcherId": id})).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    let events = answer.json()["events"].as_array().cloned().unwrap_or_default();
    let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
    events
        .iter()
        .map(|event| (text(event, "name"), text(event, "type").trim_start_matches("EVENT_TYPE_").to_owned()))
        .collect()
}

fn seen(events: &[(String, String)]) -> Vec<(&str, &str)> {
    events.iter().map(|(name, kind)| (name.as_str(), kind.as_str())).collect()
}

fn path_of(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

#[tokio::test]
async fn a_watcher_has_seen_what_was_done_before_it_is_asked() {
    let (agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let id = create(&agent, json!({"path": dir.path()})).await;
    assert!(events(&agent, &id).await.is_empty());
    // An upload: three events, as if it had been written in place.
    for round in 0..20 {
        let name = format!("f{round}");
        client.write_file(path_of(dir.path(), &name), "contents").await.unwrap();
        let told = events(&agent, &id).await;
        assert_eq!(seen(&told), [(&*name, "CREATE"), (&*name, "CHMOD"), (&*name, "WRITE")]);
        client.write_file(path_of(dir.path(), &name), "others").await.unwrap();
        let told = events(&agent, &id).await;
        assert_eq!(seen(&told), [(&*name, "WRITE"), (&*name, "CHMOD"), (&*name, "WRITE")]);
    }
    client.rename(path_of(dir.path(), "f0"), path_of(dir.path(), "g")).await.unwrap();
    client.remove(path_of(dir.path(), "g")).await.unwrap();
    let told = events(&agent, &id).await;
    assert_eq!(seen(&told), [("f0", "RENAME"), ("g", "CREATE"), ("g", "REMOVE")]);
    // Not recursive: nothing of what is below.
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/f"), "x").unwrap();
    assert_eq!(seen(&events(&agent, &id).await), [("sub", "CREATE")]);

    let removed = call(&agent, "RemoveWatcher", &json!({"watcherId": id})).await;
    assert_eq!((removed.status, removed.json()), (200, json!({})));
    for method in ["GetWatcherEvents", "RemoveWatcher"] {
        let answer = call(&agent, method, &json!({"watcherId": id})).await;
        assert_eq!((answer.status, &answer.json()["code"]), (404, &json!("not_found")), "{method}");
    }
}

#[tokio::test]
async fn directories_below_are_watched_with_what_is_in_them() {
    let (agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("old/deep")).unwrap();
    let id = create(&agent, json!({"path": dir.path(), "recursive": true})).await;
    client.write_file(path_of(dir.path(), "old/deep/f"), "x").await.unwrap();
    let told = events(&agent, &id).await;
    let deep = "old/deep/f";
    assert_eq!(seen(&told), [(deep, "CREATE"), (deep, "CHMOD"), (deep, "WRITE")]);
    // However fast something is put into a new directory, it is told, and once.
    for round in 0..50 {
        let name = format!("new{round}");
        fs::create_dir_all(dir.path().join(&name).join("a/b")).unwrap();
        fs::write(dir.path().join(&name).join("a/b/file"), "x").unwrap();
        let told = events(&agent, &id).await;
        let of =
            |kind: &str, path: &str| told.iter().filter(|(name, what)| name == path && what == kind).count();
        for path in [name.clone(), format!("{name}/a"), format!("{name}/a/b"), format!("{name}/a/b/file")] {
            assert_eq!(of("CREATE", &path), 1, "{path}: {told:?}");
        }
        assert_eq!(of("WRITE", &format!("{name}/a/b/file")), 1, "{told:?}");
    }
    // What is moved goes by its new name, and what has left is not heard of again.
    let away = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
    fs::rename(dir.path().join("old"), dir.path().join("moved")).unwrap();
    fs::rename(dir.path().join("new0"), away.path().join("new0")).unwrap();
    let told = events(&agent, &id).await;
    assert!(
        seen(&told).contains(&("old", "RENAME")) && seen(&told).contains(&("moved", "CREATE")),
        "{told:?}"
    );
    assert!(seen(&told).contains(&("new0", "RENAME")), "{told:?}");
    fs::write(dir.path().join("moved/deep/g"), "").unwrap();
    fs::write(away.path().join("new0/a/b/g"), "").unwrap();
    assert_eq!(seen(&events(&agent, &id).await), [("moved/deep/g", "CREATE")]);
    fs::remove_dir_all(dir.path().join("moved")).unwrap();
    let told = events(&agent, &id).await;
    assert_eq!(seen(&told)[told.len() - 1], ("moved", "REMOVE"), "{told:?}");
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused() {
    let (agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let file = path_of(dir.path(), "f");
    fs::write(&file, "").unwrap();
    for (path, status, code) in [
        (path_of(dir.path(), "nothing"), 404, "not_found"),
        (file.clone(), 400, "invalid_argument"),
        (String::new(), 400, "invalid_argument"),
    ] {
        let answer = call(&agent, "CreateWatcher", &json!({"path": path})).await;
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{path}");
        let stream = client.watch(path.as_str(), WatchOptions::new()).await.unwrap_err();
        match code {
            "not_found" => assert!(matches!(stream, AgentError::NotFound { .. }), "{stream:?}"),
            _ => assert!(matches!(stream, AgentError::InvalidArgument { .. }), "{stream:?}"),
        }
    }
    // Forgotten watchers are bounded.
    let path = json!({"path": dir.path()});
    let mut made = 0;
    let refused = loop {
        let answer = call(&agent, "CreateWatcher", &path).await;
        if answer.status != 200 {
            break answer;
        }
        made += 1;
        assert!(made <= 100);
    };
    assert_eq!((refused.status, &refused.json()["code"]), (429, &json!("resource_exhausted")));
}

#[tokio::test]
async fn lost_events_are_told() {
    let (agent, _client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let id = create(&agent, json!({"path": dir.path()})).await;
    let long = "n".repeat(200);
    for n in 0..40_000 {
        fs::write(dir.path().join(format!("{n}{long}")), "").unwrap();
    }
    let told = events(&agent, &id).await;
    assert!(told.len() > 10_000 && told.len() < 40_000, "{}", told.len());
    assert!(told[0].0.starts_with("0nn"), "the first are there: {}", told[0].0);
    let answer = call(&agent, "GetWatcherEvents", &json!({"watcherId": id})).await;
    assert_eq!(answer.json()["code"], "data_loss", "{}", answer.json());
    // It goes on from there.
    fs::write(dir.path().join("last"), "").unwrap();
    assert_eq!(seen(&events(&agent, &id).await), [("last", "CREATE")]);
    assert!(agent.peak_memory() < 64 << 20, "{} bytes", agent.peak_memory());
}

async fn next(stream: &mut WatchStream) -> (String, FileEventKind) {
    let event = tokio::time::timeout(PATIENCE, stream.next()).await.expect("an event in time");
    let event = event.unwrap().unwrap();
    (event.name, event.kind)
}

#[tokio::test]
async fn a_stream_tells_as_it_happens() {
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let options = WatchOptions::new().recursive(true).with_info(true);
    let mut stream = client.watch(dir.path().to_str().unwrap(), options).await.unwrap();
    let at = |name: &str| dir.path().join(name);
    let event = |name: &str, kind| (name.to_owned(), kind);

    fs::write(at("f"), "12345").unwrap();
    assert_eq!(next(&mut stream).await, event("f", FileEventKind::Create));
    let written = stream.next().await.unwrap().unwrap();
    let info = written.info.unwrap();
    assert_eq!((written.name.as_str(), written.kind), ("f", FileEventKind::Write));
    assert_eq!((info.name.as_str(), info.size, info.path), ("f", 5, at("f").display().to_string()));
    fs::set_permissions(at("f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(next(&mut stream).await, event("f", FileEventKind::Attributes));
    fs::create_dir(at("d")).unwrap();
    assert_eq!(next(&mut stream).await, event("d", FileEventKind::Create));
    fs::rename(at("f"), at("d/g")).unwrap();
    assert_eq!(next(&mut stream).await, event("f", FileEventKind::Rename));
    assert_eq!(next(&mut stream).await, event("d/g", FileEventKind::Create));
    fs::remove_file(at("d/g")).unwrap();
    let removed = stream.next().await.unwrap().unwrap();
    assert_eq!((removed.name.as_str(), removed.kind, removed.info), ("d/g", FileEventKind::Remove, None));
    fs::remove_dir_all(dir.path()).unwrap();
    assert_eq!(next(&mut stream).await, event("d", FileEventKind::Remove));
    assert_eq!(next(&mut stream).await, event(".", FileEventKind::Remove));
    // Nothing more to come, and no reason to end.
    assert!(tokio::time::timeout(Duration::from_millis(300), stream.next()).await.is_err());
}

#[tokio::test]
async fn a_stream_nobody_reads_costs_no_memory_and_says_what_it_lost() {
    let (agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let mut stream = client.watch(dir.path().to_str().unwrap(), WatchOptions::new()).await.unwrap();
    churn(dir.path()).await;
    assert!(agent.peak_memory() < 64 << 20, "{} bytes", agent.peak_memory());
    let mut told = 0;
    let error = loop {
        match stream.next().await {
            Ok(Some(_)) => told += 1,
            Ok(None) => panic!("an end without a reason, after {told} events"),
            Err(error) => break error,
        }
    };
    assert!(told > 1000, "{told}");
    assert!(matches!(&error, AgentError::Failed { code, .. } if code == "data_loss"), "{error:?}");
    assert!(stream.next().await.unwrap().is_none());
}

/// Makes more events than sockets and queues hold.
async fn churn(dir: &Path) {
    let dir = dir.to_owned();
    let work = move || {
        let long = "n".repeat(200);
        for n in 0..60_000 {
            let path = dir.join(format!("{n}{long}"));
            fs::write(&path, "x").unwrap();
            fs::remove_file(&path).unwrap();
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test]
async fn a_stream_in_json() {
    let (agent, _client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let headers = [
        "keepalive-ping-interval: 1",
        "connect-protocol-version: 1",
        "content-type: application/connect+json",
        "connect-timeout-ms: 2500",
        "x-access-token: token-of-the-test",
    ];
    let request = json!({"path": dir.path(), "recursive": true}).to_string();
    let answer =
        send(agent.address, "POST /filesystem.Filesystem/WatchDir", &headers, &envelope(&request)).await;
    assert_eq!(answer.header("content-type"), Some("application/connect+json"));
    let envelopes = answer.envelopes();
    assert_eq!(envelopes[0], (0, json!({"start": {}})));
    assert!(envelopes.contains(&(0, json!({"keepalive": {}}))), "{envelopes:?}");
    let (flags, end) = &envelopes[envelopes.len() - 1];
    assert_eq!((*flags, &end["error"]["code"]), (2, &json!("deadline_exceeded")));
}

//! The wire, byte by byte, as clients of E2B's agent use it: requests with the headers that its Python and
//! JavaScript libraries send, answers as those libraries insist on.

mod support;

use serde_json::json;
use support::http::{Answer, envelope, send};
use support::{TestAgent, eventually};

/// The headers of the Python library's streaming calls.
const STREAM: &[&str] = &[
    "keepalive-ping-interval: 50",
    "user-agent: connectrpc/0.12.1",
    "connect-protocol-version: 1",
    "connect-accept-encoding: identity",
    "connect-content-encoding: identity",
    "content-type: application/connect+json",
    "connect-timeout-ms: 60000",
    "x-access-token: token-of-the-test",
    "e2b-sandbox-id: i0000000795467529037",
    "e2b-sandbox-port: 49983",
    "accept: */*",
    "accept-encoding: zstd,gzip,br",
    "transfer-encoding: chunked",
];

/// The headers of its unary calls.
const UNARY: &[&str] = &[
    "user-agent: connectrpc/0.12.1",
    "connect-protocol-version: 1",
    "accept-encoding: identity",
    "content-encoding: identity",
    "content-type: application/json",
    "connect-timeout-ms: 60000",
    "x-access-token: token-of-the-test",
    "e2b-sandbox-id: i0000000795467529037",
    "e2b-sandbox-port: 49983",
    "accept: */*",
];

async fn stream(agent: &TestAgent, method: &str, request: &str, extra: &[&str]) -> Answer {
    let headers: Vec<&str> = STREAM.iter().chain(extra).copied().collect();
    let line = format!("POST /process.Process/{method}");
    let answer = send(agent.address, &line, &headers, &envelope(request)).await;
    assert_eq!(answer.status, 200);
    // A parameter behind it makes the Python library fail.
    assert_eq!(answer.header("content-type"), Some("application/connect+json"));
    answer
}

async fn unary(agent: &TestAgent, method: &str, request: &str) -> Answer {
    let line = format!("POST /process.Process/{method}");
    let answer = send(agent.address, &line, UNARY, request.as_bytes()).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer
}

#[tokio::test]
async fn a_start_stream_in_json() {
    let (agent, _client) = TestAgent::with_empty_home().await;
    let request = r#"{"process":{"cmd":"/bin/bash","args":["-l","-c","echo hello"]},"stdin":false}"#;
    let envelopes = stream(&agent, "Start", request, &[]).await.envelopes();
    let pid = envelopes[0].1["event"]["start"]["pid"].as_u64().unwrap();
    assert!(pid > 1);
    assert_eq!(
        envelopes,
        [
            (0, json!({"event": {"start": {"pid": pid}}})),
            (0, json!({"event": {"data": {"stdout": "aGVsbG8K"}}})),
            (0, json!({"event": {"end": {"exited": true, "status": "exit status 0"}}})),
            (2, json!({})),
        ]
    );
    let request =
        r#"{"process":{"cmd":"/bin/bash","args":["-l","-c","printf '\\377' >&2; exit 3"]},"stdin":false}"#;
    let envelopes = stream(&agent, "Start", request, &[]).await.envelopes();
    assert_eq!(envelopes[1].1, json!({"event": {"data": {"stderr": "/w=="}}}));
    let end = json!({"exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3"});
    assert_eq!(envelopes[2].1, json!({"event": {"end": end}}));
}

#[tokio::test]
async fn errors_before_the_first_event_end_the_stream() {
    let (agent, _client) = TestAgent::claimed().await;
    let start = |cwd: &str| format!(r#"{{"process":{{"cmd":"/bin/true","cwd":"{cwd}"}},"stdin":false}}"#);
    let refused = |answer: Answer| {
        let mut envelopes = answer.envelopes();
        assert_eq!((envelopes.len(), envelopes[0].0), (1, 2));
        envelopes.remove(0).1["error"].take()
    };
    let error = refused(stream(&agent, "Start", &start("/nope"), &[]).await);
    assert_eq!(error, json!({"code": "invalid_argument", "message": "cwd '/nope' does not exist"}));
    // base64 of "nobody-such:"
    let user = ["authorization: Basic bm9ib2R5LXN1Y2g6"];
    let error = refused(stream(&agent, "Start", &start("/"), &user).await);
    assert_eq!(error, json!({"code": "unauthenticated", "message": "unknown user 'nobody-such'"}));
    let error = refused(stream(&agent, "Connect", r#"{"process":{"pid":424242}}"#, &[]).await);
    assert_eq!(error["code"], "not_found");
    let error = refused(stream(&agent, "Start", "{not json", &[]).await);
    assert_eq!(error["code"], "invalid_argument");
    let error = refused(stream(&agent, "NoSuchMethod", "{}", &[]).await);
    assert_eq!(error["code"], "unimplemented");
}

#[tokio::test]
async fn a_time_limit_ends_the_stream_with_its_code() {
    let (agent, _client) = TestAgent::claimed().await;
    let headers: Vec<&str> =
        STREAM.iter().copied().filter(|header| !header.starts_with("connect-timeout")).collect();
    let headers = [&headers[..], &["connect-timeout-ms: 200"]].concat();
    let request = r#"{"process":{"cmd":"/bin/sleep","args":["1000"]},"stdin":false}"#;
    let answer = send(agent.address, "POST /process.Process/Start", &headers, &envelope(request)).await;
    let envelopes = answer.envelopes();
    assert_eq!(envelopes.len(), 2, "{envelopes:?}");
    assert!(envelopes[0].1["event"]["start"]["pid"].is_u64());
    assert_eq!((envelopes[1].0, &envelopes[1].1["error"]["code"]), (2, &json!("deadline_exceeded")));
}

#[tokio::test]
async fn keepalives_come_in_the_pauses() {
    let (agent, _client) = TestAgent::claimed().await;
    let headers: Vec<&str> =
        STREAM.iter().copied().filter(|header| !header.starts_with("keepalive")).collect();
    let headers = [&headers[..], &["keepalive-ping-interval: 1"]].concat();
    let request = r#"{"process":{"cmd":"/bin/sleep","args":["3"]},"stdin":false}"#;
    let answer = send(agent.address, "POST /process.Process/Start", &headers, &envelope(request)).await;
    let envelopes = answer.envelopes();
    assert!(
        envelopes.iter().any(|(_, message)| *message == json!({"event": {"keepalive": {}}})),
        "{envelopes:?}"
    );
}

#[tokio::test]
async fn unary_calls_in_json() {
    let (agent, client) = TestAgent::claimed().await;
    assert_eq!(unary(&agent, "List", "{}").await.json(), json!({}));
    let cat = client.start(wrenn_agent_api::Command::new("/bin/cat").stdin(true).tag("t")).await.unwrap();
    let pid = cat.pid();
    let list = unary(&agent, "List", "{}").await.json();
    assert_eq!(list, json!({"processes": [{"config": {"cmd": "/bin/cat"}, "pid": pid, "tag": "t"}]}));
    let by_pid = format!(r#"{{"process":{{"pid":{pid}}},"input":{{"stdin":"bGluZQo="}}}}"#);
    let sent = unary(&agent, "SendInput", &by_pid).await;
    assert_eq!((sent.status, sent.json()), (200, json!({})));
    let by_tag = r#"{"process":{"tag":"t"},"input":{"stdin":"bGluZQo="}}"#;
    assert_eq!(unary(&agent, "SendInput", by_tag).await.status, 200);
    // Several pieces in one call, as streams of input come.
    let pieces = [
        envelope(&format!(r#"{{"start":{{"process":{{"pid":{pid}}}}}}}"#)),
        envelope(r#"{"data":{"input":{"stdin":"YQ=="}}}"#),
        envelope(r#"{"keepalive":{}}"#),
        envelope(r#"{"data":{"input":{"stdin":"Yg=="}}}"#),
    ]
    .concat();
    let answer = send(agent.address, "POST /process.Process/StreamInput", STREAM, &pieces).await;
    assert_eq!(answer.envelopes(), [(0, json!({})), (2, json!({}))]);
    assert_eq!(unary(&agent, "CloseStdin", &format!(r#"{{"process":{{"pid":{pid}}}}}"#)).await.status, 200);
    assert_eq!(support::finish(cat).await.stdout, b"line\nline\nab");

    let kill = r#"{"process":{"pid":999999},"signal":"SIGNAL_SIGKILL"}"#;
    let answer = unary(&agent, "SendSignal", kill).await;
    assert_eq!((answer.status, answer.json()["code"].clone()), (404, json!("not_found")));
    let sleeper = client.start(wrenn_agent_api::Command::new("sleep").arg("1000")).await.unwrap();
    let signal = |signal: &str| format!(r#"{{"process":{{"pid":{}}},"signal":{signal}}}"#, sleeper.pid());
    let answer = unary(&agent, "SendSignal", &signal("\"SIGNAL_UNSPECIFIED\"")).await;
    assert_eq!((answer.status, answer.json()["code"].clone()), (501, json!("unimplemented")));
    assert_eq!(unary(&agent, "SendSignal", &signal("\"SIGNAL_SIGTERM\"")).await.status, 200);
    assert_eq!(support::finish(sleeper).await.signal, Some(15));
}

#[tokio::test]
async fn a_terminal() {
    let (agent, client) = TestAgent::with_empty_home().await;
    let start = r#"{"process":{"cmd":"/bin/bash","args":["-i","-l"],"envs":{"TERM":"xterm-256color","LANG":"C.UTF-8",
        "LC_ALL":"C.UTF-8"}},"pty":{"size":{"cols":80,"rows":24}},"tag":"term"}"#;
    let dir = tempfile::tempdir().unwrap();
    let measured = dir.path().join("measured");
    // One caller reads while others type, as libraries do: the answer ends when the shell does.
    let reading = stream(&agent, "Start", start, &[]);
    let typing = async {
        while client.list().await.unwrap().is_empty() {}
        let input = |text: &str| {
            let encoded = base64(text);
            format!(r#"{{"process":{{"tag":"term"}},"input":{{"pty":"{encoded}"}}}}"#)
        };
        let typed = input(&format!("stty size; tty; touch {}\n", measured.display()));
        assert_eq!(unary(&agent, "SendInput", &typed).await.status, 200);
        eventually("the shell has asked for the first size", || measured.exists()).await;
        let resize = r#"{"process":{"tag":"term"},"pty":{"size":{"cols":100,"rows":30}}}"#;
        assert_eq!(unary(&agent, "Update", resize).await.status, 200);
        assert_eq!(unary(&agent, "SendInput", &input("stty size\n")).await.status, 200);
        // A terminal's input is not standard input.
        let stdin = r#"{"process":{"tag":"term"},"input":{"stdin":"YQ=="}}"#;
        assert_eq!(unary(&agent, "SendInput", stdin).await.status, 400);
        assert_eq!(unary(&agent, "SendInput", &input("exit 4\n")).await.status, 200);
    };
    let (answer, ()) = tokio::join!(reading, typing);
    let mut text = Vec::new();
    for (_, message) in answer.envelopes() {
        if let Some(data) = message["event"]["data"]["pty"].as_str() {
            text.extend(unbase64(data));
        }
    }
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("24 80") && text.contains("30 100") && text.contains("/dev/pts/"), "{text}");
    let end = &answer.envelopes()[answer.envelopes().len() - 2].1["event"]["end"];
    assert_eq!(end["exitCode"], 4, "{text}");
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn unbase64(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[tokio::test]
async fn a_form_as_browsers_and_libraries_send_it() {
    let (agent, _client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let post = async |target: &str, parts: &[(&str, &str, &str)]| {
        let mut body = String::new();
        for (field, filename, contents) in parts {
            body.push_str(&format!(
                "--04c9fa88fd9c20b2\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{filename}\"\r\n\
                 Content-Type: text/plain\r\n\r\n{contents}\r\n"
            ));
        }
        body.push_str("--04c9fa88fd9c20b2--\r\n");
        let headers = [
            "x-access-token: token-of-the-test",
            "content-type: multipart/form-data; boundary=04c9fa88fd9c20b2",
            "x-metadata-Kind: test",
        ];
        send(agent.address, &format!("POST {target}"), &headers, body.as_bytes()).await
    };
    // The destination is the query's path …
    let answer = post(&format!("/files?path={}", at("a.txt")), &[("file", "/ignored", "hi there")]).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    let entry = json!({"name": "a.txt", "type": "file", "path": at("a.txt"), "metadata": {"kind": "test"}});
    assert_eq!(answer.json(), json!([entry]));
    assert_eq!(std::fs::read(at("a.txt")).unwrap(), b"hi there");
    // … or the parts' own names; parts with another name do not count.
    let parts = [("file", at("b.txt"), "B"), ("other", at("no"), "x"), ("file", at("sub/c.txt"), "C")];
    let parts = parts.each_ref().map(|(field, name, contents)| (*field, name.as_str(), *contents));
    let answer = post("/files", &parts).await;
    assert_eq!(answer.json().as_array().unwrap().len(), 2);
    assert_eq!(std::fs::read(at("b.txt")).unwrap(), b"B");
    assert_eq!(std::fs::read(at("sub/c.txt")).unwrap(), b"C");
    assert!(!std::fs::exists(at("no")).unwrap());
    for (target, parts) in [
        ("/files".to_owned(), vec![("file", at("d"), "1"), ("file", at("x/../d"), "2")]),
        (format!("/files?path={}", at("d")), vec![("file", at("e"), "1"), ("file", at("f"), "2")]),
        ("/files".to_owned(), vec![("other", at("g"), "x")]),
        ("/files".to_owned(), vec![("file", String::new(), "x")]),
    ] {
        let parts: Vec<_> = parts.iter().map(|(field, name, text)| (*field, name.as_str(), *text)).collect();
        let answer = post(&target, &parts).await;
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!(400)), "{target}");
    }
}

#[tokio::test]
async fn plain_answers_are_what_libraries_expect() {
    let (agent, _client) = TestAgent::claimed().await;
    let token = ["x-access-token: token-of-the-test"];
    let health = send(agent.address, "GET /health", &[], b"").await;
    assert_eq!((health.status, health.body.len()), (204, 0));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.json").display().to_string();
    std::fs::write(&path, "").unwrap();
    // The JavaScript library reads the length of an empty file.
    let empty = send(agent.address, &format!("GET /files?path={path}"), &token, b"").await;
    assert_eq!((empty.status, empty.header("content-length")), (200, Some("0")));
    assert_eq!(empty.header("content-type"), Some("application/json"));
    let missing = send(agent.address, "GET /files?path=%2Fnope", &token, b"").await;
    assert_eq!(missing.json(), json!({"code": 404, "message": "path '/nope' does not exist"}));
    let proc = send(agent.address, "GET /files?path=/proc/self/stat", &token, b"").await;
    assert!(proc.body.starts_with(agent.pid().to_string().as_bytes()));
    let metrics = send(agent.address, "GET /metrics", &token, b"").await.json();
    assert!(
        metrics["mem_total"].as_u64() > metrics["mem_used"].as_u64()
            && metrics["cpu_count"].as_u64() > Some(0)
    );
    assert_eq!(send(agent.address, "GET /envs", &token, b"").await.json(), json!({}));
    assert_eq!(send(agent.address, "PUT /files?path=/tmp/x", &token, b"").await.status, 405);
    assert_eq!(send(agent.address, "GET /nowhere", &token, b"").await.status, 404);
}

#[tokio::test]
async fn a_raw_body_may_be_packed() {
    let (agent, _client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("e.txt").display().to_string();
    let headers = [
        "x-access-token: token-of-the-test",
        "content-type: application/octet-stream",
        "content-encoding: gzip",
        "transfer-encoding: chunked",
    ];
    // gzip of "zip", as the Python library sends it.
    let packed = [
        0x1f, 0x8b, 8, 0, 9, 0xa9, 4, 0x6b, 2, 0xff, 0xab, 0xca, 0x2c, 0, 0, 0x46, 0x95, 0x1d, 0x42, 3, 0, 0,
        0,
    ];
    let target = format!("POST /files?path={path}&username=root");
    let answer = send(agent.address, &target, &headers, &packed).await;
    assert_eq!(answer.json(), json!([{"name": "e.txt", "type": "file", "path": path}]));
    assert_eq!(std::fs::read(&path).unwrap(), b"zip");
    let answer = send(agent.address, &target, &headers, &packed[..packed.len() - 2]).await;
    assert_eq!(answer.status, 400);
    assert_eq!(std::fs::read(&path).unwrap(), b"zip");
}

#[tokio::test]
async fn parts_of_a_file() {
    let (agent, _client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let contents: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let path = dir.path().join("f").display().to_string();
    std::fs::write(&path, &contents).unwrap();
    let get = async |headers: &[&str]| {
        let headers = [&["x-access-token: token-of-the-test"], headers].concat();
        send(agent.address, &format!("GET /files?path={path}"), &headers, b"").await
    };
    let whole = get(&[]).await;
    assert_eq!((whole.status, whole.header("accept-ranges")), (200, Some("bytes")));
    let date = whole.header("last-modified").unwrap().to_owned();
    let len = contents.len();
    for (range, first, last) in [
        ("bytes=0-0", 0, 0),
        ("bytes=10-200000", 10, 200_000),
        ("bytes=1000000-", 1_000_000, len - 1),
        ("bytes=-500000", len - 500_000, len - 1),
        ("bytes=5-99999999", 5, len - 1),
    ] {
        let part = get(&[&format!("range: {range}"), &format!("if-range: {date}")]).await;
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(part.header("content-range"), Some(&*format!("bytes {first}-{last}/{len}")), "{range}");
        assert!(part.body == contents[first..=last], "{range}");
    }
    for range in ["range: bytes=1-2,4-5", "range: bytes=1-2\r\nif-range: Sun, 06 Nov 1994 08:49:37 GMT"] {
        let whole = get(&[range]).await;
        assert_eq!((whole.status, whole.header("content-range")), (200, None), "{range}");
        assert!(whole.body == contents);
    }
    let none = get(&["range: bytes=1200000-"]).await;
    assert_eq!((none.status, none.header("content-range")), (416, Some("bytes */1200000")));
    assert_eq!(none.json()["code"], 416);
    // Packed, for who takes nothing else; then there are no parts.
    let packed = get(&["accept-encoding: gzip", "range: bytes=0-1"]).await;
    assert_eq!((packed.status, packed.header("content-encoding")), (200, Some("gzip")));
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed.body[..]), &mut plain).unwrap();
    assert!(plain == contents);
    assert!(packed.body.len() < contents.len(), "{} bytes", packed.body.len());
    assert_eq!(get(&["accept-encoding: gzip, deflate"]).await.header("content-encoding"), None);
    let refused = get(&["accept-encoding: br, identity;q=0"]).await;
    assert_eq!((refused.status, &refused.json()["code"]), (406, &json!(406)));
}

#[tokio::test]
async fn files_put_together() {
    let (agent, _client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let compose = async |sources: &[String], destination: &str| {
        let body =
            json!({"source_paths": sources, "destination": destination, "username": "root"}).to_string();
        let headers = ["x-access-token: token-of-the-test", "content-type: application/json"];
        send(agent.address, "POST /files/compose", &headers, body.as_bytes()).await
    };
    for (name, contents) in [("a", "A".repeat(200_000)), ("b", "B".into()), ("empty", String::new())] {
        std::fs::write(at(name), contents).unwrap();
    }
    // Nothing happens where something is missing.
    let missing = compose(&[at("a"), at("nothing")], &at("whole")).await;
    assert_eq!((missing.status, &missing.json()["code"]), (404, &json!(404)));
    assert_eq!(compose(&[], &at("whole")).await.status, 400);
    assert_eq!(compose(&[at("a"), dir.path().display().to_string()], &at("whole")).await.status, 400);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    let answer = compose(&[at("b"), at("a"), at("empty"), at("b")], &at("sub/whole")).await;
    assert_eq!(answer.json(), json!({"name": "whole", "path": at("sub/whole"), "type": "file"}));
    let whole = std::fs::read_to_string(at("sub/whole")).unwrap();
    assert!(whole == format!("B{}B", "A".repeat(200_000)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    // One of them may be where it all goes.
    std::fs::write(at("c"), "C").unwrap();
    assert_eq!(compose(&[at("c"), at("c")], &at("c")).await.status, 200);
    assert_eq!(std::fs::read_to_string(at("c")).unwrap(), "CC");
}

#[tokio::test]
async fn calls_may_be_packed() {
    let (agent, _client) = TestAgent::claimed().await;
    let pack = |plain: &[u8]| {
        let mut packed = Vec::new();
        let mut encoder = flate2::read::GzEncoder::new(plain, flate2::Compression::fast());
        std::io::Read::read_to_end(&mut encoder, &mut packed).unwrap();
        packed
    };
    let unpack = |packed: &[u8]| {
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(packed), &mut plain).unwrap();
        plain
    };
    let token = "x-access-token: token-of-the-test";
    let headers =
        [token, "content-type: application/json", "content-encoding: gzip", "accept-encoding: gzip"];
    let request = pack(br#"{"path":"/proc","depth":1}"#);
    let answer = send(agent.address, "POST /filesystem.Filesystem/ListDir", &headers, &request).await;
    assert_eq!((answer.status, answer.header("content-encoding")), (200, Some("gzip")));
    let listed: serde_json::Value = serde_json::from_slice(&unpack(&answer.body)).unwrap();
    assert!(listed["entries"].as_array().unwrap().len() > 50);

    let headers = [token, "content-type: application/connect+json", "connect-content-encoding: gzip"];
    let mut request = envelope(r#"{"process":{"cmd":"echo","args":["packed"]}}"#);
    let body = pack(&request.split_off(5));
    request[0] = 1;
    request[1..5].copy_from_slice(&(body.len() as u32).to_be_bytes());
    request.extend_from_slice(&body);
    let answer = send(agent.address, "POST /process.Process/Start", &headers, &request).await;
    assert_eq!(answer.envelopes()[1].1, json!({"event": {"data": {"stdout": base64("packed\n")}}}));
    // What unpacks to more than a message may have is refused, and not unpacked.
    let bomb = pack(&vec![b' '; 200 << 20]);
    let headers = [token, "content-type: application/json", "content-encoding: gzip"];
    let refused = send(agent.address, "POST /filesystem.Filesystem/Stat", &headers, &bomb).await;
    assert_eq!(refused.json()["code"], "resource_exhausted", "{}", refused.json());
    assert!(agent.peak_memory() < 48 << 20, "{} bytes", agent.peak_memory());
}

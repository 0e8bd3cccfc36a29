//! The routes that E2B's clients call, as far as they go without a guest: sandboxes are entered into the database as if a host
//! elsewhere had them.

#[path = "../../../tests/shared/e2b.rs"]
mod library;

use std::path::Path;

use base64::Engine as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{TestServer, answer, text};

/// Method and path of every route, with `ID` for a sandbox, and whether it is about one.
const ROUTES: &[(&str, &str)] = &[
    ("POST", "/sandboxes"),
    ("POST", "/v2/sandboxes"),
    ("GET", "/sandboxes"),
    ("GET", "/v2/sandboxes"),
    ("GET", "/sandboxes/ID"),
    ("DELETE", "/sandboxes/ID"),
    ("POST", "/sandboxes/ID/connect"),
    ("POST", "/v2/sandboxes/ID/connect"),
    ("POST", "/sandboxes/ID/pause"),
    ("POST", "/sandboxes/ID/resume"),
    ("POST", "/sandboxes/ID/timeout"),
    ("POST", "/sandboxes/ID/refreshes"),
    ("GET", "/sandboxes/ID/metrics"),
    ("PUT", "/sandboxes/ID/network"),
    ("POST", "/sandboxes/ID/snapshots"),
    ("POST", "/sandboxes/ID/fork"),
    ("GET", "/snapshots"),
    ("DELETE", "/templates/mine"),
    ("GET", "/templates/aliases/mine"),
];

/// A server with an account, its key, and a host that lives in another process.
struct Api {
    server: TestServer,
    key: String,
    team: String,
}

impl Api {
    async fn start() -> Self {
        let server = TestServer::start().await;
        server.database.query("INSERT INTO hosts (name, endpoint) VALUES ('elsewhere', 'in-process')");
        let (key, team) = member(&server, "ada@example.org").await;
        Self { server, key, team }
    }

    /// Enters a sandbox; the values are SQL.
    fn enter(&self, id: &str, state: &str, more: &[(&str, &str)]) {
        let mut columns = vec![
            ("id", format!("'{id}'")),
            ("team_id", format!("'{}'", self.team)),
            ("host", "'elsewhere'".to_owned()),
            ("state", format!("'{state}'")),
            ("template", "'debian'".to_owned()),
            ("vcpus", "2".to_owned()),
            ("memory_mib", "512".to_owned()),
            ("on_timeout", "'destroy'".to_owned()),
        ];
        for (name, value) in more {
            columns.retain(|(known, _)| known != name);
            columns.push((name, (*value).to_owned()));
        }
        let (names, values): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        let (names, values) = (names.join(", "), values.join(", "));
        self.server.database.query(&format!("INSERT INTO sandboxes ({names}) VALUES ({values})"));
    }

    fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.server.request(method.parse().unwrap(), path).header("x-api-key", &self.key)
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let request = self.request(method, path);
        let request = if body.is_null() { request } else { request.json(&body) };
        let (status, body) = answer(request).await;
        (status.as_u16(), body)
    }

    /// A request for the agent's port of a sandbox, as clients send it that have one URL for all of them.
    fn agent(&self, method: Method, id: &str, path: &str, token: &str) -> reqwest::RequestBuilder {
        let request = self
            .server
            .request(method, path)
            .header("e2b-sandbox-id", id)
            .header("e2b-sandbox-port", "49983");
        if token.is_empty() { request } else { request.header("x-access-token", token) }
    }

    async fn token(&self, id: &str) -> String {
        text(&self.call("GET", &format!("/sandboxes/{id}"), Value::Null).await.1["envdAccessToken"])
    }

    fn state(&self, id: &str) -> String {
        self.server.database.query(&format!("SELECT state FROM sandboxes WHERE id = '{id}'"))[0].clone()
    }
}

/// Makes an account; a key of its team, and the team.
async fn member(server: &TestServer, email: &str) -> (String, String) {
    let token = server.account(email).await;
    let (status, made) = server.post("/v1/keys", &token, json!({"name": "sdk"})).await;
    assert_eq!(status, 201, "{made}");
    (text(&made["key"]), server.team(&token).await)
}

/// An error as clients read it: the status is in the body too.
#[track_caller]
fn refused((status, body): (u16, Value), expected: u16, part: &str) {
    assert_eq!((status, &body["code"]), (expected, &json!(expected)), "{body}");
    assert!(body["message"].as_str().is_some_and(|message| message.contains(part)), "{body}");
}

fn plain((status, body): (StatusCode, Value)) -> (u16, Value) {
    (status.as_u16(), body)
}

#[tokio::test]
async fn no_route_says_anything_to_strangers() {
    let api = Api::start().await;
    api.enter("aaaaaaaaaaaaaaaa", "paused", &[]);
    let (other, _) = member(&api.server, "bob@example.org").await;
    for (method, path) in ROUTES {
        let path = path.replace("ID", "aaaaaaaaaaaaaaaa");
        let body = json!({"templateID": "base", "timeout": 60});
        let send = |key: &str| {
            let request = api.server.request(method.parse().unwrap(), &path);
            let request = if key.is_empty() { request } else { request.header("x-api-key", key) };
            answer(if *method == "GET" { request } else { request.json(&body) })
        };
        for key in ["", "wrn_forged", "e2b_0000"] {
            refused(plain(send(key).await), 401, "");
        }
        let (status, body) = send(&other).await;
        match path.as_str() {
            "/v2/sandboxes" | "/sandboxes" | "/snapshots" if *method == "GET" => {
                assert_eq!((status.as_u16(), &body), (200, &json!([])), "{path}");
            }
            // No host has the image: nothing was made.
            _ => refused((status.as_u16(), body), 404, ""),
        }
    }
    assert_eq!(api.state("aaaaaaaaaaaaaaaa"), "paused");
    api.server.stop().await;
}

#[tokio::test]
async fn a_sandbox_is_told_of_as_clients_read_it() {
    let api = Api::start().await;
    let made = "'2026-11-01T12:00:00.123456Z'";
    let more = [
        ("created_at", made),
        ("changed_at", made),
        ("metadata", "'{\"k\": \"v a\"}'"),
        ("on_timeout", "'pause'"),
    ];
    api.enter("aaaaaaaaaaaaaaaa", "paused", &more);
    let (status, found) = api.call("GET", "/sandboxes/aaaaaaaaaaaaaaaa", Value::Null).await;
    assert_eq!(status, 200, "{found}");
    let expected = json!({
        "templateID": "debian", "sandboxID": "aaaaaaaaaaaaaaaa", "clientID": "wrenn", "envdVersion": "0.6.13",
        "startedAt": "2026-11-01T12:00:00.123456Z", "endAt": "2026-11-01T12:00:00.123456Z", "cpuCount": 2, "memoryMB": 512,
        "diskSizeMB": 0, "metadata": {"k": "v a"}, "state": "paused", "domain": "localhost",
        "lifecycle": {"autoResume": false, "onTimeout": "pause"}, "envdAccessToken": found["envdAccessToken"],
    });
    assert_eq!(found, expected);
    assert_eq!(text(&found["envdAccessToken"]).len(), 43);
    for (id, state) in
        [("bbbbbbbbbbbbbbbb", "destroyed"), ("cccccccccccccccc", "failed"), ("dddddddddddddddd", "creating")]
    {
        api.enter(id, state, &[("lease_until", "now() + interval '1 hour'")]);
        refused(api.call("GET", &format!("/sandboxes/{id}"), Value::Null).await, 404, "no such sandbox");
    }
    for id in ["x", "%00", "AAAAAAAAAAAAAAAA", "..%2f..%2fhealth"] {
        refused(api.call("GET", &format!("/sandboxes/{id}"), Value::Null).await, 404, "no such sandbox");
    }
    api.enter("eeeeeeeeeeeeeeee", "missing", &[]);
    refused(api.call("GET", "/sandboxes/eeeeeeeeeeeeeeee", Value::Null).await, 503, "host");
    api.server.stop().await;
}

#[tokio::test]
async fn lists_are_narrowed_ordered_and_cut_into_pages() {
    let api = Api::start().await;
    for (n, id) in
        ["aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc", "dddddddddddddddd"].iter().enumerate()
    {
        let state = if n == 3 { "running" } else { "paused" };
        let (at, metadata) =
            (format!("'2026-11-0{}T12:00:00.5Z'", n + 1), format!("'{{\"n\": \"{n} &\", \"k\": \"v\"}}'"));
        api.enter(id, state, &[("created_at", &at), ("metadata", &metadata)]);
    }
    let ids = async |query: &str| {
        let response = api.request("GET", &format!("/v2/sandboxes?{query}")).send().await.unwrap();
        assert_eq!(response.status(), 200, "{query}");
        let next = response.headers().get("x-next-token").map(|token| token.to_str().unwrap().to_owned());
        let page: Value = response.json().await.unwrap();
        let first = |item: &Value| text(&item["sandboxID"]).remove(0);
        (page.as_array().unwrap().iter().map(first).collect::<String>(), next)
    };
    assert_eq!(ids("").await, ("dcba".to_owned(), None));
    assert_eq!(ids("order=asc&state=paused").await.0, "abc");
    assert_eq!(ids("state=running").await.0, "d");
    assert_eq!(ids("state=running%2Cpaused&startedAfter=2026-11-02T12%3A00%3A00.5Z").await.0, "dcb");
    assert_eq!(ids("template=base").await.0, "dcba");
    assert_eq!(ids("template=nothing").await.0, "");
    // As the clients encode `{"n": "1 &", "k": "v"}`: each part, then the query, then the query's value.
    assert_eq!(ids("metadata=n%3D1%252520%252526%26k%3Dv").await.0, "b");
    for order in ["asc", "desc"] {
        let (mut all, mut query) = (String::new(), format!("limit=3&order={order}"));
        loop {
            let (page, next) = ids(&query).await;
            all.push_str(&page);
            let Some(next) = next else { break };
            query = format!("limit=3&order={order}&nextToken={next}");
        }
        assert_eq!(all, if order == "asc" { "abcd" } else { "dcba" });
    }
    assert_eq!(api.call("GET", "/sandboxes", Value::Null).await.1.as_array().unwrap().len(), 1);
    for wrong in [
        "limit=0",
        "limit=101",
        "limit=x",
        "order=up",
        "state=gone",
        "nextToken=x",
        "startedAfter=today",
        "metadata=k%3D%2525ff",
    ] {
        refused(api.call("GET", &format!("/v2/sandboxes?{wrong}"), Value::Null).await, 400, "");
    }
    api.server.stop().await;
}

#[tokio::test]
async fn what_is_asked_for_and_cannot_be_done_is_refused_by_name() {
    let api = Api::start().await;
    for (body, part) in [
        (json!({"templateID": "base", "timeout": 0}), "timeout"),
        (json!({"templateID": "base", "timeout": -1}), "timeout"),
        (json!({"templateID": "base", "timeout": 99_999_999}), "timeout"),
        (json!({"timeout": 60}), "templateID"),
        (json!({"templateID": "base", "metadata": {"k": 1}}), "metadata"),
        (json!({"templateID": "base", "envVars": {"A=": "1"}}), "env"),
        (json!({"templateID": "base", "volumeMounts": [{"name": "v", "path": "/v"}]}), "volumeMounts"),
        (json!({"templateID": "base", "network": {"allowPublicTraffic": false}}), "allowPublicTraffic"),
        (json!({"templateID": "base", "network": {"egressProxy": {"address": "x"}}}), "egressProxy"),
        (
            json!({"templateID": "base", "network": {"allowOut": ["1.1.1.1"], "denyOut": ["8.8.8.8"]}}),
            "allowOut",
        ),
        (json!({"templateID": "base", "autoPause": true, "autoPauseMemory": false}), "autoPauseMemory"),
        (json!({"templateID": "base", "autoResume": {"enabled": true}}), "autoResume"),
    ] {
        for path in ["/sandboxes", "/v2/sandboxes"] {
            refused(api.call("POST", path, body.clone()).await, 400, part);
        }
    }
    for template in ["nothing", "../x", "", "a\u{0}b"] {
        refused(
            api.call("POST", "/v2/sandboxes", json!({"templateID": template})).await,
            404,
            "no such template",
        );
    }
    refused(api.call("GET", "/templates/aliases/base", Value::Null).await, 404, "no such template");
    api.server.database.query("UPDATE hosts SET images = '{debian}', up = true");
    let alias = json!({"templateID": "debian", "public": true});
    assert_eq!(api.call("GET", "/templates/aliases/base", Value::Null).await, (200, alias));
    // A host that has the image, and no room: clients are told when to try again.
    let full =
        api.request("POST", "/v2/sandboxes").json(&json!({"templateID": "base"})).send().await.unwrap();
    assert_eq!((full.status().as_u16(), full.headers().contains_key("retry-after")), (503, true));

    api.enter("aaaaaaaaaaaaaaaa", "paused", &[]);
    let path = "/sandboxes/aaaaaaaaaaaaaaaa";
    refused(api.call("POST", &format!("{path}/pause"), json!({})).await, 409, "paused already");
    refused(api.call("POST", &format!("{path}/pause"), json!({"memory": false})).await, 400, "memory");
    refused(api.call("POST", &format!("{path}/connect"), json!({"memory": false})).await, 400, "memory");
    refused(api.call("POST", &format!("{path}/timeout"), json!({"timeout": 60})).await, 404, "paused");
    refused(api.call("POST", &format!("{path}/timeout"), json!({"timeout": -1})).await, 400, "timeout");
    refused(api.call("POST", &format!("{path}/fork"), json!({"count": 21})).await, 400, "count");
    refused(api.call("POST", &format!("{path}/snapshots"), json!({"name": "a/b"})).await, 400, "name");
    refused(api.call("PUT", &format!("{path}/network"), json!({})).await, 400, "network");
    assert_eq!(api.call("GET", &format!("{path}/metrics"), Value::Null).await, (200, json!([])));
    // Its host is another process's: nothing was done, and it is as it was.
    let lost =
        api.request("POST", &format!("{path}/connect")).json(&json!({"timeout": 60})).send().await.unwrap();
    assert_eq!(lost.status(), 503);
    assert_eq!(api.state("aaaaaaaaaaaaaaaa"), "paused");
    assert_eq!(api.call("DELETE", path, Value::Null).await.0, 204);
    refused(api.call("DELETE", path, Value::Null).await, 404, "no such sandbox");
    api.server.stop().await;
}

#[tokio::test]
async fn agents_are_reached_only_with_their_token() {
    let api = Api::start().await;
    let id = "aaaaaaaaaaaaaaaa";
    api.enter(id, "paused", &[]);
    api.enter("bbbbbbbbbbbbbbbb", "paused", &[]);
    let (token, other) = (api.token(id).await, api.token("bbbbbbbbbbbbbbbb").await);
    assert_ne!(token, other);
    let gone = json!({"sandboxId": id, "message": "The sandbox was not found", "code": 502});
    for (method, path) in [
        (Method::GET, "/health"),
        (Method::GET, "/files?path=/a"),
        (Method::POST, "/process.Process/Start"),
        (Method::POST, "/filesystem.Filesystem/Stat"),
        (Method::GET, "/metrics"),
    ] {
        assert_eq!(
            answer(api.agent(method, id, path, &token)).await,
            (StatusCode::BAD_GATEWAY, gone.clone()),
            "{path}"
        );
    }
    for shown in ["", "x", &other] {
        let (status, body) = answer(api.agent(Method::POST, id, "/process.Process/List", shown)).await;
        assert_eq!((status.as_u16(), &body["code"]), (401, &json!("unauthenticated")), "{body}");
        refused(plain(answer(api.agent(Method::GET, id, "/files?path=/a", shown)).await), 401, "token");
    }
    // What only hosts do is no route, not even for who has the token.
    for path in ["/init", "/freeze", "//init", "/files/../init", "/process.Process"] {
        let request = api.agent(Method::POST, id, path, &token).body("{}");
        assert_eq!(answer(request).await.0, 404, "{path}");
    }
    let by_host = api.server.request(Method::GET, "/health").header("host", format!("49983-{id}.localhost"));
    assert_eq!(answer(by_host).await, (StatusCode::BAD_GATEWAY, gone));
    let unknown = answer(api.agent(Method::GET, "cccccccccccccccc", "/health", "")).await;
    assert_eq!((unknown.0.as_u16(), &unknown.1["message"]), (502, &json!("The sandbox was not found")));
    let other_port = api
        .server
        .request(Method::GET, "/x")
        .header("e2b-sandbox-id", id)
        .header("e2b-sandbox-port", "49999");
    assert_eq!(answer(other_port).await.0, 502);
    let no_port =
        api.server.request(Method::GET, "/x").header("e2b-sandbox-id", id).header("e2b-sandbox-port", "0");
    refused(plain(answer(no_port).await), 400, "Port");
    api.server.stop().await;
}

/// A signed URL as clients make it.
fn signed(path: &str, operation: &str, token: &str, expiration: Option<&str>) -> String {
    let tail = expiration.map(|at| format!(":{at}")).unwrap_or_default();
    let digest = Sha256::digest(format!("{path}:{operation}::{token}{tail}"));
    let signature = base64::engine::general_purpose::STANDARD_NO_PAD.encode(digest);
    let signature = signature.replace('+', "%2B").replace('/', "%2F");
    let expiration = expiration.map(|at| format!("&signature_expiration={at}")).unwrap_or_default();
    format!("/files?path={path}&signature=v1_{signature}{expiration}")
}

#[tokio::test]
async fn signed_urls_are_for_the_sandbox_that_they_were_signed_for() {
    let api = Api::start().await;
    for id in ["aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"] {
        api.enter(id, "paused", &[]);
    }
    let token = api.token("bbbbbbbbbbbbbbbb").await;
    let get = |url: String| answer(api.server.request(Method::GET, &url));
    let read = signed("/a", "read", &token, None);
    let (status, body) = get(read.clone()).await;
    assert_eq!((status.as_u16(), &body["sandboxId"]), (502, &json!("bbbbbbbbbbbbbbbb")), "{body}");
    refused(plain(answer(api.server.request(Method::POST, &read)).await), 401, "invalid signature");
    refused(plain(get(signed("/a", "read", "no token", None)).await), 401, "invalid signature");
    refused(plain(get(read.replace("path=/a", "path=/b")).await), 401, "invalid signature");
    let over = signed("/a", "read", &token, Some("1000000000"));
    let by_id = |url: &str| answer(api.agent(Method::GET, "bbbbbbbbbbbbbbbb", url, ""));
    refused(plain(by_id(&over).await), 401, "signature is already expired");
    refused(plain(get(over).await), 401, "signature is already expired");
    let later = signed("/a", "read", &token, Some("99999999999"));
    assert_eq!(by_id(&later).await.0, 502);
    refused(
        plain(answer(api.agent(Method::GET, "aaaaaaaaaaaaaaaa", &later, "")).await),
        401,
        "invalid signature",
    );
    api.server.stop().await;
}

#[tokio::test]
async fn a_sandbox_ends_when_its_time_is_over() {
    let api = Api::start().await;
    let end = |id: &str, version: i32, at: &str| {
        let columns = "INSERT INTO e2b_sandboxes (sandbox, version, ends_at)";
        api.server.database.query(&format!("{columns} VALUES ('{id}', {version}, now() + interval '{at}')"));
    };
    api.enter("aaaaaaaaaaaaaaaa", "running", &[]);
    api.enter("bbbbbbbbbbbbbbbb", "running", &[("version", "7")]);
    api.enter("cccccccccccccccc", "running", &[]);
    // Of an earlier run: whoever resumed it set another timeout.
    end("bbbbbbbbbbbbbbbb", 3, "-1 hour");
    end("cccccccccccccccc", 1, "1 hour");
    end("aaaaaaaaaaaaaaaa", 1, "1 second");
    let told = api.call("GET", "/sandboxes/cccccccccccccccc", Value::Null).await.1;
    assert!(text(&told["endAt"]) > text(&told["startedAt"]), "{told}");
    for tries in 0.. {
        if api.state("aaaaaaaaaaaaaaaa") == "destroyed" {
            break;
        }
        assert!(tries < 300, "it lives on");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(
        (api.state("bbbbbbbbbbbbbbbb"), api.state("cccccccccccccccc")),
        ("running".to_owned(), "running".to_owned())
    );
    api.server.stop().await;
}

#[tokio::test]
async fn the_python_library_reads_what_is_answered() {
    let api = Api::start().await;
    for (n, id) in ["aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc"].iter().enumerate() {
        let (at, metadata) =
            (format!("'2026-11-0{}T12:00:00.25Z'", n + 1), format!("'{{\"n\": \"{n} &=%\"}}'"));
        api.enter(id, "paused", &[("created_at", &at), ("metadata", &metadata)]);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2b/control.py");
    let (url, key) = (api.server.url(""), api.key.clone());
    let driven = tokio::task::spawn_blocking(move || library::run_against_server(&script, &url, &key));
    driven.await.unwrap().unwrap_or_else(|output| panic!("{output}"));
    assert_eq!(api.state("cccccccccccccccc"), "destroyed");
    api.server.stop().await;
}

//! Every route, as the API's own description lists them.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{DEAD_HOST, TestServer, answer, refused, text};

/// Method, path and description of every operation.
fn operations(document: &Value) -> Vec<(Method, String, &Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if let Ok(method) = method.to_uppercase().parse::<Method>() {
                all.push((method, path.clone(), operation));
            }
        }
    }
    all
}

/// A path with its parameters filled in: by name, or with something that is nobody's.
fn filled(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut path = path.to_owned();
    while let (Some(start), Some(end)) = (path.find('{'), path.find('}')) {
        let name = path[start + 1..end].to_owned();
        let value = parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        path.replace_range(start..=end, value.unwrap_or("01926f3e-7a0b-7c1d-8e2f-3a4b5c6d7e8f"));
    }
    path
}

/// A request that is right but for who sends it.
fn sound_request(
    server: &TestServer,
    method: &Method,
    path: &str,
    parameters: &[(&str, &str)],
) -> RequestBuilder {
    let mut url = filled(path, parameters);
    if path.contains("/files") {
        url.push_str("?path=/etc/passwd");
    }
    let request = server.request(method.clone(), &url);
    let last = path.rsplit('/').next().unwrap();
    let body = match (method.as_str(), last) {
        ("PATCH", "{user}") => json!({"role": "owner"}),
        ("PATCH", _) => json!({"name": "mine now"}),
        ("POST", "invitations") => json!({"role": "admin"}),
        ("POST", "exec" | "stream") => json!({"command": "true"}),
        ("POST", "mkdir") => json!({"path": "/x"}),
        ("POST", "rename") => json!({"from": "/x", "to": "/y"}),
        ("PUT", "timeout") => json!({"timeout_seconds": 60}),
        ("PUT", "draining") => json!({"draining": true}),
        ("PUT", "{host}" | "endpoint") => json!({"endpoint": "unix:/x"}),
        _ => return request,
    };
    request.json(&body)
}

#[tokio::test]
async fn without_credentials_no_route_says_more_than_401() {
    let server = TestServer::start().await;
    let document = server.get("/openapi.json", "").await.1;
    let operations = operations(&document);
    assert!(operations.len() >= 20, "only {} operations", operations.len());
    let mut public = Vec::new();
    for (method, path, operation) in &operations {
        // `security: [{}]` marks what needs none.
        if operation["security"] == serde_json::json!([{}]) {
            public.push(path.as_str());
            continue;
        }
        refused(answer(server.request(method.clone(), &filled(path, &[]))).await, 401, "unauthenticated");
        let forged = server.request(method.clone(), &filled(path, &[])).header("x-api-key", "wrn_forged");
        refused(answer(forged).await, 401, "unauthenticated");
    }
    public.sort_unstable();
    let expected = ["/health", "/metrics", "/ready", "/v1/auth/login", "/v1/auth/refresh", "/v1/auth/signup"];
    assert_eq!(public, expected);
    server.stop().await;
}

#[tokio::test]
async fn the_description_is_openapi_3_1_in_both_notations() {
    let server = TestServer::start().await;
    let document = server.get("/openapi.json", "").await.1;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    for (method, path, operation) in operations(&document) {
        let error = &operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(error, "#/components/schemas/Error", "{method} {path}");
        assert!(operation["summary"].is_string(), "{method} {path} has no summary");
    }
    let yaml = server.request(Method::GET, "/openapi.yaml").send().await.unwrap().text().await.unwrap();
    assert!(yaml.starts_with("openapi: 3.1"), "{}", &yaml[..60]);
    assert!(yaml.contains("/v1/auth/login:"));
    server.stop().await;
}

#[tokio::test]
async fn the_page_that_shows_it_needs_nothing_from_elsewhere() {
    let server = TestServer::start().await;
    let page = server.request(Method::GET, "/docs/").send().await.unwrap();
    assert_eq!(page.status(), 200);
    let page = page.text().await.unwrap();
    assert!(page.contains("swagger-ui") && !page.contains("https://"), "{page}");
    let script = server.request(Method::GET, "/docs/swagger-ui-bundle.js").send().await.unwrap();
    assert_eq!(script.status(), 200);
    assert!(script.text().await.unwrap().len() > 100_000);
    server.stop().await;
}

#[tokio::test]
async fn what_belongs_to_another_team_is_not_found_on_any_route() {
    let server = TestServer::start().await;
    let (ada, bob) = (server.account("ada@example.org").await, server.account("bob@example.org").await);
    let team = server.team(&ada).await;
    let user = text(&server.get("/v1/me", &ada).await.1["id"]);
    let key = text(&server.post("/v1/keys", &ada, json!({"name": "k"})).await.1["id"]);
    let invitations = format!("/v1/teams/{team}/invitations");
    let invitation = text(&server.post(&invitations, &ada, json!({"role": "admin"})).await.1["id"]);
    let sandbox = "adas0sandbox0000";
    server.enter_sandbox(&team, sandbox, "running");
    server.database.query(&format!(
        "INSERT INTO snapshots (id, team_id, host, name, state, sandbox, vcpus, memory_mib)
         VALUES (gen_random_uuid(), '{team}', '{DEAD_HOST}', 'adas-snapshot', 'ready', '{sandbox}', 1, 256)"
    ));
    let parameters = [
        ("team", team.as_str()),
        ("user", &user),
        ("key", &key),
        ("invitation", &invitation),
        ("sandbox", sandbox),
        ("snapshot", "adas-snapshot"),
        ("host", DEAD_HOST),
        ("pid", "1"),
    ];
    let bobs_key = text(&server.post("/v1/keys", &bob, json!({"name": "k"})).await.1["key"]);
    let document = server.get("/openapi.json", "").await.1;
    let (mut scoped, mut lists) = (0, 0);
    for (method, path, operation) in operations(&document) {
        if operation["security"] == json!([{}]) {
            continue;
        }
        if path.contains('{') {
            scoped += 1;
            let request = || sound_request(&server, &method, &path, &parameters);
            refused(answer(request().bearer_auth(&bob)).await, 404, "not_found");
            let (status, body) = answer(request().header("x-api-key", &bobs_key)).await;
            // A key may be told that it is a key before anything is looked for.
            let known = status == 403 && body["error"]["code"] == "forbidden" && !path.contains("{sandbox}");
            assert!(status == 404 || known, "{method} {path}: {status} {body}");
        } else if method == Method::GET && path != "/v1/audit" && path != "/v1/me" && path != "/v1/hosts" {
            lists += 1;
            let (status, body) = server.get(&path, &bob).await;
            assert_eq!(status, 200, "{path} {body}");
            let body = body.to_string();
            let leaked = parameters[..6].iter().find(|(_, value)| body.contains(value));
            assert!(leaked.is_none(), "{path}: {leaked:?} in {body}");
        }
    }
    assert!(scoped >= 30 && lists >= 4, "{scoped} {lists}");
    refused(server.get("/v1/hosts", &bob).await, 404, "not_found");
    // And all of it is where it was.
    let (status, found) = server.get(&format!("/v1/sandboxes/{sandbox}"), &ada).await;
    assert_eq!((status.as_u16(), &found["id"]), (200, &json!(sandbox)));
    server.stop().await;
}

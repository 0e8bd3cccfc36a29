//! Every route, as the API's own description lists them.

use reqwest::Method;
use serde_json::Value;

use crate::support::{TestServer, answer, refused};

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

/// A path with its parameters filled in.
fn filled(path: &str) -> String {
    let mut path = path.to_owned();
    while let (Some(start), Some(end)) = (path.find('{'), path.find('}')) {
        path.replace_range(start..=end, "01926f3e-7a0b-7c1d-8e2f-3a4b5c6d7e8f");
    }
    path
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
        refused(answer(server.request(method.clone(), &filled(path))).await, 401, "unauthenticated");
        let forged = server.request(method.clone(), &filled(path)).header("x-api-key", "wrn_forged");
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

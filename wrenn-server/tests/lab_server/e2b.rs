//! E2B's own Python library, unmodified, against the server and the guests of its host: see `../e2b/drive.py`.

#[path = "../../../tests/shared/e2b.rs"]
mod library;

use std::path::Path;

use reqwest::Method;
use serde_json::json;

use crate::support::{Api, text};

#[tokio::test]
async fn the_python_library_drives_server_and_sandboxes() {
    let api = Api::start().await;
    let key = text(&api.call(Method::POST, "/v1/keys", Some(json!({"name": "sdk"})), 201).await["key"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2b/drive.py");
    let url = api.url("");
    let driven = tokio::task::spawn_blocking(move || library::run_against_server(&script, &url, &key));
    println!("{}", driven.await.unwrap().unwrap_or_else(|output| panic!("{output}")));
}

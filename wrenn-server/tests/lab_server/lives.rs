//! Lives of sandboxes, from their making to their end.

use reqwest::Method;
use serde_json::json;

use crate::support::{Api, eventually, text};

pub(crate) async fn a_sandbox_goes_through_its_whole_life(api: Api) {
    let new = json!({"env": {"GREETING": "hello"}, "metadata": {"of": "life"}});
    let id = api.sandbox(new).await;
    let path = format!("/v1/sandboxes/{id}");
    let found = api.get("/v1/sandboxes?metadata=%7B%22of%22:%22life%22%7D").await;
    assert_eq!(found["sandboxes"][0]["id"], json!(id));
    assert_eq!(api.run(&id, "echo $GREETING").await, "hello\n");
    let used = api.get(&format!("{path}/metrics")).await;
    assert!(used["memory_resident_bytes"].as_u64().unwrap() > 1 << 20, "{used}");

    let paused = api.call(Method::POST, &format!("{path}/pause"), None, 200).await;
    assert_eq!(paused["state"], "paused");
    let refused = json!({"command": "true"});
    api.call(Method::POST, &format!("{path}/exec"), Some(refused), 409).await;
    let resumed = api.call(Method::POST, &format!("{path}/resume"), None, 200).await;
    assert_eq!(resumed["state"], "running");
    assert_eq!(api.run(&id, "echo $GREETING").await, "hello\n");

    api.run(&id, "echo original > /root/whose").await;
    let branches = api.call(Method::POST, &format!("{path}/branch"), Some(json!({"count": 2})), 201).await;
    for branch in branches["sandboxes"].as_array().unwrap() {
        let branch = text(&branch["id"]);
        assert_eq!(api.run(&branch, "cat /root/whose").await, "original\n");
        api.run(&branch, "echo branch > /root/whose").await;
        api.call(Method::DELETE, &format!("/v1/sandboxes/{branch}"), None, 204).await;
    }
    assert_eq!(api.run(&id, "cat /root/whose").await, "original\n");

    let snapshot = json!({"sandbox": id, "name": "mine"});
    let made = api.call(Method::POST, "/v1/snapshots", Some(snapshot.clone()), 201).await;
    assert_eq!(made["state"], "ready");
    api.call(Method::POST, "/v1/snapshots", Some(snapshot), 409).await;
    api.call(Method::DELETE, &path, None, 204).await;
    api.call(Method::GET, &path, None, 404).await;
    let copy = api.sandbox(json!({"template": "mine"})).await;
    assert_eq!(api.run(&copy, "cat /root/whose").await, "original\n");
    api.call(Method::DELETE, "/v1/snapshots/mine", None, 204).await;
    assert_eq!(api.get("/v1/snapshots").await["snapshots"], json!([]));
    assert_eq!(api.run(&copy, "cat /root/whose").await, "original\n");
}

pub(crate) async fn commands_take_bytes_and_give_bytes(api: Api) {
    let id = api.sandbox(json!({})).await;
    let path = format!("/v1/sandboxes/{id}/exec");
    let exec = async |body| api.call(Method::POST, &path, Some(body), 200).await;
    let result = exec(json!({"command": ["/bin/sh", "-c", "cat; echo on stderr >&2; exit 3"],
                             "stdin": "AP9+Cg==", "encoding": "base64"}))
    .await;
    assert_eq!((&result["stdout"], &result["exit_code"]), (&json!("AP9+Cg=="), &json!(3)));
    let result = exec(json!({"command": "printf '\\377x'"})).await;
    assert_eq!(result["stdout"], "\u{fffd}x");
    let result =
        exec(json!({"command": "pwd; echo $A; id -un", "cwd": "/tmp", "env": {"A": "b"}, "user": "root"}))
            .await;
    assert_eq!(result["stdout"], "/tmp\nb\nroot\n");
    let result = exec(json!({"command": "kill -9 $$"})).await;
    assert_eq!((&result["exit_code"], &result["signal"]), (&json!(-1), &json!(9)));
    let result = exec(json!({"command": "head -c 5000000 /dev/zero"})).await;
    assert_eq!(
        (result["stdout"].as_str().unwrap().len(), &result["stdout_truncated"]),
        (4 << 20, &json!(true))
    );
    let slow = json!({"command": "sleep 60", "timeout_seconds": 1});
    let body = api.call(Method::POST, &path, Some(slow), 408).await;
    assert_eq!(body["error"]["code"], "command_timeout");
    for refused in
        [json!({"command": ["/no/such/program"]}), json!({"command": "true", "user": "nobody-such"})]
    {
        let body = api.call(Method::POST, &path, Some(refused), 400).await;
        assert_eq!(body["error"]["code"], "invalid_request");
    }
    // Nothing of all this runs still.
    eventually("no command is left", async || {
        api.get(&format!("/v1/sandboxes/{id}/processes")).await["processes"] == json!([])
    })
    .await;
}

pub(crate) async fn files_are_moved_in_and_out_and_about(api: Api) {
    let id = api.sandbox(json!({})).await;
    let files = format!("/v1/sandboxes/{id}/files");
    let contents: Vec<u8> = (0..20_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 4]).collect();
    let put = api.request(Method::PUT, &format!("{files}?path=/root/deep/er/big")).body(contents.clone());
    assert_eq!(put.send().await.unwrap().status(), 200);
    let got = api.request(Method::GET, &format!("{files}?path=/root/deep/er/big")).send().await.unwrap();
    assert_eq!(got.headers()["content-length"], contents.len().to_string());
    assert!(got.bytes().await.unwrap() == contents, "the contents changed on their way");
    let stat = api.get(&format!("{files}/stat?path=/root/deep/er/big")).await;
    assert_eq!((&stat["kind"], &stat["size"]), (&json!("file"), &json!(contents.len())));
    let list = api.get(&format!("{files}/list?path=/root/deep&depth=2")).await;
    let paths: Vec<_> = list["files"].as_array().unwrap().iter().map(|file| text(&file["path"])).collect();
    assert_eq!(paths, ["/root/deep/er", "/root/deep/er/big"]);
    let new = json!({"path": "/root/new"});
    api.call(Method::POST, &format!("{files}/mkdir"), Some(new.clone()), 201).await;
    let body = api.call(Method::POST, &format!("{files}/mkdir"), Some(new), 409).await;
    assert_eq!(body["error"]["code"], "conflict");
    let rename = json!({"from": "/root/deep/er/big", "to": "/root/new/big"});
    api.call(Method::POST, &format!("{files}/rename"), Some(rename), 200).await;
    api.call(Method::DELETE, &format!("{files}?path=/root/deep"), None, 204).await;
    for gone in ["/root/deep", "/root/deep/er/big", "/no/such/file"] {
        let body = api.call(Method::GET, &format!("{files}?path={gone}"), None, 404).await;
        assert_eq!(body["error"]["code"], "not_found");
    }
    // A path leads about the guest's own files, however it is written, and never out of it.
    let passwd =
        api.request(Method::GET, &format!("{files}?path=../../../../etc/hostname")).send().await.unwrap();
    assert_eq!(passwd.text().await.unwrap(), api.run(&id, "cat /etc/hostname").await);
    for wrong in ["", "a%00b", &"x".repeat(5000)] {
        api.call(Method::GET, &format!("{files}?path={wrong}"), None, 400).await;
    }
}

pub(crate) async fn one_key_makes_one_sandbox(api: Api) {
    let create = async |body: serde_json::Value| {
        let request = api.request(Method::POST, "/v1/sandboxes").header("idempotency-key", "a key");
        let response = request.json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json::<serde_json::Value>().await.unwrap())
    };
    let new = json!({"template": "debian", "timeout_seconds": 0});
    let (one, two) = tokio::join!(create(new.clone()), create(new.clone()));
    assert_eq!((one.0, two.0), (201, 201), "{one:?} {two:?}");
    assert_eq!(one.1["id"], two.1["id"]);
    assert_eq!(create(new).await.1["id"], one.1["id"]);
    let other = create(json!({"template": "debian", "vcpus": 2})).await;
    assert_eq!((other.0, &other.1["error"]["code"]), (422, &json!("idempotency_key_reused")));
    assert_eq!(api.get("/v1/sandboxes").await["sandboxes"].as_array().unwrap().len(), 1);
}

pub(crate) async fn an_idle_sandbox_is_paused_and_the_api_says_why(api: Api) {
    let id = api.sandbox(json!({"timeout_seconds": 5, "on_timeout": "pause"})).await;
    eventually("it is paused", async || api.state(&id).await == "paused").await;
    let found = api.get(&format!("/v1/sandboxes/{id}")).await;
    assert_eq!(found["reason"], "it was idle for its timeout");
    let timeout = json!({"timeout_seconds": 3, "on_timeout": "destroy"});
    let resumed = api.call(Method::POST, &format!("/v1/sandboxes/{id}/resume"), Some(timeout), 200).await;
    assert_eq!((&resumed["timeout_seconds"], &resumed["on_timeout"]), (&json!(3), &json!("destroy")));
    eventually("it is gone", async || api.state(&id).await == "gone").await;
    let over = api.get("/v1/sandboxes?state=destroyed").await;
    assert_eq!(over["sandboxes"][0]["reason"], "it was idle for its timeout");
}

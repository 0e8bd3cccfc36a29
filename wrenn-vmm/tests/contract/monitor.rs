//! The built-in monitor against the description: every route, with good and bad bodies, before any boot.
//!
//! None of this needs KVM. What needs a machine (a refused call after boot, a snapshot) is tested with one.

use serde_json::{Value, json};
use wrenn_vmm::MonitorProcess;

use crate::common::{PATIENCE, Scene, block_on, monitor, raw};
use crate::spec::Spec;

/// The operations that the monitor must serve, each with the status of a plain success.
const OFFERED: [(&str, &str); 13] = [
    ("get", "/"),
    ("get", "/version"),
    ("get", "/machine-config"),
    ("put", "/machine-config"),
    ("put", "/boot-source"),
    ("put", "/drives/{drive_id}"),
    ("put", "/network-interfaces/{iface_id}"),
    ("put", "/entropy"),
    ("put", "/logger"),
    ("put", "/actions"),
    ("patch", "/vm"),
    ("put", "/snapshot/create"),
    ("put", "/snapshot/load"),
];

/// Runs `body` against a monitor that has just been started.
async fn fresh<T>(body: impl AsyncFnOnce(&MonitorProcess) -> T) -> T {
    let mut scene = Scene::new();
    let process = MonitorProcess::spawn(scene.spec(monitor()), &mut scene.undo).unwrap();
    process.wait_ready(PATIENCE).await.unwrap();
    let result = body(&process).await;
    process.shutdown(PATIENCE).await.unwrap();
    scene.finish();
    result
}

/// Sends one request and holds the answer against the description; the status and fault message.
async fn ask(spec: &Spec, process: &MonitorProcess, method: &str, path: &str, body: &str) -> (u16, String) {
    let answer = raw::request(process.client().socket(), method, path, body).await;
    let (status, answer) = answer.unwrap_or_else(|why| panic!("{method} {path} {body}: {why}"));
    if let Err(why) = spec.check_response(method, path, status, &answer) {
        panic!("{method} {path} {body}: {status} {}: {why}", String::from_utf8_lossy(&answer));
    }
    let fault = serde_json::from_slice::<Value>(&answer).unwrap_or_default();
    (status, fault["fault_message"].as_str().unwrap_or_default().to_owned())
}

/// A path in which every parameter is what the sample bodies call it.
fn concrete(template: &str) -> String {
    let parts = template.split('/').map(|part| if part.starts_with('{') { "sample" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[test]
fn every_answer_to_a_valid_request_is_one_the_description_lists() {
    let Some(spec) = Spec::load() else { return };
    block_on(async {
        let mut asked = 0;
        // Routes that the monitor does not serve as well: a refusal has its form too.
        for (template, operations) in &spec.paths {
            for (method, operation) in operations {
                let bodies: Vec<String> = match spec.body(operation) {
                    Some(schema) => spec.bodies(schema).iter().map(Value::to_string).collect(),
                    None => vec![String::new()],
                };
                asked += bodies.len();
                // A refused snapshot may end a monitor, as it does end Firecracker: then each gets its own.
                let at_once = if template == "/snapshot/load" { 1 } else { bodies.len() };
                for bodies in bodies.chunks(at_once) {
                    fresh(async |process| {
                        for body in bodies {
                            ask(&spec, process, method, &concrete(template), body).await;
                        }
                    })
                    .await;
                }
            }
        }
        assert!(asked > 100, "the description has more to ask than {asked} requests");
    });
}

#[test]
fn every_offered_route_refuses_what_does_not_conform() {
    let Some(spec) = Spec::load() else { return };
    block_on(async {
        for (method, template) in OFFERED {
            let path = concrete(template);
            let (_, operation) = spec.route(method, &path).unwrap();
            let Some(schema) = spec.body(operation) else { continue };
            let minimal = spec.minimal(schema);
            let mut refused = vec![String::new(), "{".into(), "null".into(), "\"text\"".into()];
            let mut unknown = minimal.clone();
            unknown["no_such_field"] = json!(1);
            refused.push(unknown.to_string());
            for field in &schema.required {
                let mut body = minimal.clone();
                body.as_object_mut().unwrap().remove(field);
                refused.push(body.to_string());
            }
            for field in schema.properties.keys() {
                let mut body = minimal.clone();
                body[field] = json!([[1.5]]);
                refused.push(body.to_string());
            }
            fresh(async |process| {
                for body in &refused {
                    let (status, fault) = ask(&spec, process, method, &path, body).await;
                    assert_eq!(status, 400, "{method} {path} {body}");
                    assert!(!fault.is_empty(), "{method} {path} {body}: a refusal says why");
                }
                let (status, _) = ask(&spec, process, "get", "/", "").await;
                assert_eq!(status, 200, "what could not be read did no harm");
            })
            .await;
        }
    });
}

#[test]
fn configuration_that_is_right_is_taken_and_told_again() {
    let Some(spec) = Spec::load() else { return };
    block_on(fresh(async |process| {
        let machine = json!({ "vcpu_count": 2, "mem_size_mib": 256, "track_dirty_pages": true });
        for (method, path, body) in [
            ("put", "/machine-config", machine.to_string()),
            ("put", "/entropy", "{}".into()),
            ("put", "/logger", json!({ "level": "Debug" }).to_string()),
        ] {
            let (status, fault) = ask(&spec, process, method, path, &body).await;
            assert_eq!(status, 204, "{method} {path} {body}: {fault}");
        }
        let (status, told) =
            raw::request(process.client().socket(), "get", "/machine-config", "").await.unwrap();
        let told: Value = serde_json::from_slice(&told).unwrap();
        assert_eq!((status, &told["vcpu_count"], &told["mem_size_mib"]), (200, &json!(2), &json!(256)));
    }));
}

#[test]
fn values_out_of_range_and_calls_out_of_phase_are_refused() {
    let Some(spec) = Spec::load() else { return };
    let drive = |id: &str| json!({ "drive_id": id, "is_root_device": false, "is_read_only": true, "path_on_host": "/no" });
    let load =
        json!({ "snapshot_path": "/no", "mem_backend": { "backend_type": "File", "backend_path": "/no" } });
    let refused = [
        ("put", "/machine-config", json!({ "vcpu_count": 0, "mem_size_mib": 128 })),
        ("put", "/machine-config", json!({ "vcpu_count": 33, "mem_size_mib": 128 })),
        ("put", "/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 0 })),
        ("put", "/boot-source", json!({ "kernel_image_path": "/no/such/kernel" })),
        ("put", "/drives/a", drive("a")),
        ("put", "/drives/a", drive("b")),
        ("patch", "/vm", json!({ "state": "Paused" })),
        ("patch", "/vm", json!({ "state": "Resumed" })),
        ("put", "/actions", json!({ "action_type": "InstanceStart" })),
        ("put", "/snapshot/create", json!({ "snapshot_path": "/no", "mem_file_path": "/no" })),
        ("put", "/snapshot/load", load),
    ];
    block_on(async {
        for (method, path, body) in refused {
            let body = body.to_string();
            let (status, fault) = fresh(async |process| ask(&spec, process, method, path, &body).await).await;
            assert_eq!(status, 400, "{method} {path} {body}");
            assert!(!fault.is_empty(), "{method} {path} {body}");
        }
    });
}

#[test]
fn what_is_no_route_is_refused_in_the_same_form() {
    let Some(spec) = Spec::load() else { return };
    block_on(fresh(async |process| {
        for (method, path) in [
            ("get", "/nowhere"),
            ("put", "/"),
            ("delete", "/machine-config"),
            ("put", "/drives/"),
            ("get", "/vm"),
        ] {
            let (status, body) = raw::request(process.client().socket(), method, path, "").await.unwrap();
            assert_eq!(status, 400, "{method} {path}");
            let body: Value = serde_json::from_slice(&body).unwrap();
            spec.check(spec.definition("Error"), &body, "answer").unwrap();
        }
    }));
}

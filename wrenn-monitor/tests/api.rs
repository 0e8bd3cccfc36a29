//! The monitor's process and its API, as far as they need no guest.

mod machine;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use machine::Monitor;

fn monitor() -> (tempfile::TempDir, Monitor) {
    let dir = tempfile::tempdir().unwrap();
    let monitor = Monitor::start(dir.path(), "api");
    (dir, monitor)
}

fn run(args: &[&str]) -> Output {
    #[allow(clippy::disallowed_methods)] // The monitor is what is tested.
    Command::new(env!("CARGO_BIN_EXE_wrenn-monitor")).args(args).output().unwrap()
}

/// The seccomp mode of each thread: 0 none, 2 filtered.
fn seccomp_modes(process: u32) -> Vec<(String, u32)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mode = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap().trim().to_owned();
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).unwrap();
        (name, mode.trim().parse().unwrap())
    };
    tasks.map(|task| mode(task.unwrap())).collect()
}

#[test]
fn a_machine_is_configured_and_described() {
    let (dir, monitor) = monitor();
    let disk = dir.path().join("disk");
    fs::write(&disk, [0; 4096]).unwrap();
    let get = |path: &str| -> serde_json::Value {
        serde_json::from_str(&monitor.request("GET", path, "")).unwrap()
    };
    assert_eq!(get("/")["state"], "Not started");
    assert_eq!(get("/")["app_name"], "wrenn-monitor");
    assert_eq!(get("/version")["firecracker_version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(get("/machine-config"), serde_json::json!({"vcpu_count": 1, "mem_size_mib": 128}));
    monitor.put("/machine-config", r#"{"vcpu_count":2,"mem_size_mib":256,"track_dirty_pages":true}"#);
    monitor.request("PATCH", "/machine-config", r#"{"vcpu_count":4}"#);
    monitor.put(
        "/drives/root",
        &format!(r#"{{"drive_id":"root","is_root_device":true,"path_on_host":{disk:?}}}"#),
    );
    monitor.put("/entropy", "{}");
    let config = get("/vm/config");
    let machine = serde_json::json!({"vcpu_count": 4, "mem_size_mib": 256, "track_dirty_pages": true});
    assert_eq!(config["machine-config"], machine);
    assert_eq!(config["drives"][0]["drive_id"], "root");
    assert_eq!(config["entropy"], serde_json::json!({}));
}

#[test]
fn every_route_is_known_to_the_process() {
    let (_dir, monitor) = monitor();
    assert!(wrenn_monitor::api_routes().count() >= 14);
    for (method, route) in wrenn_monitor::api_routes() {
        let path = route.split_once('{').map_or(route.to_owned(), |(start, _)| format!("{start}x"));
        if method == "GET" {
            monitor.request(method, &path, "");
            let answer = monitor.refused(method, &path, "{}");
            assert!(answer.contains("takes no body"), "{answer}");
        } else {
            let answer = monitor.refused(method, &path, r#"{"no_such_field":1}"#);
            assert!(answer.contains("unknown field `no_such_field`"), "{method} {path}: {answer}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (dir, monitor) = monitor();
    let before = monitor.request("GET", "/vm/config", "");
    let directory = dir.path();
    for (method, path, body, part) in [
        ("PUT", "/machine-config", r#"{"vcpu_count":0,"mem_size_mib":128}"#.to_owned(), "vCPUs"),
        ("PUT", "/machine-config", r#"{"vcpu_count":33,"mem_size_mib":128}"#.to_owned(), "vCPUs"),
        ("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":0}"#.to_owned(), "MiB"),
        ("PUT", "/boot-source", r#"{"kernel_image_path":"/nowhere/kernel"}"#.to_owned(), "/nowhere/kernel"),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false,"path_on_host":"/nowhere/disk"}"#.to_owned(),
            "/nowhere/disk",
        ),
        (
            "PUT",
            "/drives/a",
            format!(r#"{{"drive_id":"a","is_root_device":false,"path_on_host":{directory:?}}}"#),
            "drive",
        ),
        (
            "PUT",
            "/network-interfaces/a",
            r#"{"iface_id":"a","host_dev_name":"wrenn-no-tap"}"#.to_owned(),
            "wrenn-no-tap",
        ),
        ("PUT", "/logger", r#"{"log_path":"/nowhere/log"}"#.to_owned(), "/nowhere/log"),
        ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#.to_owned(), "boot source"),
        ("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#.to_owned(), "not offered"),
        ("PATCH", "/vm", r#"{"state":"Paused"}"#.to_owned(), "before starting"),
        ("PATCH", "/vm", r#"{"state":"Resumed"}"#.to_owned(), "before starting"),
        (
            "PUT",
            "/snapshot/create",
            r#"{"snapshot_path":"/nowhere/s","mem_file_path":"/nowhere/m"}"#.to_owned(),
            "before starting",
        ),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path":"/nowhere/s","mem_backend":{"backend_type":"File","backend_path":"/nowhere/m"}}"#
                .to_owned(),
            "/nowhere/s",
        ),
        ("POST", "/", String::new(), "there is no POST /"),
        ("GET", "/balloon", String::new(), "there is no GET /balloon"),
    ] {
        let answer = monitor.refused(method, path, &body);
        let fault: serde_json::Value = serde_json::from_str(&answer).unwrap();
        let message = fault["fault_message"].as_str().unwrap();
        assert!(message.contains(part), "{method} {path} {body}: {message}");
    }
    assert_eq!(monitor.request("GET", "/vm/config", ""), before);
}

#[test]
fn a_configured_machine_loads_no_snapshot() {
    let (_dir, monitor) = monitor();
    monitor.put("/machine-config", r#"{"vcpu_count":2,"mem_size_mib":256}"#);
    let body = r#"{"snapshot_path":"/s","mem_backend":{"backend_type":"File","backend_path":"/m"}}"#;
    let answer = monitor.refused("PUT", "/snapshot/load", body);
    assert!(answer.contains("after configuring"), "{answer}");
}

#[test]
fn system_calls_are_restricted_in_every_thread() {
    let (_dir, monitor) = monitor();
    // An answer means that both threads have got to their loops.
    monitor.request("GET", "/", "");
    let modes = seccomp_modes(monitor.process_id());
    assert_eq!(modes.len(), 2, "{modes:?}");
    assert!(modes.iter().all(|(_, mode)| *mode == 2), "{modes:?}");
}

#[test]
fn the_log_goes_where_it_is_told_to() {
    let (dir, monitor) = monitor();
    let log = dir.path().join("log");
    monitor.put("/logger", &format!(r#"{{"log_path":{log:?},"level":"Debug","show_level":true}}"#));
    monitor.refused("GET", "/nothing", "");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains(":WARN] GET /nothing was refused"), "{text}");
    monitor.put("/logger", r#"{"level":"Off"}"#);
    let len = fs::metadata(&log).unwrap().len();
    monitor.refused("GET", "/nothing", "");
    assert_eq!(fs::metadata(&log).unwrap().len(), len);
}

#[test]
fn arguments_are_checked_first() {
    for (args, code, part) in [
        (&["--version"][..], 0, concat!("wrenn-monitor v", env!("CARGO_PKG_VERSION"))),
        (&["--help"], 0, "Usage: wrenn-monitor --api-sock PATH"),
        (&[], 2, "--api-sock is missing"),
        (&["--api-sock", "/nowhere/a", "--config-file", "x"], 2, "--config-file"),
        (&["--api-sock", "/nowhere/a", "--id", "a/b"], 2, "the id \"a/b\""),
        (&["--api-sock", "/nowhere/a.sock"], 1, "/nowhere/a.sock"),
        (&["--api-sock", "/nowhere/a", "--log-path", "/nowhere/log"], 1, "/nowhere/log"),
    ] {
        let output = run(args);
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(part), "{args:?}: {text}");
    }
}

#[test]
fn a_socket_in_use_is_left_alone() {
    let (dir, monitor) = monitor();
    let socket = dir.path().join("api.sock");
    let output = run(&["--api-sock", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(Path::new(&socket).exists());
    monitor.request("GET", "/", "");
}

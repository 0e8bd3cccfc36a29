//! Calls in the wrong phase, on a machine that runs.

mod machine;

use machine::{Monitor, SnapshotFiles, kernel, load_request, scratch};

#[test]
fn a_running_machine_takes_what_fits_its_phase_and_nothing_else() {
    let Some(kernel) = kernel() else { return };
    let dir = scratch();
    let monitor = Monitor::boot(dir.path(), &kernel, r#"{"vcpu_count":1,"mem_size_mib":128}"#, "");
    monitor.wait_for_tick(1);
    assert!(monitor.request("GET", "/", "").contains(r#""state":"Running""#));

    let files = SnapshotFiles::new(dir.path(), "early");
    let load = load_request(&files.state, "File", &files.memory);
    let refused = |method: &str, path: &str, body: &str| {
        let answer = monitor.refused(method, path, body);
        assert!(answer.starts_with(r#"{"fault_message":""#), "{method} {path}: {answer}");
    };
    let after_start = [
        ("PUT", "/machine-config", r#"{"vcpu_count":2,"mem_size_mib":256}"#),
        ("PATCH", "/machine-config", r#"{"vcpu_count":2}"#),
        ("PUT", "/boot-source", r#"{"kernel_image_path":"/k"}"#),
        ("PUT", "/drives/a", r#"{"drive_id":"a","is_root_device":false,"path_on_host":"/dev/null"}"#),
        ("PUT", "/network-interfaces/a", r#"{"iface_id":"a","host_dev_name":"tap0"}"#),
        ("PUT", "/entropy", "{}"),
        ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
        ("PUT", "/snapshot/load", load.as_str()),
    ];
    for (method, path, body) in after_start {
        refused(method, path, body);
    }
    // A snapshot is of a paused machine.
    refused("PUT", "/snapshot/create", &files.request("Full"));
    assert!(!files.state.exists() && !files.memory.exists(), "nothing is left of it");

    monitor.pause();
    assert!(monitor.request("GET", "/", "").contains(r#""state":"Paused""#));
    for (method, path, body) in after_start {
        refused(method, path, body);
    }
    // Twice is as good as once.
    monitor.pause();
    monitor.snapshot("Full", &files);
    monitor.resume();
    monitor.resume();
    let tick = monitor.ticks();
    monitor.wait_for_tick(tick + 2);
}

#[test]
fn every_thread_of_a_running_machine_is_restricted() {
    let Some(kernel) = kernel() else { return };
    let dir = scratch();
    let monitor = Monitor::boot(dir.path(), &kernel, r#"{"vcpu_count":2,"mem_size_mib":128}"#, "");
    monitor.wait_for_tick(1);
    let mut filtered = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", monitor.process_id())).unwrap() {
        let task = task.unwrap().path();
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let mode = status.lines().find(|line| line.starts_with("Seccomp:")).unwrap();
        filtered.push((std::fs::read_to_string(task.join("comm")).unwrap(), mode.ends_with('2')));
    }
    // The main thread, the API's and two vCPUs.
    assert_eq!(filtered.len(), 4, "{filtered:?}");
    assert!(filtered.iter().all(|(_, filtered)| *filtered), "{filtered:?}");
}

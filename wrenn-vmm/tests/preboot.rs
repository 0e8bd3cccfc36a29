//! The same sequence against the built-in monitor and, where there is one, against Firecracker: what neither needs
//! a KVM for.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{PATIENCE, Scene, block_on, monitor};
use wrenn_vmm::api::*;
use wrenn_vmm::{ExitCause, ExitStatus, MonitorProcess, MonitorProgram, VmmError};

/// Firecracker from `WRENN_FIRECRACKER`, else from `PATH`; where there is none, says so.
fn firecracker() -> Option<MonitorProgram> {
    if let Some(path) = std::env::var_os("WRENN_FIRECRACKER").map(PathBuf::from) {
        return Some(MonitorProgram::discover(Some(&path)).expect("WRENN_FIRECRACKER names a program"));
    }
    let found = MonitorProgram::discover(Some(Path::new("firecracker"))).ok();
    if found.is_none() {
        eprintln!("SKIP: no firecracker on PATH (name one in WRENN_FIRECRACKER)");
    }
    found
}

#[track_caller]
fn assert_fault(result: Result<(), VmmError>, name: &str) {
    match result {
        Err(VmmError::Fault { call, status, fault_message }) => {
            assert_eq!((call.as_str(), status.as_u16()), (name, 400), "{fault_message}");
            assert!(!fault_message.is_empty());
        }
        other => panic!("{name}: {other:?}"),
    }
}

async fn configure(scene: &Scene, process: &MonitorProcess) {
    let client = process.client();
    let machine = MachineConfig {
        vcpu_count: 2,
        mem_size_mib: 256,
        track_dirty_pages: true,
        ..MachineConfig::default()
    };
    client.put_machine_config(&machine).await.unwrap();
    assert_fault(
        client.put_machine_config(&MachineConfig { vcpu_count: 33, ..machine.clone() }).await,
        "PUT /machine-config",
    );
    assert_fault(
        client.put_machine_config(&MachineConfig { mem_size_mib: 0, ..machine }).await,
        "PUT /machine-config",
    );
    fs::write(scene.path("disk"), vec![0; 1 << 20]).unwrap();
    let drive = Drive {
        drive_id: "root".into(),
        path_on_host: Some(scene.path("disk")),
        is_read_only: Some(false),
        cache_type: Some(CacheType::Writeback),
        ..Drive::default()
    };
    client.put_drive(&drive).await.unwrap();
    let missing = Drive { path_on_host: Some(scene.path("no-such-disk")), ..drive };
    assert_fault(client.put_drive(&missing).await, "PUT /drives/root");
    client.put_entropy(&EntropyDevice::default()).await.unwrap();
    let boot = BootSource { kernel_image_path: scene.path("no-such-kernel"), ..BootSource::default() };
    assert_fault(client.put_boot_source(&boot).await, "PUT /boot-source");
    fs::write(scene.path("log"), "").unwrap();
    let logger =
        Logger { log_path: Some(scene.path("log")), level: Some(LogLevel::Info), ..Logger::default() };
    client.put_logger(&logger).await.unwrap();
    assert_fault(client.pause().await, "PATCH /vm");
    assert_fault(client.start_instance().await, "PUT /actions");
}

fn preboot(program: MonitorProgram) -> InstanceInfo {
    let mut scene = Scene::new();
    let spec = scene.spec(program);
    let id = spec.id.to_string();
    let process = MonitorProcess::spawn(spec, &mut scene.undo).unwrap();
    let info = block_on(async {
        let info = process.wait_ready(PATIENCE).await.unwrap();
        assert_eq!((info.id.as_str(), info.state), (id.as_str(), InstanceState::NotStarted));
        assert_eq!(process.client().get_version().await.unwrap().firecracker_version, info.vmm_version);
        configure(&scene, &process).await;
        assert_eq!(process.client().get_info().await.unwrap().state, InstanceState::NotStarted);
        process.shutdown(PATIENCE).await.unwrap();
        info
    });
    let socket = process.client().socket().to_owned();
    scene.finish();
    assert!(!socket.exists());
    info
}

#[test]
fn the_built_in_monitor_is_configured() {
    assert_eq!(preboot(monitor()).app_name, "wrenn-monitor");
}

#[test]
fn firecracker_is_configured_by_the_same_calls() {
    let Some(program) = firecracker() else { return };
    assert_eq!(preboot(program).app_name, "Firecracker");
}

#[test]
fn a_monitor_that_is_killed_is_noticed_by_the_next_call_and_by_waiters() {
    let mut scene = Scene::new();
    let process = MonitorProcess::spawn(scene.spec(monitor()), &mut scene.undo).unwrap();
    block_on(async {
        process.wait_ready(PATIENCE).await.unwrap();
        let pid = rustix::process::Pid::from_raw(process.pid()).unwrap();
        let kill = async { rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap() };
        let (report, ()) = tokio::join!(process.exited(), kill);
        assert_eq!((report.status, report.cause()), (ExitStatus::Signaled(9), ExitCause::Killed));
        let error = process.client().get_version().await.unwrap_err();
        assert!(matches!(&error, VmmError::Exited { during, .. } if during == "GET /version"), "{error:?}");
    });
    scene.finish();
}

#[test]
fn a_socket_left_by_a_killed_monitor_does_not_stop_the_next_one() {
    let mut scene = Scene::new();
    let spec = scene.spec(monitor());
    let first = MonitorProcess::spawn(spec.clone(), &mut scene.undo).unwrap();
    block_on(async {
        first.wait_ready(PATIENCE).await.unwrap();
        first.kill().await.unwrap();
        assert!(spec.api_socket.exists());
        let second = MonitorProcess::spawn(spec, &mut scene.undo).unwrap();
        second.wait_ready(PATIENCE).await.unwrap();
    });
    scene.finish();
}

#[test]
fn a_bad_argument_ends_the_monitor_with_its_complaint() {
    let mut scene = Scene::new();
    let mut spec = scene.spec(monitor());
    spec.extra_args = vec!["--no-such-flag".into()];
    let process = MonitorProcess::spawn(spec, &mut scene.undo).unwrap();
    let error = block_on(process.wait_ready(PATIENCE)).unwrap_err();
    let VmmError::Exited { report, .. } = error else { panic!("{error:?}") };
    assert_eq!(report.cause(), ExitCause::Failure);
    assert!(report.console_tail.contains("no-such-flag"), "{report:?}");
    scene.finish();
}

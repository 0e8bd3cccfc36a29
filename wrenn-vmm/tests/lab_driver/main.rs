//! The driver with real guests: boot, pause, snapshot, load, and every way to end. Needs a usable KVM and root.

#[path = "../common/mod.rs"]
mod common;

mod guest;
mod sys;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{PATIENCE, Scene, block_on, monitor};
use wrenn_vmm::api::*;
use wrenn_vmm::{DiskMount, ExitCause, ExitStatus, MonitorProcess, MonitorProgram, ROOT_DISK_PATH, VmmError};

/// Firecracker where `WRENN_FIRECRACKER` names one; says so where it does not.
fn firecracker() -> Option<MonitorProgram> {
    let path = std::env::var_os("WRENN_FIRECRACKER").map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIP: WRENN_FIRECRACKER names no firecracker");
    }
    path.map(|path| MonitorProgram::discover(Some(&path)).expect("WRENN_FIRECRACKER names a program"))
}

/// A directory that holds large files well.
fn scratch() -> tempfile::TempDir {
    let dir = std::env::var_os("WRENN_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(dir).unwrap()
}

/// A monitor with a disk of its own at the path that all of them share.
async fn start(scene: &mut Scene, program: &MonitorProgram) -> MonitorProcess {
    let disk = scene.path("disk");
    fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    let mut spec = scene.spec(program.clone());
    spec.disk = Some(DiskMount { source: disk });
    let process = MonitorProcess::spawn(spec, &mut scene.undo).unwrap();
    let info = process.wait_ready(PATIENCE).await.unwrap();
    // In a file of its own: in the middle of a guest's line on the console it would spoil that.
    let log = scene.path("monitor.log");
    fs::write(&log, "").unwrap();
    process.client().put_logger(&Logger { log_path: Some(log), ..Logger::default() }).await.unwrap();
    assert_eq!(info.state, InstanceState::NotStarted);
    process
}

/// Boots the test's guest; `word` says what it is to do. False where there is no kernel.
async fn boot(scene: &Scene, process: &MonitorProcess, word: &str) -> bool {
    let Some((kernel, initramfs)) = guest::files(scene.dir.path()) else { return false };
    let client = process.client();
    let machine = MachineConfig { track_dirty_pages: true, ..MachineConfig::default() };
    client.put_machine_config(&machine).await.unwrap();
    let source = BootSource {
        kernel_image_path: kernel,
        initrd_path: Some(initramfs),
        boot_args: Some(format!("console=ttyS0 quiet reboot=k panic=-1 {word}")),
    };
    client.put_boot_source(&source).await.unwrap();
    let drive = Drive {
        drive_id: "root".into(),
        path_on_host: Some(ROOT_DISK_PATH.into()),
        is_read_only: Some(false),
        ..Drive::default()
    };
    client.put_drive(&drive).await.unwrap();
    client.put_entropy(&EntropyDevice::default()).await.unwrap();
    client.start_instance().await.unwrap();
    assert_eq!(client.get_info().await.unwrap().state, InstanceState::Running);
    true
}

/// What the guest has printed, with plain line ends.
fn console(process: &MonitorProcess) -> String {
    let bytes = fs::read(process.console_log()).unwrap();
    String::from_utf8_lossy(&bytes).replace('\r', "")
}

/// The numbers of the whole `tick` lines in a text.
fn ticks(text: &str) -> Vec<u32> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| line.strip_prefix("tick ")?.parse().ok()).collect()
}

/// Panics unless the guest counted on without a gap, a repetition or a fresh start.
#[track_caller]
fn assert_counts(text: &str, at_least: usize) {
    let ticks = ticks(text);
    assert!(ticks.len() >= at_least, "{text}");
    assert!(ticks.iter().copied().eq(1..=ticks.len() as u32), "{ticks:?}");
}

/// Waits until the guest has printed `more` lines than now.
#[track_caller]
fn wait_for_ticks(process: &MonitorProcess, more: usize) {
    let seen = ticks(&console(process)).len();
    let until = Instant::now() + PATIENCE;
    while ticks(&console(process)).len() < seen + more {
        assert_eq!(process.exit_report(), None);
        assert!(Instant::now() < until, "the guest does not count on: {}", console(process));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn files(dir: &Path, snapshot_type: SnapshotType) -> SnapshotCreate {
    let name = format!("{snapshot_type:?}");
    SnapshotCreate {
        snapshot_type,
        snapshot_path: dir.join(format!("{name}.state")),
        mem_file_path: dir.join(format!("{name}.memory")),
    }
}

/// How much of a file is data, not holes, in bytes.
fn data(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().blocks() * 512
}

async fn load(process: &MonitorProcess, snapshot: &SnapshotCreate, resume_vm: bool) -> Result<(), VmmError> {
    let backend =
        MemBackend { backend_type: MemBackendType::File, backend_path: snapshot.mem_file_path.clone() };
    let load = SnapshotLoad {
        snapshot_path: snapshot.snapshot_path.clone(),
        mem_backend: Some(backend),
        track_dirty_pages: true,
        resume_vm,
        ..SnapshotLoad::default()
    };
    process.client().load_snapshot(&load).await
}

/// Boot, pause, full snapshot, resume, pause, diff; then both halves of a restore in fresh processes.
fn round_trip(program: &MonitorProgram) {
    let dir = scratch();
    let full = files(dir.path(), SnapshotType::Full);
    let diff = files(dir.path(), SnapshotType::Diff);
    let mut first = Scene::new();
    let printed = block_on(async {
        let process = start(&mut first, program).await;
        if !boot(&first, &process, "wrenn_tick").await {
            return None;
        }
        let client = process.client();
        wait_for_ticks(&process, 3);
        client.pause().await.unwrap();
        assert_eq!(client.get_info().await.unwrap().state, InstanceState::Paused);
        let paused_at = console(&process);
        client.create_snapshot(&full).await.unwrap();
        assert_eq!(console(&process), paused_at, "a paused guest prints nothing");
        client.resume().await.unwrap();
        wait_for_ticks(&process, 3);
        client.pause().await.unwrap();
        client.create_snapshot(&diff).await.unwrap();
        client.resume().await.unwrap();
        wait_for_ticks(&process, 1);
        assert_counts(&console(&process), 7);
        assert_eq!(process.shutdown(PATIENCE).await.unwrap().cause(), ExitCause::Killed);
        Some(paused_at)
    });
    first.finish();
    let Some(printed) = printed else { return };
    assert_eq!(fs::metadata(&diff.mem_file_path).unwrap().len(), 128 << 20);
    assert!(data(&diff.mem_file_path) * 5 < data(&full.mem_file_path), "a diff holds what changed alone");
    for resume_vm in [true, false] {
        restored_counts_on(program, &full, &printed, resume_vm);
    }
}

/// Loads in a fresh process, with another disk at the same path, and expects the count to go on.
fn restored_counts_on(program: &MonitorProgram, full: &SnapshotCreate, printed: &str, resume_vm: bool) {
    let mut scene = Scene::new();
    block_on(async {
        let process = start(&mut scene, program).await;
        load(&process, full, resume_vm).await.unwrap();
        if !resume_vm {
            assert_eq!(process.client().get_info().await.unwrap().state, InstanceState::Paused);
            assert!(ticks(&console(&process)).is_empty());
            process.client().resume().await.unwrap();
        }
        wait_for_ticks(&process, 3);
        let report = process.kill().await.unwrap();
        assert_eq!(report.status, ExitStatus::Signaled(9));
        assert_counts(&format!("{printed}{}", console(&process)), 6);
    });
    scene.finish();
}

#[test]
fn a_guest_is_paused_written_and_counts_on_in_another_process() {
    round_trip(&monitor());
}

#[test]
fn firecracker_does_the_same_by_the_same_calls() {
    let Some(program) = firecracker() else { return };
    round_trip(&program);
}

/// Boots a guest that ends by itself; how the monitor ended.
fn end_of(word: &str) -> Option<(ExitStatus, ExitCause, String)> {
    let mut scene = Scene::new();
    let report = block_on(async {
        let process = start(&mut scene, &monitor()).await;
        if !boot(&scene, &process, word).await {
            return None;
        }
        let report = tokio::time::timeout(PATIENCE, process.exited()).await;
        let report = report.unwrap_or_else(|_| panic!("{word}: still running: {}", console(&process)));
        let error = process.client().pause().await.unwrap_err();
        assert!(matches!(&error, VmmError::Exited { .. }), "{error:?}");
        Some((report.status, report.cause(), report.console_tail))
    });
    scene.finish();
    report
}

#[test]
fn a_guest_that_powers_off_ends_its_monitor_with_zero() {
    let Some((status, cause, console)) = end_of("wrenn_off") else { return };
    assert_eq!((status, cause), (ExitStatus::Exited(0), ExitCause::GuestShutdown), "{console}");
}

#[test]
fn a_guest_that_reboots_ends_its_monitor_with_zero() {
    let Some((status, cause, console)) = end_of("wrenn_restart") else { return };
    assert_eq!((status, cause), (ExitStatus::Exited(0), ExitCause::GuestShutdown), "{console}");
}

#[test]
fn a_guest_that_panics_is_told_apart_with_its_last_words() {
    let Some((status, cause, console)) = end_of("wrenn_panic") else { return };
    assert_eq!((status, cause), (ExitStatus::Exited(10), ExitCause::GuestPanic), "{console}");
    assert!(console.contains("Attempted to kill init"), "{console}");
}

#[test]
fn a_monitor_killed_while_its_guest_runs_is_noticed_at_once() {
    let mut scene = Scene::new();
    block_on(async {
        let process = start(&mut scene, &monitor()).await;
        if !boot(&scene, &process, "wrenn_tick").await {
            return;
        }
        wait_for_ticks(&process, 1);
        let pid = rustix::process::Pid::from_raw(process.pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        // No deadline of the driver's is near: only the process's end can wake this.
        let report = process.exited().await;
        assert_eq!((report.status, report.cause()), (ExitStatus::Signaled(9), ExitCause::Killed));
        assert!(report.console_tail.contains("tick 00001"), "{report:?}");
        assert!(!common::alive(process.pid()));
    });
    scene.finish();
}

#[test]
fn a_snapshot_that_is_cut_short_is_refused() {
    let dir = scratch();
    let mut scene = Scene::new();
    block_on(async {
        let process = start(&mut scene, &monitor()).await;
        if !boot(&scene, &process, "wrenn_tick").await {
            return;
        }
        let full = files(dir.path(), SnapshotType::Full);
        let error = process.client().create_snapshot(&full).await.unwrap_err();
        assert!(matches!(&error, VmmError::Fault { .. }), "a running machine cannot be written: {error:?}");
        wait_for_ticks(&process, 1);
        process.client().pause().await.unwrap();
        process.client().create_snapshot(&full).await.unwrap();
        let state = fs::OpenOptions::new().write(true).open(&full.snapshot_path).unwrap();
        state.set_len(state.metadata().unwrap().len() - 1).unwrap();
        let mut other = Scene::new();
        let second = start(&mut other, &monitor()).await;
        let error = load(&second, &full, true).await.unwrap_err();
        assert!(matches!(&error, VmmError::Fault { call, .. } if call == "PUT /snapshot/load"), "{error:?}");
        other.finish();
        process.client().resume().await.unwrap();
        wait_for_ticks(&process, 1);
    });
    scene.finish();
}

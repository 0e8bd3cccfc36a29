//! The handling of processes, with real ones: starting, noticing the end, stopping, leaving nothing behind.

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use common::{PATIENCE, Scene, alive, block_on, eventually};
use rustix::io::FdFlags;
use rustix::process::Pid;
use wrenn_vmm::{ExitCause, ExitStatus, MonitorProcess, MonitorProgram, VmmError};

fn spawn(scene: &mut Scene, how: &[&str]) -> MonitorProcess {
    let spec = scene.behaving(how);
    MonitorProcess::spawn(spec, &mut scene.undo).unwrap()
}

#[test]
fn a_monitor_that_dies_at_once_is_noticed_with_its_last_words() {
    let mut scene = Scene::new();
    let process = spawn(&mut scene, &["fail"]);
    let error = block_on(process.wait_ready(PATIENCE)).unwrap_err();
    let VmmError::Exited { report, during, .. } = &error else { panic!("{error:?}") };
    assert_eq!(report.status, ExitStatus::Exited(3));
    assert_eq!(report.console_tail, "first line\ncannot go on: no reason\n");
    assert_eq!(during, "startup");
    assert!(error.to_string().ends_with("its last output: cannot go on: no reason"), "{error}");
    assert!(!alive(process.pid()), "it is collected before its end is told");
    scene.finish();
}

#[test]
fn a_call_to_a_monitor_that_is_gone_says_that() {
    let mut scene = Scene::new();
    let process = spawn(&mut scene, &["exit", "10"]);
    let error = block_on(process.client().pause()).unwrap_err();
    let VmmError::Exited { report, during, .. } = error else { panic!("{error:?}") };
    assert_eq!((report.cause(), during.as_str()), (ExitCause::GuestPanic, "PATCH /vm"));
    scene.finish();
}

#[test]
fn a_monitor_that_never_listens_runs_into_the_deadline_and_stays_alive() {
    let mut scene = Scene::new();
    let process = spawn(&mut scene, &["wait"]);
    let error = block_on(process.wait_ready(Duration::from_millis(300))).unwrap_err();
    assert!(matches!(&error, VmmError::NotReady { limit, .. } if limit.as_millis() == 300), "{error:?}");
    assert!(alive(process.pid()) && process.exit_report().is_none());
    scene.finish();
    assert!(!alive(process.pid()));
}

#[test]
fn every_waiter_hears_of_the_end_even_after_a_cancelled_wait() {
    let mut scene = Scene::new();
    let process = spawn(&mut scene, &["wait"]);
    block_on(async {
        assert!(tokio::time::timeout(Duration::from_millis(20), process.exited()).await.is_err());
        let (a, b, killed) = tokio::join!(process.exited(), process.exited(), process.kill());
        assert_eq!(a.status, ExitStatus::Signaled(9));
        assert_eq!((&a, &a), (&b, &killed.unwrap()));
        assert_eq!(process.exited().await, a);
        assert_eq!(process.shutdown(PATIENCE).await.unwrap(), a, "stopping what has ended is no error");
    });
    scene.finish();
}

#[test]
fn a_polite_monitor_gets_sigterm_and_a_stubborn_one_sigkill() {
    let mut scene = Scene::new();
    let process = spawn(&mut scene, &["wait"]);
    // Before its exec `sleep` is a shell, which dies of SIGTERM as well.
    assert_eq!(block_on(process.shutdown(PATIENCE)).unwrap().status, ExitStatus::Signaled(15));
    scene.finish();

    let mut scene = Scene::new();
    let process = spawn(&mut scene, &["stubborn"]);
    eventually("SIGTERM is ignored", || fs::read(process.console_log()).unwrap() == b"ready\n");
    let report = block_on(process.shutdown(Duration::from_millis(100))).unwrap();
    assert_eq!(report.status, ExitStatus::Signaled(9));
    assert!(!alive(process.pid()));
    scene.finish();
}

#[test]
fn the_undo_list_ends_even_a_stubborn_process_whose_handle_is_gone() {
    let mut scene = Scene::new();
    let process = spawn(&mut scene, &["stubborn"]);
    eventually("SIGTERM is ignored", || fs::read(process.console_log()).unwrap() == b"ready\n");
    let pid = process.pid();
    drop(process);
    assert!(alive(pid), "dropping the handle alone ends nothing");
    scene.finish();
    assert!(!alive(pid), "it is ended and collected");
}

#[test]
fn a_dropped_undo_list_ends_the_process_too() {
    let mut scene = Scene::new();
    let process = spawn(&mut scene, &["wait"]);
    drop(scene.undo);
    assert!(scene.reaper.wait_idle(PATIENCE));
    assert!(!alive(process.pid()));
    assert_eq!(process.exit_report().unwrap().cause(), ExitCause::Killed);
}

#[test]
fn a_process_starts_with_nothing_of_its_callers() {
    let mut scene = Scene::new();
    let leak = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(leak.as_fd(), FdFlags::empty()).unwrap();
    let process = spawn(&mut scene, &["wait"]);
    let proc = format!("/proc/{}", process.pid());
    eventually("sleep runs", || fs::read_to_string(format!("{proc}/comm")).unwrap() == "sleep\n");

    // As it begins it opens its libraries, one after the other.
    eventually("it has nothing open but its output", || {
        let open = fs::read_dir(format!("{proc}/fd")).unwrap().map(|fd| fd.unwrap().file_name());
        open.filter(|fd| !["0", "1", "2"].iter().any(|output| fd == output)).count() == 0
    });
    assert_eq!(fs::read_link(format!("{proc}/fd/0")).unwrap(), Path::new("/dev/null"));
    for output in ["1", "2"] {
        assert_eq!(fs::read_link(format!("{proc}/fd/{output}")).unwrap(), process.console_log());
    }
    let environment = fs::read_to_string(format!("{proc}/environ")).unwrap();
    let names = environment.split_terminator('\0').map(|entry| entry.split('=').next().unwrap());
    // PWD is the shell's own.
    let others: Vec<_> =
        names.filter(|name| !["LD_LIBRARY_PATH", "RUST_BACKTRACE", "PWD"].contains(name)).collect();
    assert!(others.is_empty() && std::env::var_os("PATH").is_some(), "{others:?}");
    assert_eq!(fs::read_link(format!("{proc}/cwd")).unwrap(), Path::new("/"));
    let limits = fs::read_to_string(format!("{proc}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let pid = Pid::from_raw(process.pid());
    assert_eq!(rustix::process::getsid(pid).unwrap(), pid.unwrap());
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    assert!(status.contains("Umask:\t0077"), "{status}");
    scene.finish();
}

#[test]
fn what_cannot_be_run_leaves_nothing_and_says_what_it_is() {
    use std::os::unix::fs::PermissionsExt;
    let mut scene = Scene::new();
    let garbage = scene.path("garbage");
    fs::write(&garbage, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o755)).unwrap();
    let spec = scene.spec(MonitorProgram::discover(Some(&garbage)).unwrap());
    let error = MonitorProcess::spawn(spec, &mut scene.undo).unwrap_err();
    assert!(matches!(&error, VmmError::Spawn { program, .. } if *program == garbage), "{error:?}");

    let mut spec = scene.behaving(&["wait"]);
    spec.console_log = scene.path("no/such/dir/console.log");
    let error = MonitorProcess::spawn(spec, &mut scene.undo).unwrap_err();
    assert!(matches!(&error, VmmError::Prepare { what: "the console log", .. }), "{error:?}");

    let mut spec = scene.behaving(&["wait"]);
    fs::write(scene.path("precious"), "data").unwrap();
    spec.api_socket = scene.path("precious");
    let error = MonitorProcess::spawn(spec, &mut scene.undo).unwrap_err();
    assert!(matches!(&error, VmmError::SocketPathOccupied { .. }), "{error:?}");
    let precious = scene.path("precious");
    let dir = scene.dir;
    assert!(scene.undo.run(PATIENCE).is_empty());
    assert_eq!(fs::read_to_string(precious).unwrap(), "data");
    drop(dir);
}

#[test]
fn reexec_runs_this_very_program_under_another_name() {
    let mut scene = Scene::new();
    let mut spec = scene.spec(MonitorProgram::reexec("wrenn-monitor"));
    // The test harness knows neither `--api-sock` nor `--id`, and says so before it exits.
    spec.extra_args.clear();
    let process = MonitorProcess::spawn(spec, &mut scene.undo).unwrap();
    let report = block_on(process.exited());
    assert!(report.console_tail.contains("Unrecognized option: 'api-sock'"), "{report:?}");
    scene.finish();
}

//! The launch of monitors, as far as it can be seen from within.

use std::cell::Cell;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};
use wrenn_base::{HostId, Reaper, SandboxId, UndoList};

use super::*;
use crate::cgroup::{CgroupTree, CgroupTreeSpec, Limits};
use crate::error::SetupStep;
use crate::{MonitorProcess, MonitorProgram};

thread_local! {
    static FAIL_AT: Cell<Option<SetupStep>> = const { Cell::new(None) };
}

/// The step that a monitor started by this thread is to fail at.
pub(super) fn fail_at() -> Option<SetupStep> {
    FAIL_AT.get()
}

fn spec(socket: impl Into<PathBuf>) -> MonitorSpec {
    let program = MonitorProgram::discover(Some(Path::new("/bin/true"))).unwrap();
    MonitorSpec::new(program, SandboxId::random(), socket, "console.log")
}

#[test]
fn paths_become_absolute_and_long_sockets_are_refused() {
    let mut given = spec("api.sock");
    given.disk = Some(DiskMount { source: "disk".into() });
    given.netns = Some("ns".into());
    let fixed = absolute(given).unwrap();
    for path in [&fixed.api_socket, &fixed.console_log, &fixed.disk.unwrap().source, &fixed.netns.unwrap()] {
        assert!(path.is_absolute(), "{path:?}");
    }
    assert!(absolute(spec(format!("/{}", "x".repeat(106)))).is_ok());
    let refused = absolute(spec(format!("/{}", "x".repeat(107)))).unwrap_err();
    assert!(matches!(refused, VmmError::SocketPathTooLong { limit: 107, .. }));
}

#[test]
fn only_a_stale_socket_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    clear_socket(&path).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    clear_socket(&path).unwrap();
    assert!(!path.exists());
    fs::write(&path, "precious").unwrap();
    assert!(matches!(clear_socket(&path), Err(VmmError::SocketPathOccupied { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn monitors_get_the_flags_both_programs_know() {
    let mut spec = spec("/run/a.sock");
    spec.seccomp = false;
    spec.extra_args = vec!["--level".into(), "Debug".into()];
    let arguments = arguments(&spec);
    let args: Vec<_> = arguments.iter().map(|arg| arg.to_str().unwrap()).collect();
    let id = spec.id.as_str();
    let expected = ["/bin/true", "--api-sock", "/run/a.sock", "--id", id, "--no-seccomp", "--level", "Debug"];
    assert_eq!(args, expected);
}

#[test]
fn a_disk_must_be_a_file_or_a_block_device() {
    for path in ["/no/such/disk", "/dev/null", "/tmp"] {
        let refused = prepare_disk(&DiskMount { source: path.into() }).err().unwrap();
        assert!(matches!(refused, VmmError::DiskMissing { .. }), "{path}");
    }
}

/// Starts a monitor that is to fail at `step`; whether it did. Whatever it does, nothing must be left.
fn fails_at(step: SetupStep, spec: &MonitorSpec) -> bool {
    let reaper = Reaper::start();
    let mut undo = UndoList::new(&reaper);
    FAIL_AT.set(Some(step));
    let result = MonitorProcess::spawn(spec.clone(), &mut undo);
    FAIL_AT.set(None);
    let failed = match result {
        Ok(_) => false,
        Err(VmmError::Setup { step: told, source }) => {
            assert_eq!((told, source.raw_os_error()), (step, Some(Errno::XFULL.raw_os_error())));
            let child = rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            assert!(
                matches!(child, Err(Errno::CHILD)),
                "{step:?} leaves no process, running or dead: {child:?}"
            );
            true
        }
        Err(other) => panic!("{step:?}: {other:?}"),
    };
    assert!(undo.run(Duration::from_secs(30)).is_empty());
    failed
}

#[test]
fn every_step_that_fails_is_told_and_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP: namespaces and mounts need root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let reaper = Reaper::start();
    let mut undo = UndoList::new(&reaper);
    let mut bare = spec(dir.path().join("api.sock"));
    bare.console_log = dir.path().join("console.log");
    bare.netns = Some("/proc/self/ns/net".into());
    let mut with_disk = bare.clone();
    fs::write(dir.path().join("disk"), "").unwrap();
    with_disk.disk = Some(DiskMount { source: dir.path().join("disk") });
    let mut contained = with_disk.clone();
    let mut containment = Containment::new(0x7000_0001);
    // Where there is no cgroup2 file system the rest is tested all the same.
    let tree = CgroupTree::open(CgroupTreeSpec::new(HostId::random()), &mut undo).ok();
    containment.cgroup = tree.clone().map(|tree| (tree, Limits::default()));
    contained.containment = Some(containment);

    let owner = dir.path().metadata().unwrap().uid();
    let seen = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(VM_DIR);
    for step in SetupStep::ALL {
        let failed = [&bare, &with_disk, &contained].map(|spec| fails_at(step, spec));
        assert!(failed.contains(&true), "nobody takes the step {step:?}");
        assert!(!seen(), "{step:?}");
        assert_eq!(dir.path().metadata().unwrap().uid(), owner, "{step:?}");
        if let Some(tree) = &tree {
            assert_eq!(
                tree.sweep(|_| false, wrenn_base::Deadline::after(Duration::ZERO)).unwrap(),
                0,
                "{step:?}"
            );
        }
    }
    assert!(undo.run(Duration::from_secs(30)).is_empty());
}

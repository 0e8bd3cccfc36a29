//! The cgroups of a host: what a killed one left, and controllers that are not there. Needs root.

mod common;

use std::fs;
use std::process::ExitStatus;
use std::time::Duration;

use common::{PATIENCE, Scene, cgroups, privileged};
use wrenn_base::{Deadline, HostId};
use wrenn_vmm::{CgroupError, CgroupTree, CgroupTreeSpec, Controller};

#[test]
#[allow(clippy::disallowed_methods)] // A process of nobody's, as a killed host leaves them.
fn a_sweep_ends_what_a_killed_host_left() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let Some(tree) = cgroups(&mut scene) else { return scene.finish() };
    let left = tree.path().join("left");
    fs::create_dir(&left).unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(left.join("cgroup.procs"), child.id().to_string()).unwrap();
    // It is collected by this thread alone, so the cgroup stays busy for a while.
    let waiting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        child.wait().unwrap()
    });
    let name = left.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(tree.sweep(|it| it == name, Deadline::after(PATIENCE)).unwrap(), 0, "it is to be kept");
    assert_eq!(tree.sweep(|_| false, Deadline::after(PATIENCE)).unwrap(), 1);
    let status: ExitStatus = waiting.join().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert!(!left.exists() && tree.path().exists());
    assert_eq!(tree.sweep(|_| false, Deadline::after(PATIENCE)).unwrap(), 0);
    scene.finish();
    assert!(!tree.path().exists());
}

#[test]
fn a_required_controller_that_is_missing_is_an_error() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let Some(tree) = cgroups(&mut scene) else { return scene.finish() };
    let every = [Controller::Cpu, Controller::Cpuset, Controller::Memory, Controller::Pids];
    for controller in every {
        let mut spec = CgroupTreeSpec::new(HostId::random());
        spec.required = vec![controller];
        let result = CgroupTree::open(spec, &mut scene.undo);
        match (tree.missing().contains(&controller), result) {
            (true, Err(CgroupError::NoController { controller: named, .. })) => assert_eq!(named, controller),
            (false, Ok(_)) => {}
            (_, other) => panic!("{controller}: {other:?}"),
        }
    }
    scene.finish();
}

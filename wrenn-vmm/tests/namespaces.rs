//! The monitor's own network and mount namespace. Needs root.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{Netns, PATIENCE, Scene, block_on, eventually, privileged};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};
use wrenn_vmm::{DiskMount, MonitorProcess, ROOT_DISK_PATH, SetupStep, VM_DIR, VmmError};

fn mount_tmpfs(name: &str, point: &Path) {
    fs::create_dir(point).unwrap();
    rustix::mount::mount(name, point, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

#[test]
fn a_monitor_sees_its_own_network_and_its_own_disk() {
    if !privileged() {
        return;
    }
    let netns = Netns::new("own");
    let before = mounts();
    let mut scenes = [Scene::new(), Scene::new()];
    let mut processes = Vec::new();
    for (at, scene) in scenes.iter_mut().enumerate() {
        let disk = scene.path("disk.img");
        fs::write(&disk, format!("disk of sandbox {at}")).unwrap();
        let mut spec = scene.behaving(&["disk"]);
        spec.netns = Some(netns.path());
        spec.disk = Some(DiskMount { source: disk });
        processes.push(MonitorProcess::spawn(spec, &mut scene.undo).unwrap());
    }
    let inode = fs::metadata(netns.path()).unwrap().ino();
    let own_mounts = fs::read_link("/proc/self/ns/mnt").unwrap();
    for (at, process) in processes.iter().enumerate() {
        let proc = format!("/proc/{}", process.pid());
        let net = fs::read_link(format!("{proc}/ns/net")).unwrap();
        assert_eq!(net.display().to_string(), format!("net:[{inode}]"));
        assert_ne!(fs::read_link(format!("{proc}/ns/mnt")).unwrap(), own_mounts);
        let expected = format!("disk of sandbox {at}\n/\n");
        eventually("the process has read its disk", || {
            fs::read_to_string(process.console_log()).unwrap().len() >= expected.len()
        });
        assert_eq!(fs::read_to_string(process.console_log()).unwrap(), expected);
        // Writable, through to the host's file.
        fs::write(format!("{proc}/root{ROOT_DISK_PATH}"), "changed").unwrap();
        assert_eq!(fs::read_to_string(scenes[at].path("disk.img")).unwrap(), "changed");
    }
    assert!(!Path::new(ROOT_DISK_PATH).exists(), "nothing of it is seen on the host");
    assert_eq!(mounts(), before);
    scenes.into_iter().for_each(Scene::finish);
}

#[test]
fn what_the_host_unmounts_is_not_kept_busy_by_a_monitor() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let (outer, inner) = (scene.path("outer"), scene.path("outer/inner"));
    // An unmounting is passed on by the mount that it happens in, where that one is shared, as most hosts have
    // all of theirs.
    mount_tmpfs("wrenn-outer", &outer);
    rustix::mount::mount_change(&outer, rustix::mount::MountPropagationFlags::SHARED).unwrap();
    mount_tmpfs("wrenn-inner", &inner);
    fs::write(scene.path("disk.img"), "disk").unwrap();
    let mut spec = scene.behaving(&["disk"]);
    spec.disk = Some(DiskMount { source: scene.path("disk.img") });
    let process = MonitorProcess::spawn(spec, &mut scene.undo).unwrap();
    let theirs = || fs::read_to_string(format!("/proc/{}/mountinfo", process.pid())).unwrap();
    let seen = theirs().contains("wrenn-inner");
    rustix::mount::unmount(&inner, rustix::mount::UnmountFlags::empty()).unwrap();
    let kept = theirs().contains("wrenn-inner");
    rustix::mount::unmount(&outer, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(seen && !kept, "{}", theirs());
    scene.finish();
}

#[test]
fn a_setup_that_fails_names_its_step_and_leaves_no_process() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let before = mounts();
    let mut spec = scene.behaving(&["wait"]);
    spec.netns = Some(scene.path("no-such-netns"));
    let error = MonitorProcess::spawn(spec.clone(), &mut scene.undo).unwrap_err();
    assert!(
        matches!(&error, VmmError::NetnsMissing { path, .. } if path.ends_with("no-such-netns")),
        "{error:?}"
    );

    fs::write(scene.path("plain"), "").unwrap();
    spec.netns = Some(scene.path("plain"));
    let error = MonitorProcess::spawn(spec.clone(), &mut scene.undo).unwrap_err();
    let VmmError::Setup { step, source } = &error else { panic!("{error:?}") };
    assert_eq!((*step, source.raw_os_error()), (SetupStep::EnterNetns, Some(libc::EINVAL)));

    spec.netns = None;
    spec.disk = Some(DiskMount { source: scene.path("no-such-disk") });
    let error = MonitorProcess::spawn(spec, &mut scene.undo).unwrap_err();
    assert!(
        matches!(&error, VmmError::DiskMissing { path, .. } if path.ends_with("no-such-disk")),
        "{error:?}"
    );

    let child = rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    assert!(matches!(child, Err(Errno::CHILD)), "no process is left, running or dead: {child:?}");
    assert_eq!(mounts(), before);
    scene.finish();
}

#[test]
fn a_monitor_takes_its_mounts_with_it() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    fs::write(scene.path("disk.img"), "disk").unwrap();
    let mut spec = scene.behaving(&["disk"]);
    spec.disk = Some(DiskMount { source: scene.path("disk.img") });
    let process = MonitorProcess::spawn(spec, &mut scene.undo).unwrap();
    let mut theirs = fs::File::open(format!("/proc/{}/mountinfo", process.pid())).unwrap();
    let mut text = String::new();
    theirs.read_to_string(&mut text).unwrap();
    assert!(text.contains(VM_DIR) && text.contains(ROOT_DISK_PATH), "{text}");
    block_on(process.shutdown(PATIENCE)).unwrap();
    assert!(!mounts().contains(VM_DIR));
    assert_eq!(fs::read_dir(VM_DIR).unwrap().count(), 0, "the host's directory stays, empty");
    scene.finish();
}

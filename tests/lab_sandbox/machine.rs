//! What every privileged test counts on, whether it runs in the lab or on a machine with usable KVM of its own. When
//! one of these fails, look here before looking into a test that boots a sandbox.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

fn scratch() -> PathBuf {
    PathBuf::from(env::var_os("WRENN_SCRATCH").expect("lab/runner sets WRENN_SCRATCH"))
}

#[test]
fn processor_can_run_guests() {
    let info = fs::read_to_string("/proc/cpuinfo").expect("/proc/cpuinfo");
    let flags = info.lines().find(|line| line.starts_with("flags")).expect("a line of flags");
    assert!(
        flags.split_whitespace().any(|flag| flag == "svm" || flag == "vmx"),
        "neither svm nor vmx in: {flags}"
    );
}

#[test]
fn devices_open_for_writing() {
    for device in ["/dev/kvm", "/dev/mapper/control", "/dev/loop-control", "/dev/net/tun"] {
        let opened = OpenOptions::new().read(true).write(true).open(device);
        assert!(opened.is_ok(), "{device}: {:?}", opened.err());
    }
}

#[test]
fn user_namespace_of_this_process_is_the_first() {
    // Mounts, network namespaces and device-mapper want real root, not a container's.
    let map = fs::read_to_string("/proc/self/uid_map").expect("uid_map");
    let numbers: Vec<u64> = map.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    assert_eq!(numbers, [0, 0, u64::from(u32::MAX)]);
}

#[test]
fn scratch_keeps_what_is_written() {
    let path = scratch().join(format!("lab_machine-{}", std::process::id()));
    let pattern: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    let mut file = File::create(&path).expect("create in WRENN_SCRATCH");
    file.write_all(&pattern).expect("write");
    file.sync_all().expect("sync");
    let found = fs::read(&path).expect("read back");
    fs::remove_file(&path).expect("remove");
    assert!(found == pattern, "{} came back altered", path.display());
}

//! Guests that boot, run and end.

mod machine;

use std::path::Path;

use machine::{Monitor, kernel, scratch};

const ONE_VCPU: &str = r#"{"vcpu_count":1,"mem_size_mib":128}"#;

/// Boots a guest, which must find `cpus` processors and at least `mib` MiB that its kernel does not keep to itself.
fn boots(kernel: &Path, machine: &str, cpus: u64, mib: u64) {
    let dir = scratch();
    let monitor = Monitor::boot(dir.path(), kernel, machine, "");
    monitor.wait_for_text("guest: up");
    eprintln!("{machine}: init after {} ms", monitor.age_ms());
    monitor.wait_for_tick(3);
    let console = monitor.console();
    let greeting = console.lines().find(|line| line.starts_with("guest: up")).unwrap();
    let numbers: Vec<u64> = greeting.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers[0], cpus, "{greeting}");
    assert!(numbers[1] >= mib, "{greeting}");
}

#[test]
fn an_elf_kernel_boots() {
    let Some(kernel) = kernel() else { return };
    boots(&kernel, ONE_VCPU, 1, 64);
}

#[test]
fn two_vcpus_both_work() {
    let Some(kernel) = kernel() else { return };
    boots(&kernel, r#"{"vcpu_count":2,"mem_size_mib":128}"#, 2, 64);
}

#[test]
fn memory_goes_on_above_the_hole_for_devices() {
    let Some(kernel) = kernel() else { return };
    let host = std::fs::read_to_string("/proc/meminfo").unwrap();
    let mib: u64 = host.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024;
    if mib < 4096 {
        eprintln!("SKIP: this host has {mib} MiB, and the guest should have 4096");
        return;
    }
    // Without what lies above the hole it would be less than 3072.
    boots(&kernel, r#"{"vcpu_count":1,"mem_size_mib":4096}"#, 1, 3700);
}

/// The kernel that the lab was unpacked from: `.wrenn/lab/kernel/<version>/boot/vmlinuz-<version>`.
fn bzimage_of_lab() -> Option<std::path::PathBuf> {
    let kernels = concat!(env!("CARGO_MANIFEST_DIR"), "/../.wrenn/lab/kernel");
    let versions = std::fs::read_dir(kernels).ok()?.flatten().map(|entry| entry.file_name());
    let path = |version: std::ffi::OsString| {
        let version = version.to_str()?.to_owned();
        Some(std::path::Path::new(kernels).join(&version).join("boot").join(format!("vmlinuz-{version}")))
    };
    versions.filter_map(path).find(|path| path.is_file())
}

#[test]
fn a_bzimage_boots() {
    if kernel().is_none() {
        return;
    }
    if std::env::var_os("WRENN_IN_LAB").is_some() {
        eprintln!("SKIP: a kernel that decompresses itself takes minutes in an emulated machine");
        return;
    }
    let Some(kernel) = bzimage_of_lab() else {
        eprintln!("SKIP: no bzImage of the lab's kernel in .wrenn/lab/kernel");
        return;
    };
    boots(&kernel, r#"{"vcpu_count":1,"mem_size_mib":256}"#, 1, 128);
}

/// Boots a guest that ends as `args` say, and expects the monitor to end with `code`.
fn ends(args: &str, code: i32) {
    let Some(kernel) = kernel() else { return };
    let dir = scratch();
    let monitor = Monitor::boot(dir.path(), &kernel, ONE_VCPU, &format!("guest.ticks=2 {args}"));
    assert_eq!(monitor.exit_code(), code, "{args}");
    assert!(!dir.path().join("boot.sock").exists(), "the socket is removed");
}

#[test]
fn a_guest_that_powers_off_ends_the_monitor_cleanly() {
    ends("guest.end=poweroff", 0);
}

#[test]
fn a_guest_that_reboots_ends_the_monitor_cleanly() {
    ends("guest.end=reboot", 0);
}

#[test]
fn a_guest_that_reboots_by_acpi_ends_the_monitor_cleanly() {
    ends("guest.end=reboot reboot=a", 0);
}

#[test]
fn a_guest_that_panics_is_told_by_the_exit_code() {
    ends("guest.end=panic", 10);
}

#[test]
fn a_triple_fault_is_told_by_the_exit_code() {
    ends("guest.end=reboot reboot=t", 11);
}

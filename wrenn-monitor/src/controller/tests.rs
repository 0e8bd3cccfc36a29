//! What can be told without KVM: phases, checks and messages.

use std::io::Write;
use std::path::PathBuf;

use wrenn_vmm::api::{
    BootSource, Drive, EntropyDevice, MachineConfig, MemBackend, MemBackendType, SnapshotCreate, SnapshotType,
};

use super::*;
use crate::exit::ExitSignal;

struct Fixture {
    controller: Controller,
    events: Events,
    dir: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let host = Host { exit: ExitSignal::new().unwrap(), seccomp: false };
    Fixture {
        controller: Controller::new("vm1".to_owned(), host),
        events: Events::new().unwrap(),
        dir: tempfile::tempdir().unwrap(),
    }
}

impl Fixture {
    fn perform(&mut self, action: Action) -> Outcome {
        self.controller.perform(action, &mut self.events)
    }

    #[track_caller]
    fn refused(&mut self, action: Action, why: &str) {
        let fault = self.perform(action).expect_err("must be refused");
        assert!(fault.message.contains(why), "{fault}");
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    }

    fn load(&self, state: PathBuf) -> Action {
        let mem_backend =
            Some(MemBackend { backend_type: MemBackendType::File, backend_path: "/nowhere".into() });
        Action::LoadSnapshot(Box::new(SnapshotLoad {
            snapshot_path: state,
            mem_backend,
            ..Default::default()
        }))
    }
}

fn machine(vcpu_count: u8, mem_size_mib: usize) -> Action {
    Action::ConfigureMachine(MachineConfig { vcpu_count, mem_size_mib, ..Default::default() })
}

fn drive(id: &str, path: PathBuf, root: bool) -> Action {
    Action::ConfigureDrive(Drive {
        drive_id: id.into(),
        is_root_device: root,
        path_on_host: Some(path),
        is_read_only: Some(true),
        ..Default::default()
    })
}

fn snapshot() -> Action {
    Action::CreateSnapshot(SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: "/s".into(),
        mem_file_path: "/m".into(),
    })
}

#[test]
fn a_machine_that_cannot_be_is_refused_and_the_former_one_kept() {
    let mut f = fixture();
    f.perform(machine(2, 256)).unwrap();
    f.refused(machine(0, 256), "1 to 32 vCPUs, not 0");
    f.refused(machine(33, 256), "1 to 32 vCPUs, not 33");
    f.refused(machine(1, 0), "at least 1 MiB");
    f.refused(machine(1, usize::MAX), "more than the");
    let Ok(Answer::Machine(kept)) = f.perform(Action::DescribeMachine) else { panic!() };
    assert_eq!((kept.vcpu_count, kept.mem_size_mib), (2, 256));
}

#[test]
fn what_needs_a_machine_is_refused_before_there_is_one() {
    let mut f = fixture();
    for action in [Action::SetState(VmState::Paused), Action::SetState(VmState::Resumed), snapshot()] {
        f.refused(action, "not supported before starting the microVM");
    }
    f.refused(Action::StartInstance, "give the microVM a boot source first");
    let Ok(Answer::Instance(info)) = f.perform(Action::DescribeInstance) else { panic!() };
    assert_eq!((info.id.as_str(), info.app_name.as_str()), ("vm1", "wrenn-monitor"));
    assert_eq!(info.state, InstanceState::NotStarted);
}

#[test]
fn a_kernel_that_is_none_is_refused_when_it_is_configured() {
    let mut f = fixture();
    let script = f.file("kernel", b"#!/bin/sh\n");
    let source = |kernel_image_path| BootSource { kernel_image_path, ..Default::default() };
    f.refused(
        Action::ConfigureBoot(source(script)),
        "is no kernel: it is neither an ELF vmlinux nor a bzImage",
    );
    f.refused(Action::ConfigureBoot(source("/nowhere".into())), "\"/nowhere\" could not be opened");
}

#[test]
fn drives_are_opened_at_once_and_only_one_is_the_root() {
    let mut f = fixture();
    f.refused(drive("root", "/nowhere".into(), true), "/nowhere");
    let disk = f.file("disk", &[0; 4096]);
    f.perform(drive("root", disk.clone(), true)).unwrap();
    f.perform(drive("root", disk.clone(), true)).unwrap();
    f.refused(drive("other", disk.clone(), true), "drive \"root\" is the root device already");
    f.perform(drive("other", disk, false)).unwrap();
    let Ok(Answer::Config(config)) = f.perform(Action::DescribeConfig) else { panic!() };
    assert_eq!(
        config.drives.iter().map(|drive| drive.drive_id.as_str()).collect::<Vec<_>>(),
        ["root", "other"]
    );
}

#[test]
fn there_are_no_more_devices_than_interrupt_lines() {
    let mut f = fixture();
    let disk = f.file("disk", &[0; 4096]);
    for number in 0..crate::layout::MAX_VIRTIO_DEVICES {
        f.perform(drive(&format!("d{number}"), disk.clone(), false)).unwrap();
    }
    f.refused(drive("more", disk, false), "at most");
    f.refused(Action::ConfigureEntropy(EntropyDevice::default()), "at most");
}

#[test]
fn a_snapshot_is_only_loaded_into_an_untouched_monitor() {
    let mut f = fixture();
    f.perform(machine(1, 128)).unwrap();
    let load = f.load("/nowhere".into());
    f.refused(load, "not allowed after configuring");
}

#[test]
fn files_that_are_no_state_are_refused_by_what_they_are_and_the_monitor_stays_usable() {
    let mut f = fixture();
    for (bytes, why) in [
        (&b""[..], "truncated"),
        (b"WRENNVMS", "truncated"),
        (b"not a state file", "no state file of wrenn-monitor"),
        (b"WRENNVMS\xff\0\0\0aaaabbbbbbbb", "newer"),
    ] {
        let path = f.file("state", bytes);
        let load = f.load(path);
        f.refused(load, why);
    }
    let load = f.load("/nowhere".into());
    f.refused(load, "\"/nowhere\" could not be opened");
    f.perform(machine(1, 128)).unwrap();
}

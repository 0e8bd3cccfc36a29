//! Bad input and faults: each is a typed error that names the thing and the remedy, and leaves nothing behind.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{self, HostState, TestHost, base, masked};
use wrenn::{Bytes, Cause, DiskBackend, Error, ErrorKind, Host, MiB, Sandbox, SandboxBuilder};

fn small(host: &Host) -> SandboxBuilder {
    host.sandbox("debian").unwrap().memory(MiB(128))
}

/// Expects that creating fails with `kind` and words, and that the machine is then as it was.
async fn refused(test: &TestHost, builder: SandboxBuilder, kind: ErrorKind, words: &[&str]) -> Error {
    let before = HostState::of(&test.data());
    let error =
        builder.create().await.map(|sandbox| sandbox.id().clone()).expect_err("it must not be created");
    expect(&error, kind, words);
    assert!(error.cleanup().is_empty(), "{error:?}");
    before.assert_same(&HostState::of(&test.data()));
    error
}

#[track_caller]
fn expect(error: &Error, kind: ErrorKind, words: &[&str]) {
    let text = format!("{error:?}");
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[tokio::test]
async fn bad_requests_touch_nothing() {
    let test = TestHost::new();
    let host = test.open().await;
    for name in ["", "..", "../../etc", "a/b", "a\0", "-x", "images/debian"] {
        let error = host.sandbox(name).map(|_| ()).unwrap_err();
        expect(&error, ErrorKind::InvalidInput, &["image name"]);
    }
    let unknown = host.sandbox("nosuchimage").unwrap().memory(MiB(128));
    refused(&test, unknown, ErrorKind::NotFound, &["nosuchimage"]).await;
    refused(&test, small(&host).memory(MiB(0)), ErrorKind::InvalidInput, &["memory", "80 MiB"]).await;
    refused(&test, small(&host).memory(MiB(u32::MAX)), ErrorKind::InvalidInput, &["memory", "this host has"])
        .await;
    refused(&test, small(&host).vcpus(0), ErrorKind::InvalidInput, &["vcpus", "1 to 32"]).await;
    refused(&test, small(&host).vcpus(33), ErrorKind::InvalidInput, &["vcpus"]).await;
    refused(&test, small(&host).env("A=B", "c"), ErrorKind::InvalidInput, &["env"]).await;
    refused(&test, small(&host).disk_size(Bytes(4096)), ErrorKind::InvalidInput, &["too small"]).await;
    refused(&test, small(&host).disk_size(Bytes(1)), ErrorKind::InvalidInput, &["whole number"]).await;
    host.close().await.unwrap();
}

#[tokio::test]
async fn damaged_images_and_kernels_are_named() {
    let test = TestHost::new();
    let host = test.open().await;
    let kernel = test.data().join("guest/vmlinux");
    let saved = replace(&kernel, b"#!/bin/sh\necho I am no kernel\n");
    refused(&test, small(&host), ErrorKind::Corrupt, &["vmlinux"]).await;
    restore(&kernel, &saved);

    let root = test.data().join("images/debian/rootfs.ext4");
    let hidden = root.with_extension("hidden");
    fs::rename(&root, &hidden).unwrap();
    let error = small(&host).create().await.map(drop).unwrap_err();
    assert!(format!("{error:?}").contains("rootfs.ext4"), "{error:?}");
    fs::rename(&hidden, &root).unwrap();
    host.close().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_never_answers_is_given_up() {
    let test = TestHost::new();
    let host = test.open().await;
    let hurried = small(&host).ready_timeout(Duration::from_millis(50));
    refused(&test, hurried, ErrorKind::TimedOut, &["agent", "50ms"]).await;
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_that_dies_is_noticed() {
    let test = TestHost::new();
    let host = test.open().await;
    let killer = tokio::task::spawn_blocking(|| support::kill_first_monitor(Duration::from_secs(60)));
    refused(&test, small(&host), ErrorKind::GuestEnded, &["signal 9"]).await;
    assert!(killer.await.unwrap(), "no monitor was there to be killed");

    let sandbox = small(&host).create().await.unwrap();
    let call = sandbox.exec("sleep 1000");
    let (result, killed) = tokio::join!(
        call,
        tokio::task::spawn_blocking(|| support::kill_first_monitor(Duration::from_secs(60)))
    );
    assert!(killed.unwrap());
    expect(&result.map(drop).unwrap_err(), ErrorKind::GuestEnded, &["signal 9"]);
    let failed = sandbox.pause().await.map(drop).unwrap_err();
    assert!(failed.sandbox.is_none(), "a sandbox without a guest was handed back");
    assert_eq!(failed.source.kind(), ErrorKind::GuestEnded);
    host.close().await.unwrap();
}

#[tokio::test]
async fn a_monitor_that_is_none_is_refused_before_anything_is_made() {
    let test = TestHost::new();
    let before = HostState::of(&test.data());
    let error = test.builder().monitor("/no/such/monitor").open().await.map(drop).unwrap_err();
    expect(&error, ErrorKind::HostUnfit, &["/no/such/monitor"]);
    before.assert_same(&HostState::of(&test.data()));
    // A program that runs but answers no API.
    let host = test.builder().monitor("/bin/false").open().await.unwrap();
    refused(&test, small(&host), ErrorKind::GuestEnded, &["exit code 1"]).await;
    host.close().await.unwrap();
}

#[tokio::test]
async fn a_data_directory_has_one_owner() {
    let test = TestHost::new();
    let host = test.open().await;
    let error = test.builder().open().await.map(drop).unwrap_err();
    expect(&error, ErrorKind::Busy, &["in use by another process"]);
    host.close().await.unwrap();
    test.open().await.close().await.unwrap();
}

async fn paused(test: &TestHost, host: &Host) -> wrenn::PausedSandbox {
    let sandbox = base::sandbox(test, host).await;
    sandbox.files().write("/root/kept", "content").await.unwrap();
    sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_damaged_snapshot_file_is_found_and_the_whole_one_resumes() {
    let test = TestHost::new();
    let host = test.open().await;
    let id = paused(&test, &host).await.id().clone();
    let dir = test.data().join("sandboxes").join(id.as_str());
    let snapshot = dir.join("snapshots/1");
    let mut files: Vec<_> = fs::read_dir(&snapshot).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.extend(fs::read_dir(dir.join("layers")).unwrap().map(|entry| entry.unwrap().path()));
    assert!(files.len() >= 6, "{files:?}");
    let before = HostState::of(&test.data());
    for file in files {
        for damage in [truncate as fn(&Path), flip_bits] {
            let saved = file.with_extension("saved");
            fs::copy(&file, &saved).unwrap();
            damage(&file);
            let error = resume(&host, &id).await.map(drop).expect_err("a damaged snapshot was resumed");
            let text = format!("{error:?}");
            let found = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::GuestEnded);
            assert!(found, "{}: {text}", file.display());
            fs::rename(&saved, &file).unwrap();
            before.assert_same(&HostState::of(&test.data()));
        }
    }
    let sandbox = resume(&host, &id).await.expect("the whole snapshot resumes");
    assert_eq!(sandbox.files().read("/root/kept", 100).await.unwrap(), "content");
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_is_never_put_on_another_image() {
    let test = TestHost::new();
    let host = test.open().await;
    let stored = paused(&test, &host).await;
    let before = HostState::of(&test.data());
    let manifest = test.data().join("images/debian/image.json");
    let saved = fs::read_to_string(&manifest).unwrap();
    let at = saved.find("\"sha256\"").unwrap();
    let digit = at + saved[at..].find(": \"").unwrap() + 3;
    let other = if &saved[digit..=digit] == "0" { "1" } else { "0" };
    fs::write(&manifest, format!("{}{other}{}", &saved[..digit], &saved[digit + 1..])).unwrap();
    let failed = stored.resume().await.map(drop).unwrap_err();
    expect(&failed.source, ErrorKind::Corrupt, &["another image debian", "register that one again"]);
    before.assert_same(&HostState::of(&test.data()));
    fs::write(&manifest, saved).unwrap();
    let sandbox = failed.paused.resume().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

async fn resume(host: &Host, id: &wrenn::SandboxId) -> Result<Sandbox, Error> {
    let sandbox = host.paused(id).await?.resume().await.map_err(|e| e.source)?;
    sandbox.exec("true").await?;
    Ok(sandbox)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_cannot_be_resumed_twice() {
    let test = TestHost::new();
    let host = test.open().await;
    let stored = paused(&test, &host).await;
    let twin = host.paused(stored.id()).await.unwrap();
    let sandbox = stored.resume().await.unwrap();
    let failed = twin.resume().await.map(drop).unwrap_err();
    assert_eq!(failed.source.kind(), ErrorKind::Busy);
    assert_eq!(failed.paused.destroy().await.unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(sandbox.exec("cat /root/kept").await.unwrap().stdout_text(), "content");
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

/// Devices that are there but refuse to be opened, as they do without the permission. Root is refused nothing, so
/// the test runs itself again in a mount namespace where the device lies on a `nodev` mount.
#[test]
fn devices_without_permission_are_named() {
    for (device, test) in [
        ("/dev/kvm", "faults::inner::without_kvm"),
        ("/dev/userfaultfd", "faults::inner::without_userfaultfd"),
        ("/dev/mapper/control", "faults::inner::without_device_mapper"),
    ] {
        if !Path::new(device).exists() {
            eprintln!("SKIP: this machine has no {device}");
            continue;
        }
        masked(device, test);
    }
}

/// What runs again by itself; each does nothing unless it was started by `masked`.
mod inner {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn without_kvm() {
        if !support::is_masked("/dev/kvm") {
            return;
        }
        let test = TestHost::new();
        let host = test.open().await;
        refused(&test, small(&host), ErrorKind::HostUnfit, &["/dev/kvm", "root"]).await;
        host.close().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn without_userfaultfd() {
        if !support::is_masked("/dev/userfaultfd") {
            return;
        }
        let test = TestHost::new();
        let host = test.open().await;
        // Booted, which needs none.
        let sandbox = small(&host).create().await.unwrap();
        let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
        let failed = paused.resume().await.map(drop).unwrap_err();
        expect(&failed.source, ErrorKind::HostUnfit, &["/dev/userfaultfd", "root"]);
        failed.paused.destroy().await.unwrap();
        host.close().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn without_device_mapper() {
        if !support::is_masked("/dev/mapper/control") {
            return;
        }
        let test = TestHost::new();
        let error =
            test.builder().disk_backend(DiskBackend::DeviceMapper).open().await.map(drop).unwrap_err();
        expect(&error, ErrorKind::HostUnfit, &["device-mapper", "modprobe"]);
        // Left to itself the host finds another way.
        let host = test.open().await;
        let sandbox = small(&host).create().await.unwrap();
        assert!(matches!(sandbox.exec("true").await, Ok(output) if output.status.success()));
        let Err(error) = host.close().await else { panic!("a host with a running sandbox was closed") };
        assert!(matches!(error.cause(), Cause::HostInUse), "{error:?}");
        sandbox.destroy().await.unwrap();
    }
}

fn replace(path: &Path, content: &[u8]) -> std::path::PathBuf {
    let saved = path.with_extension("saved");
    fs::rename(path, &saved).unwrap();
    fs::write(path, content).unwrap();
    saved
}

fn restore(path: &Path, saved: &Path) {
    fs::rename(saved, path).unwrap();
}

fn truncate(path: &Path) {
    let len = fs::metadata(path).unwrap().len();
    writable(path).set_len(len - 1).unwrap();
}

/// Alters one byte of data in every 64 KiB: a restored guest reads little of its memory, but some of it.
fn flip_bits(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = writable(path);
    let content = fs::read(path).unwrap();
    assert!(content.iter().any(|byte| *byte != 0), "a file with content");
    for (block, bytes) in content.chunks(64 * 1024).enumerate() {
        if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
            file.write_all_at(&[bytes[at] ^ 1], (block * 64 * 1024 + at) as u64).unwrap();
        }
    }
}

fn writable(path: &Path) -> fs::File {
    fs::File::options().read(true).write(true).open(path).unwrap()
}

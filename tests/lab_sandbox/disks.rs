//! Root disks of whole sandboxes: what is synced is kept, what is full stays whole, and a disk becomes an image.

use std::path::Path;
use std::process::Command;

use crate::support::{self, HostState, TestHost, base};
use wrenn::{ErrorKind, Host, MiB, RestoreOptions, Sandbox};
use wrenn_base::SandboxId;
use wrenn_storage::{BackendChoice, DiskSpec, RootDisks, clone_file};

async fn boot(host: &Host, image: &str, disk: Option<MiB>) -> Sandbox {
    let sandbox = host.sandbox(image).unwrap().memory(MiB(128));
    let sandbox = match disk {
        Some(size) => sandbox.disk_size(size.bytes()),
        None => sandbox,
    };
    sandbox.create().await.expect("the sandbox boots")
}

/// A file of an ext4 file system that nobody has mounted.
fn file_in(rootfs: &Path, path: &str) -> String {
    let output = Command::new("debugfs")
        .args(["-R", &format!("cat {path}")])
        .arg(rootfs)
        .output()
        .expect("debugfs runs");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_synced_survives_the_monitors_death() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = base::sandbox(&test, &host).await;
    sandbox.exec("seq 1 20000 > /root/synced; sync; echo lost > /root/later").await.unwrap();
    assert!(support::kill(&sandbox.monitor_pid().to_string()));
    sandbox.exited().await;

    // The changes as they are in their file, before the sandbox is let go of and they with it.
    let dir = tempfile::tempdir_in(test.data()).unwrap();
    let (cow, flat) = (dir.path().join("cow"), dir.path().join("flat"));
    clone_file(&test.data().join("sandboxes").join(sandbox.id().as_str()).join("disk.cow"), &cow).unwrap();
    let image = test.data().join("images/debian/rootfs.ext4");
    let disks = RootDisks::probe(&"test00".parse().unwrap(), BackendChoice::Auto).unwrap();
    let id = SandboxId::random();
    let spec = DiskSpec { sandbox: &id, image: &image, cow: &cow, size: None };
    disks.flatten(&spec, &flat, |_| std::ops::ControlFlow::Continue(())).unwrap();
    let expected: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    assert_eq!(file_in(&flat, "/root/synced"), expected);
    drop((sandbox, dir));
    host.close().await.unwrap();
}

/// Writes until nothing fits any more, and answers how many blocks of 1 MiB did; each says which it is.
const FILL: &str = r#"
import os
count = 0
with open('/root/filler', 'wb', buffering=0) as out:
    try:
        while True:
            block = count.to_bytes(8, 'little') * 131072
            if out.write(block) != len(block): break
            count += 1
        os.fsync(out)
    except OSError: pass
os.sync()
print(count)
"#;

const CHECK: &str = r#"
count = 0
with open('/root/filler', 'rb', buffering=0) as file:
    while len(block := file.read(1 << 20)) == 1 << 20:
        assert block == count.to_bytes(8, 'little') * 131072, count
        count += 1
print(count)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_of_a_chosen_size_is_filled_and_stays_whole() {
    let test = TestHost::new();
    test.open().await.close().await.unwrap();
    let before = HostState::of(&test.data());
    let host = test.open().await;
    let sandbox = boot(&host, "debian", Some(MiB(576))).await;
    let size = sandbox.exec("df --output=size -BM / | tail -1 | tr -dc 0-9").await.unwrap().stdout_text();
    assert!(size.parse::<u64>().unwrap() > 500, "the guest's file system has {size} MiB");
    sandbox.files().write("/run/fill.py", FILL).await.unwrap();
    sandbox.files().write("/run/check.py", CHECK).await.unwrap();
    let filled = sandbox.exec("python3 /run/fill.py").await.unwrap().stdout_text();
    assert!(filled.parse::<u64>().unwrap() >= 100, "{filled}");
    let full = sandbox.exec("cat /bin/bash > /root/more").await.unwrap();
    assert!(!full.status.success(), "there is still room");

    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    let sandbox = support::resume(paused, RestoreOptions::default()).await;
    sandbox.exec("echo 3 > /proc/sys/vm/drop_caches").await.unwrap();
    assert_eq!(sandbox.exec("python3 /run/check.py").await.unwrap().stdout_text(), filled);
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
    before.assert_same(&HostState::of(&test.data()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandboxs_disk_becomes_an_image() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = base::sandbox(&test, &host).await;
    sandbox.exec("echo installed > /root/tool; rm /etc/motd; sync").await.unwrap();
    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    let image = paused.to_image("with-tool").await.unwrap();
    assert!(image.allocated().unwrap() < image.size, "it is sparse");
    let taken = paused.to_image("debian").await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Busy, "{taken:?}");
    assert_eq!(paused.to_image("a/b").await.unwrap_err().kind(), ErrorKind::InvalidInput);

    // Each on its own from here on.
    let sandbox = support::resume(paused, RestoreOptions::default()).await;
    sandbox.exec("echo changed > /root/tool; sync").await.unwrap();
    let other = boot(&host, "with-tool", None).await;
    let seen = other.exec("cat /root/tool; test -e /etc/motd || echo no motd").await.unwrap();
    assert_eq!(seen.stdout_text(), "installed\nno motd");
    other.destroy().await.unwrap();
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

//! A sandbox without a boot, for tests that are not about booting: a child of a template that the first test to need it
//! makes, for all tests of the run.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use wrenn::{Host, MiB, Sandbox, TemplateBuilder};

use super::{TestHost, copy_tree};

const NAME: &str = "base";

/// A running sandbox of the debian image, with one vCPU and 128 MiB of memory.
pub(crate) async fn sandbox(test: &TestHost, host: &Host) -> Sandbox {
    sandbox_with(test, host, |builder| builder).await
}

/// As [`sandbox`], with what `choose` sets.
pub(crate) async fn sandbox_with(
    test: &TestHost,
    host: &Host,
    choose: impl FnOnce(TemplateBuilder) -> TemplateBuilder,
) -> Sandbox {
    template(test).await;
    let template = host.template(NAME).expect("a good name");
    let spawned = choose(template.builder()).spawn(1).await.expect("the sandbox comes up").remove(0);
    template.delete().await.expect("its children have what they need");
    spawned
}

/// Puts the template of such sandboxes into a host's data, where it is called "base".
pub(crate) async fn template(test: &TestHost) {
    copy_tree(&shared().await, &test.data().join("templates").join(NAME));
}

/// Where the template is, which is made unless it is there.
async fn shared() -> PathBuf {
    let place = super::scratch().join(format!("wrenn-test-base-{}", key()));
    let lock = File::create(place.with_extension("lock")).expect("a file on the scratch file system");
    // Another process may be making it, which takes as long as a boot.
    let locked = move || flock(&lock, FlockOperation::LockExclusive).map(|()| lock);
    let _lock = tokio::task::spawn_blocking(locked).await.expect("no panic").expect("the lock");
    if !place.exists() {
        make(&place).await;
    }
    place
}

/// Tells apart what a template depends on: what boots, and what it boots in.
fn key() -> String {
    let shared = super::shared_data();
    let parts = [
        std::env::var_os("WRENN_MONITOR").map(PathBuf::from).unwrap_or_default(),
        shared.join("guest/vmlinux"),
        shared.join("guest/initramfs.cpio"),
        shared.join("images/debian/rootfs.ext4"),
    ];
    let tell = |path: &PathBuf| {
        let of = fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        of.len().rotate_left(32) ^ of.mtime().unsigned_abs()
    };
    parts.iter().map(tell).fold(0, |key: u64, part| key.rotate_left(13) ^ part).to_string()
}

/// Makes the template, with a working set, and moves it to `place`.
async fn make(place: &Path) {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = host.sandbox("debian").unwrap().memory(MiB(128)).create().await.expect("the sandbox boots");
    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    let template = paused.to_template(NAME).await.expect("it becomes a template");
    paused.destroy().await.expect("it is destroyed");
    let child = template.spawn(1).await.expect("the child comes up").remove(0);
    child.exec("true").await.expect("it answers");
    let made = test.data().join("templates").join(NAME);
    while !made.join("snapshots/1/working-set").exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child.destroy().await.expect("it is destroyed");
    drop(template);
    host.close().await.expect("the host closes");
    fs::rename(&made, place).expect("it can be moved");
}

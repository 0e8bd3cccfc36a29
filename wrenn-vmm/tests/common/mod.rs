//! What the test binaries share; each uses a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod peer;
pub mod raw;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wrenn_base::{HostId, Reaper, SandboxId, UndoList};
use wrenn_vmm::{CgroupError, CgroupTree, CgroupTreeSpec, MonitorProgram, MonitorSpec};

/// Long enough for an emulated machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A directory for one monitor, and the undo list that ends it.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub undo: UndoList,
    pub reaper: Reaper,
}

impl Scene {
    pub fn new() -> Self {
        let reaper = Reaper::start();
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { dir, undo: UndoList::new(&reaper), reaper }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A spec for `program` with its files in this directory.
    pub fn spec(&self, program: MonitorProgram) -> MonitorSpec {
        MonitorSpec::new(program, SandboxId::random(), self.path("api.sock"), self.path("console.log"))
    }

    /// A spec for a process that behaves as `tests/behave.sh` says.
    pub fn behaving(&self, how: &[&str]) -> MonitorSpec {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/behave.sh");
        let mut spec = self.spec(MonitorProgram::discover(Some(&script)).expect("the script is there"));
        spec.extra_args = how.iter().map(Into::into).collect();
        spec
    }

    /// Ends what the test started and fails where that did not work.
    pub fn finish(self) {
        let failures = self.undo.run(PATIENCE);
        assert!(failures.is_empty(), "{failures:?}");
    }
}

/// The built-in monitor of this build.
///
/// # Panics
/// Where none has been built: a test of the driver without it would prove nothing.
pub fn monitor() -> MonitorProgram {
    MonitorProgram::discover(None).expect("wrenn-monitor is built: `cargo build -p wrenn-monitor`")
}

/// Runs an async test body on a runtime of its own.
pub fn block_on<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(body)
}

/// Waits until `seen` is true.
#[track_caller]
pub fn eventually(what: &str, mut seen: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !seen() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the test may make namespaces and mounts; says so where it may not.
pub fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIP: namespaces and mounts need root");
    }
    root
}

pub fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A named network namespace, removed when dropped.
pub struct Netns(String);

impl Netns {
    pub fn new(name: &str) -> Self {
        let name = format!("wrennvmm{name}{}", std::process::id());
        Self::ip(&["netns", "add", &name]);
        Self(name)
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Makes a TAP in it that is there for whoever comes.
    pub fn add_tap(&self, name: &str) {
        Self::ip(&["-n", &self.0, "tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"]);
    }

    #[allow(clippy::disallowed_methods)] // A namespace from elsewhere is what the driver is to enter.
    fn ip(args: &[&str]) {
        let status = std::process::Command::new("ip").args(args).status().expect("iproute2 is installed");
        assert!(status.success(), "ip {args:?}");
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        Self::ip(&["netns", "del", &self.0]);
    }
}

/// The cgroups of a host of the test's own; says so where the machine has none.
pub fn cgroups(scene: &mut Scene) -> Option<CgroupTree> {
    match CgroupTree::open(CgroupTreeSpec::new(HostId::random()), &mut scene.undo) {
        Err(CgroupError::NotMounted) => {
            eprintln!("SKIP: this machine has no cgroup2 file system");
            None
        }
        result => Some(result.expect("the tree is made")),
    }
}

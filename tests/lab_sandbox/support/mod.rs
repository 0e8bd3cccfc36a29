//! What the tests of whole sandboxes share: a host in a directory of its own, and a look at everything that a
//! sandbox may leave behind on the machine.

pub(crate) mod base;
pub(crate) mod crash;
pub(crate) mod elsewhere;
mod host_state;
pub(crate) mod small;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use host_state::HostState;
use host_state::{PAGER, files_below, monitors};
pub(crate) use host_state::{processes, read};
use wrenn::{Host, HostBuilder};

/// A data directory on the scratch file system, with the machine's images in it.
pub(crate) struct TestHost {
    data: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

impl TestHost {
    pub(crate) fn new() -> Self {
        Self::below(&scratch())
    }

    /// A data directory below `scratch`.
    pub(crate) fn below(scratch: &Path) -> Self {
        let dir = tempfile::tempdir_in(scratch).expect("a directory on the scratch file system");
        let shared = shared_data();
        for part in ["images", "guest"] {
            let part_of_shared = shared.join(part);
            assert!(part_of_shared.is_dir(), "{} is missing: run `make image`", part_of_shared.display());
            copy_tree(&part_of_shared, &dir.path().join("data").join(part));
        }
        Self { data: dir.path().join("data"), _dir: Some(dir) }
    }

    /// A copy of the directory as it is now, for a host of its own once this one is closed.
    pub(crate) fn copy(&self) -> Self {
        let parent = self.data.parent().and_then(Path::parent).expect("the scratch file system");
        let dir = tempfile::tempdir_in(parent).expect("a directory on the scratch file system");
        copy_tree(&self.data, &dir.path().join("data"));
        Self { data: dir.path().join("data"), _dir: Some(dir) }
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// A builder for this directory, with a runtime directory of its own, and without slots made ahead, which come at a
    /// moment of their own.
    pub(crate) fn builder(&self) -> HostBuilder {
        Host::builder().data_dir(self.data()).run_dir("/run/wrenn-test").ready_slots(0)
    }

    pub(crate) async fn open(&self) -> Host {
        self.builder().open().await.expect("the host opens")
    }
}

/// Where tests have their files.
fn scratch() -> PathBuf {
    std::env::var_os("WRENN_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// The data directory with the images and the guest's files that all tests start from.
fn shared_data() -> PathBuf {
    PathBuf::from(std::env::var_os("WRENN_TEST_DATA").expect("lab/runner sets WRENN_TEST_DATA"))
}

/// Copies by reflink where the file system can; holes stay holes.
fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a directory");
    for entry in fs::read_dir(from).expect("list a directory") {
        let entry = entry.expect("a directory entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a file type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            wrenn_storage::clone_file(&entry.path(), &target).expect("copy a file");
        }
    }
}

/// The pager of the host in `data`, by what it writes its messages to.
pub(crate) fn pagers(data: &Path) -> Vec<String> {
    let log = data.join("pager.log");
    let is_its = |pid: &String| {
        read(&format!("/proc/{pid}/comm")) == PAGER
            && fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|path| path == log)
    };
    processes().filter(is_its).collect()
}

/// Kills the monitors that the processes before told to be running in `data`, and waits until they are gone.
pub(crate) fn kill_monitors_of(data: &Path) {
    for journal in
        files_below(&data.join("sandboxes")).into_iter().filter(|path| path.ends_with("running.json"))
    {
        let text = read(&journal.display().to_string());
        let (_, rest) = text.split_once(r#""monitor":{"pid":"#).expect("a journal tells its monitor");
        let pid = rest.split(',').next().expect("a number");
        kill(pid);
        eventually(&format!("monitor {pid} is gone"), || !Path::new(&format!("/proc/{pid}")).exists());
    }
}

/// Kills a process; false if there is none.
pub(crate) fn kill(pid: &str) -> bool {
    Command::new("kill").args(["-KILL", pid]).status().is_ok_and(|status| status.success())
}

/// Waits for a monitor that this process started and kills it; false if none appears within `limit`.
pub(crate) fn kill_first_monitor(limit: std::time::Duration) -> bool {
    let given_up = std::time::Instant::now() + limit;
    while std::time::Instant::now() < given_up {
        // Only once it is the monitor: before, it may be anything that a test starts.
        if let Some((pid, _)) = monitors().iter().find(|(_, name)| name == "wrenn-monitor") {
            return kill(pid);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    false
}

const MASKED: &str = "WRENN_TEST_MASKED";

/// Runs the test `name` of this binary again, where opening `device` is refused to root as it is to others.
#[track_caller]
pub(crate) fn masked(device: &str, name: &str) {
    let script = r#"mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,bind,nodev "$0" && exec "$@""#;
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, device])
        .arg(std::env::current_exe().expect("this test's binary"))
        .args(["--exact", name, "--nocapture"])
        .env(MASKED, device)
        .status()
        .expect("unshare runs");
    assert!(status.success(), "{name} failed without {device}");
}

/// Whether this process was started by [`masked`] for `device`.
pub(crate) fn is_masked(device: &str) -> bool {
    std::env::var_os(MASKED).is_some_and(|masked| masked == device)
}

const KILLED: &str = "WRENN_TEST_TO_BE_KILLED";

/// The test `name` of this binary in a process of its own, which finds the host to use by [`to_be_killed`].
pub(crate) fn again(name: &str, test: &TestHost) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test's binary"));
    command.args(["--exact", name, "--nocapture"]).env(KILLED, test.data());
    command
}

/// Runs the test `name` of this binary in a process of its own, kills it once it is ready, and returns the ids it told.
pub(crate) fn run_and_kill(name: &str, test: &TestHost) -> Vec<String> {
    use std::io::{BufRead, BufReader};
    let mut child =
        again(name, test).stdout(std::process::Stdio::piped()).spawn().expect("the test's binary runs");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let ready = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("READY ")?.1.to_owned()));
    child.kill().expect("it can be killed");
    child.wait().expect("it can be collected");
    ready.expect("it was not ready when it ended").split(' ').map(str::to_owned).collect()
}

/// In a process started by [`run_and_kill`]: the host to use.
pub(crate) fn to_be_killed() -> Option<TestHost> {
    let data = PathBuf::from(std::env::var_os(KILLED)?);
    Some(TestHost { data, _dir: None })
}

/// In a process started by [`run_and_kill`]: never returns.
pub(crate) fn ready_to_be_killed(ids: &[&wrenn::SandboxId]) -> ! {
    let ids: Vec<_> = ids.iter().map(|id| id.as_str()).collect();
    tell_and_wait(&ids.join(" "))
}

/// As [`ready_to_be_killed`], with whatever there is to tell.
pub(crate) fn tell_and_wait(words: &str) -> ! {
    println!("\nREADY {words}");
    loop {
        std::thread::park();
    }
}

/// Runs the test `name` of this binary in a process of its own that dies at the fault point `point`; false if it came
/// to its end instead.
#[track_caller]
pub(crate) fn run_until_death(name: &str, test: &TestHost, point: usize) -> bool {
    let output = again(name, test)
        .env("WRENN_FAULT", format!("abort:{point}"))
        .output()
        .expect("the test's binary runs");
    let text = String::from_utf8_lossy(&output.stderr);
    let died = text.lines().find(|line| line.starts_with("fault: the process dies"));
    println!("{name}: {}", died.unwrap_or("it came to its end"));
    assert!(died.is_some() || output.status.success(), "{name}: {}: {text}", output.status);
    died.is_some()
}

/// Resumes a sandbox.
pub(crate) async fn resume(paused: wrenn::PausedSandbox, options: wrenn::RestoreOptions) -> wrenn::Sandbox {
    paused.resume_with(options).await.unwrap_or_else(|e| panic!("{:?}", e.source))
}

/// Waits, for a minute at most, until something has come about.
#[track_caller]
pub(crate) fn eventually(what: &str, mut come_about: impl FnMut() -> bool) {
    let given_up = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !come_about() {
        assert!(std::time::Instant::now() < given_up, "{what}: not within a minute");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

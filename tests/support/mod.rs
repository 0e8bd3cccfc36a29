//! What the tests of whole sandboxes share: a host in a directory of its own, and a look at everything that a
//! sandbox may leave behind on the machine.
#![allow(dead_code, reason = "each test binary uses its part of this")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with its own tools")]

pub(crate) mod base;
pub(crate) mod crash;
pub(crate) mod elsewhere;
pub(crate) mod small;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Everything that the sandboxes of one host put on a machine, as sorted lines: equal before and after, or something
/// leaked. What belongs to the host's pager is left out: it is there from the first restore until the host is closed, which
/// `tests/lab_recovery.rs` looks at. Other tests run beside this one, so only what bears the host's id or lies in its directory is looked at;
/// `lab/left-behind` looks at the whole machine when all tests have run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostState {
    lines: BTreeSet<String>,
}

impl HostState {
    /// Looks at the machine for what belongs to the host in `data`, and at its files.
    pub(crate) fn of(data: &Path) -> Self {
        // Before it is opened for the first time it has no id, and nothing on the machine can bear it.
        let id = host_id(data).unwrap_or_else(|| "no id yet".into());
        let data_text = data.display().to_string();
        let mut lines = BTreeSet::new();
        let mut add = |kind: &str, what: String| {
            if what.contains(&id) || what.contains(&data_text) || kind.starts_with("own ") {
                lines.insert(format!("{kind} {what}"));
            }
        };
        for link in names("/sys/class/net") {
            add("link", link);
        }
        for device in names("/sys/block") {
            if device.starts_with("dm-") {
                add("device-mapper", read(&format!("/sys/block/{device}/dm/name")));
            }
            let backing = format!("/sys/block/{device}/loop/backing_file");
            if Path::new(&backing).exists() {
                add("loop", read(&backing));
            }
        }
        for mount in fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").lines() {
            add("mount", mount.split(' ').nth(4).unwrap_or_default().to_owned());
        }
        for table in nft_tables() {
            add("nft", table);
        }
        for cgroup in cgroups(&id).into_iter().filter(|path| !path.ends_with("pager")) {
            add("cgroup", cgroup.display().to_string());
        }
        for root in [data, &Path::new("/run/wrenn-test").join(&id), &Path::new("/run/wrenn").join(&id)] {
            let pagers = |path: &PathBuf| path.ends_with("pager.sock") || path.ends_with("pager.log");
            for file in files_below(root).into_iter().filter(|path| !pagers(path)) {
                add("file", file.display().to_string());
            }
        }
        for (pid, command) in monitors().into_iter().filter(|(_, command)| command != PAGER) {
            add("own process", format!("{pid} {command}"));
        }
        add("own threads", threads().join(" "));
        add("own descriptors", descriptors().join(" "));
        Self { lines }
    }

    /// How many things of a kind there are.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.lines.iter().filter(|line| line.split(' ').next() == Some(kind)).count()
    }

    /// Fails with what is new and what is gone, if anything is.
    #[track_caller]
    pub(crate) fn assert_same(&self, after: &Self) {
        self.assert_same_but_for(after, &[]);
    }

    /// As [`assert_same`](Self::assert_same), but new files may be there whose path ends with one of `expected`.
    #[track_caller]
    pub(crate) fn assert_same_but_for(&self, after: &Self, expected: &[&str]) {
        let unexpected =
            |line: &&String| !(line.starts_with("file ") && expected.iter().any(|end| line.ends_with(end)));
        let new: Vec<_> = after.lines.difference(&self.lines).filter(unexpected).collect();
        let gone: Vec<_> = self.lines.difference(&after.lines).collect();
        assert!(new.is_empty() && gone.is_empty(), "left behind: {new:#?}\ngone: {gone:#?}");
    }

    /// Without what this process has open: while a sandbox runs, connections to its agent come and go.
    pub(crate) fn while_running(mut self) -> Self {
        self.lines.retain(|line| !line.starts_with("own descriptors"));
        self
    }

    /// Fails unless there is something of `kind` that was not there before.
    #[track_caller]
    pub(crate) fn assert_differs(&self, after: &Self, kind: &str) {
        let new: Vec<_> = after.lines.difference(&self.lines).collect();
        assert!(new.iter().any(|line| line.starts_with(kind)), "nothing of kind {kind}: {new:#?}");
    }
}

/// The id that the host in `data` has in the names of everything it makes.
fn host_id(data: &Path) -> Option<String> {
    let record = fs::read_to_string(data.join("host.json")).ok()?;
    let (_, id) = record.split_once("\"id\":\"").expect("an id in host.json");
    Some(id.split('"').next().expect("a quote").to_owned())
}

fn names(dir: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Processes that this one started and that are still there, zombies included. Other tests run beside this one.
fn monitors() -> Vec<(String, String)> {
    let own = format!("PPid:\t{}", std::process::id());
    let child = |pid: &String| read(&format!("/proc/{pid}/status")).lines().any(|line| line == own);
    let numeric = names("/proc").into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    numeric.filter(child).map(|pid| (pid.clone(), read(&format!("/proc/{pid}/comm")))).collect()
}

/// The cgroups of the host `id`.
fn cgroups(id: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup/wrenn").join(id);
    let below = names(&root.display().to_string()).into_iter().map(|name| root.join(name));
    root.is_dir().then(|| root.clone()).into_iter().chain(below.filter(|path| path.is_dir())).collect()
}

fn nft_tables() -> Vec<String> {
    let output = Command::new("nft").args(["list", "tables"]).output().expect("nft runs");
    assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn files_below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root) else { return found };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_below(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

/// The threads of this process that are not the asynchronous runtime's, which come and go.
fn threads() -> Vec<String> {
    let comm = |id: String| read(&format!("/proc/self/task/{id}/comm"));
    let mut threads: Vec<String> = names("/proc/self/task").into_iter().map(comm).collect();
    threads.retain(|name| !name.starts_with("tokio-") && name != PAGER);
    threads.sort();
    threads
}

/// How many pagers this process talks to: it has a thread for each.
fn pagers_in_use() -> usize {
    let comm = |id: String| read(&format!("/proc/self/task/{id}/comm"));
    names("/proc/self/task").into_iter().map(comm).filter(|name| name == PAGER).count()
}

/// What this process has open, apart from the runtime's own and the directory being listed.
fn descriptors() -> Vec<String> {
    let target = |fd: String| fs::read_link(format!("/proc/self/fd/{fd}")).ok();
    let mut open: Vec<String> = names("/proc/self/fd")
        .into_iter()
        .filter_map(target)
        .map(|path| path.display().to_string())
        .map(|path| path.split(":[").next().unwrap_or_default().to_owned())
        .filter(|path| !path.starts_with("/proc/"))
        .collect();
    open.sort();
    // The connection that keeps a pager, and its copy for the thread that waits for its end.
    for _ in 0..pagers_in_use() * 2 {
        if let Some(index) = open.iter().position(|path| path == "socket") {
            open.remove(index);
        }
    }
    open
}

/// What the process that pages memory in is called, and the thread that waits for it.
const PAGER: &str = "wrenn-pager";

/// The pager of the host in `data`, by what it writes its messages to.
pub(crate) fn pagers(data: &Path) -> Vec<String> {
    let log = data.join("pager.log");
    let numeric = names("/proc").into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    let is_its = |pid: &String| {
        read(&format!("/proc/{pid}/comm")) == PAGER
            && fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|path| path == log)
    };
    numeric.filter(is_its).collect()
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

pub(crate) const KILLED: &str = "WRENN_TEST_TO_BE_KILLED";

/// Runs the test `name` of this binary in a process of its own, kills it once it is ready, and returns the ids it told.
pub(crate) fn run_and_kill(name: &str, test: &TestHost) -> Vec<String> {
    use std::io::{BufRead, BufReader};
    let mut child = Command::new(std::env::current_exe().expect("this test's binary"))
        .args(["--exact", name, "--nocapture"])
        .env(KILLED, test.data())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the test's binary runs");
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
    let output = Command::new(std::env::current_exe().expect("this test's binary"))
        .args(["--exact", name, "--nocapture"])
        .env(KILLED, test.data())
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

//! A monitor under test: its process, its API, its guest's console.
//!
//! A test that cannot run here prints `SKIP:` and why, and returns.
#![allow(dead_code)] // Each test program uses its own part of this.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) mod faults;
pub(crate) mod initramfs;
#[allow(unsafe_code)]
mod sys;

/// How long anything may take before a test gives up: emulated machines are slow, and share the host.
const PATIENCE: Duration = Duration::from_secs(120);

/// A directory for one test's files, on a disk where there is one.
pub(crate) fn scratch() -> tempfile::TempDir {
    let dir = std::env::var_os("WRENN_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(dir).unwrap()
}

/// The ELF kernel to boot; `None`, having said so, if there is none or no KVM to run it.
pub(crate) fn kernel() -> Option<PathBuf> {
    if let Err(error) = File::open("/dev/kvm") {
        eprintln!("SKIP: no usable KVM here: {error}");
        return None;
    }
    let Some(data) = std::env::var_os("WRENN_TEST_DATA").map(PathBuf::from) else {
        eprintln!("SKIP: WRENN_TEST_DATA does not say where the guest's kernel is");
        return None;
    };
    let kernel = data.join("guest/vmlinux");
    if !kernel.exists() {
        eprintln!("SKIP: no guest kernel at {}", kernel.display());
        return None;
    }
    Some(kernel)
}

/// A monitor's process.
pub(crate) struct Monitor {
    child: Child,
    socket: PathBuf,
    console: PathBuf,
    started: Instant,
}

impl Monitor {
    /// Starts a monitor; its files, named after `name`, are made in `dir`.
    pub(crate) fn start(dir: &Path, name: &str) -> Self {
        let (socket, console) = (dir.join(format!("{name}.sock")), dir.join(format!("{name}.console")));
        let log = File::create(dir.join(format!("{name}.log"))).unwrap();
        let started = Instant::now();
        #[allow(clippy::disallowed_methods)] // The monitor is what is tested.
        let child = Command::new(env!("CARGO_BIN_EXE_wrenn-monitor"))
            .arg("--api-sock")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(File::create(&console).unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let monitor = Self { child, socket, console, started };
        monitor.wait_for("its socket", || monitor.socket.exists().then_some(()));
        monitor
    }

    /// Boots a guest of `vcpus` vCPUs and `mib` MiB from `kernel`, with `args` added to its command line.
    pub(crate) fn boot(dir: &Path, kernel: &Path, machine: &str, args: &str) -> Self {
        let initrd = dir.join("initramfs");
        if !initrd.exists() {
            std::fs::write(&initrd, initramfs::build()).unwrap();
        }
        let monitor = Self::start(dir, "boot");
        monitor.put("/machine-config", machine);
        let boot_args = format!("console=ttyS0 quiet loglevel=1 reboot=k panic=-1 {args}");
        monitor.put(
            "/boot-source",
            &format!(
                r#"{{"kernel_image_path":{kernel:?},"initrd_path":{initrd:?},"boot_args":{boot_args:?}}}"#
            ),
        );
        monitor.put("/actions", r#"{"action_type":"InstanceStart"}"#);
        monitor
    }

    /// A request that must succeed; its answer's body.
    #[track_caller]
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> String {
        let (status, answer) = self.exchange(method, path, body);
        assert!(status == 204 || status == 200, "{method} {path}: {status} {answer}\n{}", self.tail());
        answer
    }

    #[track_caller]
    pub(crate) fn put(&self, path: &str, body: &str) {
        self.request("PUT", path, body);
    }

    #[track_caller]
    pub(crate) fn pause(&self) {
        self.request("PATCH", "/vm", r#"{"state":"Paused"}"#);
    }

    #[track_caller]
    pub(crate) fn resume(&self) {
        self.request("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    }

    #[track_caller]
    pub(crate) fn snapshot(&self, kind: &str, to: &SnapshotFiles) {
        self.put("/snapshot/create", &to.request(kind));
    }

    /// Loads a snapshot whose memory comes from `backend`, and resumes it.
    #[track_caller]
    pub(crate) fn load(&self, state: &Path, backend: &str, memory: &Path) {
        self.put("/snapshot/load", &load_request(state, backend, memory));
    }

    /// A request that must be refused; why it was.
    #[track_caller]
    pub(crate) fn refused(&self, method: &str, path: &str, body: &str) -> String {
        let (status, answer) = self.exchange(method, path, body);
        assert_eq!(status, 400, "{method} {path}: {answer}");
        answer
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = self.wait_for("a connection", || UnixStream::connect(&self.socket).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{error}: {}", self.tail()));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split_whitespace().nth(1).and_then(|text| text.parse().ok());
        (status.unwrap_or_else(|| panic!("no answer: {answer:?}\n{}", self.tail())), body.to_owned())
    }

    /// What the guest has written to its console.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap()).into_owned()
    }

    /// The number of the first tick that the guest tells of.
    #[track_caller]
    pub(crate) fn first_tick(&self) -> u64 {
        self.wait_for("a tick", || all_ticks(&self.console()).first().copied())
    }

    /// The number of the last tick that the guest has told of; panics if one went wrong.
    #[track_caller]
    pub(crate) fn ticks(&self) -> u64 {
        let console = self.console();
        assert!(!console.contains("BAD"), "{console}");
        all_ticks(&console).last().copied().unwrap_or(0)
    }

    /// Waits until the guest has got to `tick`.
    #[track_caller]
    pub(crate) fn wait_for_tick(&self, tick: u64) {
        self.wait_for("the guest", || (self.ticks() >= tick).then_some(()));
    }

    /// Waits until the console has `text`.
    #[track_caller]
    pub(crate) fn wait_for_text(&self, text: &str) {
        self.wait_for(text, || self.console().contains(text).then_some(()));
    }

    #[track_caller]
    pub(crate) fn wait_for<T>(&self, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(done) = ready() {
                return done;
            }
            assert!(Instant::now() < give_up, "waited in vain for {what}\n{}", self.tail());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the process to end by itself; its exit code.
    #[track_caller]
    pub(crate) fn exit_code(mut self) -> i32 {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or_else(|| panic!("{status}\n{}", self.tail()));
            }
            assert!(Instant::now() < give_up, "it does not end\n{}", self.tail());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How long ago it was started, in milliseconds: to be told, not to be asserted.
    pub(crate) fn age_ms(&self) -> u128 {
        self.started.elapsed().as_millis()
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    fn tail(&self) -> String {
        let log = std::fs::read(self.console.with_extension("log")).unwrap_or_default();
        format!("--- console\n{}\n--- log\n{}", self.console(), String::from_utf8_lossy(&log))
    }
}

/// The ticks on a console, as far as their lines are complete.
fn all_ticks(console: &str) -> Vec<u64> {
    let lines = console.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.filter_map(|line| line.strip_prefix("tick ")?.split(' ').next()?.parse().ok()).collect()
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The two files of a snapshot.
pub(crate) struct SnapshotFiles {
    pub(crate) state: PathBuf,
    pub(crate) memory: PathBuf,
}

impl SnapshotFiles {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        Self { state: dir.join(format!("{name}.state")), memory: dir.join(format!("{name}.mem")) }
    }

    /// The body of `PUT /snapshot/create`.
    pub(crate) fn request(&self, kind: &str) -> String {
        let Self { state, memory } = self;
        format!(r#"{{"snapshot_type":{kind:?},"snapshot_path":{state:?},"mem_file_path":{memory:?}}}"#)
    }
}

/// The body of `PUT /snapshot/load`.
pub(crate) fn load_request(state: &Path, backend: &str, memory: &Path) -> String {
    format!(
        r#"{{"snapshot_path":{state:?},"mem_backend":{{"backend_type":{backend:?},"backend_path":{memory:?}}},
            "track_dirty_pages":true,"resume_vm":true}}"#
    )
}

/// The bytes of a file that are data rather than holes.
pub(crate) fn data_bytes(path: &Path) -> u64 {
    use rustix::fs::SeekFrom;
    let file = File::open(path).unwrap();
    let (mut at, mut sum) = (0, 0);
    while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
        sum += at - data;
    }
    sum
}

/// Writes the data of `diff` over `base`, page by page.
pub(crate) fn merge(base: &Path, diff: &Path) {
    use rustix::fs::SeekFrom;
    use std::os::unix::fs::FileExt;
    let (diff, base) = (File::open(diff).unwrap(), File::options().write(true).open(base).unwrap());
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(&diff, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&diff, SeekFrom::Hole(data)).unwrap();
        let mut bytes = vec![0; (at - data) as usize];
        diff.read_exact_at(&mut bytes, data).unwrap();
        base.write_all_at(&bytes, data).unwrap();
    }
}

//! An agent of this build on a loopback port, and what tests ask about it.
#![allow(dead_code)] // each test program uses its own part

pub(crate) mod http;

use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;
use wrenn_agent_api::{AccessToken, AgentClient, Dial, Init, ProcessEvent, ProcessStream};

/// How long a test waits for what must come: long enough for a machine that is busy with everything else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct TestAgent {
    child: Child,
    pub(crate) address: SocketAddr,
    home: Option<TempDir>,
}

impl TestAgent {
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    pub(crate) fn start_at(address: &str) -> Self {
        #[allow(clippy::disallowed_methods)] // a test starts the program under test
        let mut child = Command::new(env!("CARGO_BIN_EXE_wrenn-agent"))
            .args(["--listen", address])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap().parse().unwrap();
        Self { child, address, home: None }
    }

    /// A client that has set its token.
    pub(crate) async fn claimed() -> (Self, AgentClient) {
        let agent = Self::start();
        let client = agent.client("token-of-the-test");
        client.init(Init::default()).await.unwrap();
        (agent, client)
    }

    /// As [`claimed`](Self::claimed), with an empty directory as every command's home: what login shells do is then no
    /// affair of this machine's own profiles, which print, wait for each other, and read what was meant for the shell.
    pub(crate) async fn with_empty_home() -> (Self, AgentClient) {
        let mut agent = Self::start();
        let client = agent.client("token-of-the-test");
        let home = agent.home.insert(tempfile::tempdir().unwrap()).path();
        let home = home.to_str().unwrap().to_owned();
        client.init(Init::default().env([("HOME".to_owned(), home)])).await.unwrap();
        (agent, client)
    }

    pub(crate) fn client(&self, token: &str) -> AgentClient {
        AgentClient::new(dial(self.address), AccessToken::new(token).unwrap()).with_time_limit(PATIENCE)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory it ever had resident, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        // Its commands would be left to this machine's init.
        for pid in children_of(self.pid()) {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Dials an address, counting.
pub(crate) fn counting_dial(address: SocketAddr) -> (Dial, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let (dials, plain) = (count.clone(), dial(address));
    let dial: Dial = Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
        plain()
    });
    (dial, dials)
}

pub(crate) fn dial(address: SocketAddr) -> Dial {
    Arc::new(move || -> Pin<Box<dyn Future<Output = _> + Send>> { Box::pin(TcpStream::connect(address)) })
}

/// The children of a process, zombies included.
pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    let is_child = |pid: &u32| stat_field(*pid, 1).is_some_and(|field| field == parent.to_string());
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

/// A field of /proc/PID/stat, counted from the one after the command's name.
fn stat_field(pid: u32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().nth(index)?.to_owned())
}

/// Whether a process is there, as a zombie or alive.
pub(crate) fn is_there(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// Waits until `condition` holds; fails the test if it never does.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What a command left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit_code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) status: String,
}

/// Reads a stream to its end.
pub(crate) async fn finish(mut stream: ProcessStream) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(event) = stream.next().await.unwrap() {
        match event {
            ProcessEvent::Stdout(bytes) => outcome.stdout.extend_from_slice(&bytes),
            ProcessEvent::Stderr(bytes) => outcome.stderr.extend_from_slice(&bytes),
            ProcessEvent::End { exit_code, signal, status, .. } => {
                (outcome.exit_code, outcome.signal, outcome.status) = (exit_code, signal, status);
            }
            _ => {}
        }
    }
    assert!(!outcome.status.is_empty(), "no end event");
    outcome
}

/// Runs a shell script to its end.
pub(crate) async fn sh(client: &AgentClient, script: &str) -> Outcome {
    finish(client.start(shell(script)).await.unwrap()).await
}

pub(crate) fn shell(script: &str) -> wrenn_agent_api::Command {
    wrenn_agent_api::Command::new("/bin/sh").args(["-c", script])
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

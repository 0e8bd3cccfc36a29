//! Processes of their own to be served, which can be killed: this test binary, started anew with a job.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use userfaultfd::FeatureFlags;

use super::peer::{LONG, PAGE, hand_over, join, page_of, uffd_or_skip};
use super::sys::Mapping;

const JOB: &str = "WRENN_UFFD_TEST_JOB";
const SOCKET: &str = "WRENN_UFFD_TEST_SOCKET";

/// The size of a child's memory.
pub(crate) const PAGES: usize = 64;

/// A child process, killed and reaped when dropped.
pub(crate) struct Served {
    pub(crate) child: Child,
}

impl Served {
    /// Starts a child that does `job` with the server at `socket`.
    #[allow(clippy::disallowed_methods, reason = "a test needs processes that it may kill")]
    pub(crate) fn start(job: &str, socket: &std::path::Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "children::child", "--nocapture", "--test-threads=1"])
            .env(JOB, job)
            .env(SOCKET, socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Waits until some thread of the child waits for a page.
    pub(crate) fn wait_for_fault(&mut self) {
        let begun = Instant::now();
        while !self.has_fault() {
            assert!(self.child.try_wait().unwrap().is_none(), "the child ended without a fault");
            assert!(begun.elapsed() < LONG, "the child does not come to a fault");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether some thread of the child waits for a page.
    pub(crate) fn has_fault(&self) -> bool {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", self.child.id())) else { return false };
        tasks.flatten().any(|task| {
            std::fs::read_to_string(task.path().join("wchan")).is_ok_and(|at| at.contains("handle_userfault"))
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what a child does. It exits with 0 only where every page it read came to it.
#[test]
fn child() {
    let (Ok(job), Some(socket)) = (std::env::var(JOB), std::env::var_os(SOCKET)) else { return };
    let uffd = uffd_or_skip(FeatureFlags::EVENT_REMOVE | FeatureFlags::EVENT_FORK).unwrap();
    let (memory, _stream) = if job.ends_with("of a cache") {
        let (stream, _, memory) = join(socket.as_ref(), &uffd);
        (memory, stream)
    } else {
        let memory = Mapping::new(PAGES * PAGE).unwrap();
        let stream = hand_over(socket.as_ref(), &[(&memory, 0)], &uffd);
        (memory, stream)
    };
    match job.as_str() {
        "touch one page" => drop(page_of(&memory, 6)),
        "touch one page of a cache" => drop(page_of(&memory, 6)),
        "discard a page of a cache" => {
            drop(page_of(&memory, 6));
            memory.discard(6 * PAGE, PAGE).unwrap();
            // Killed here, or before.
            loop {
                std::thread::park();
            }
        }
        "touch all pages" | "touch all pages of a cache" => {
            (0..PAGES).for_each(|page| drop(page_of(&memory, page)))
        }
        "touch without a userfaultfd of its own" => {
            drop(uffd);
            drop(page_of(&memory, 6));
        }
        // Before it forks it has to be sure that it is served.
        "fork" => {
            drop(page_of(&memory, 6));
            super::forking::fork_and_exit();
            // Killed here, or before.
            loop {
                std::thread::park();
            }
        }
        "touch what was not handed over" => {
            let other = Mapping::new(PAGE).unwrap();
            uffd.register(other.pointer(), other.len()).unwrap();
            drop(page_of(&other, 0));
        }
        other => panic!("no job {other}"),
    }
    std::process::exit(0);
}

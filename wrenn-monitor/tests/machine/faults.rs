//! The plainest fault server: one page at a time, from a memory file.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use serde::Deserialize;
use userfaultfd::{Event, Uffd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::sys;

const PAGE: u64 = 4096;

/// A region, as the monitor tells of it.
#[derive(Deserialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: u64,
}

/// A fault server for one monitor; it hangs up when it is dropped.
pub(crate) struct FaultServer {
    served: Arc<AtomicU64>,
    stalled: Arc<AtomicBool>,
    left: Arc<AtomicU64>,
    stop: Option<UnixStream>,
}

impl FaultServer {
    /// Serves the memory file `memory` on `socket`.
    pub(crate) fn start(socket: &Path, memory: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let memory = File::open(memory).unwrap();
        let served = Arc::new(AtomicU64::new(0));
        let (stalled, left) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop, stopped) = UnixStream::pair().unwrap();
        let (counter, is_stalled, leaves) = (served.clone(), stalled.clone(), left.clone());
        thread::spawn(move || {
            let (connection, _) = listener.accept().unwrap();
            let answers = |uffd: &Uffd, address: u64, page: &[u8]| match is_stalled.load(Ordering::Relaxed) {
                true => _ = leaves.fetch_add(1, Ordering::Relaxed),
                false => match sys::copy(uffd, address, page) {
                    Ok(_) => _ = counter.fetch_add(1, Ordering::Relaxed),
                    // Two vCPUs waited for one page, and the first to be served woke both.
                    Err(error) => assert!(format!("{error:?}").contains("EEXIST"), "{error:?}"),
                },
            };
            serve(&connection, &memory, &stopped, answers);
        });
        Self { served, stalled, left, stop: Some(stop) }
    }

    /// How many pages it was asked for.
    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// From now on leaves whoever needs a page waiting.
    pub(crate) fn stall(&self) {
        self.stalled.store(true, Ordering::Relaxed);
    }

    /// How many faults it left without an answer.
    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Stops serving, as if it had died.
    pub(crate) fn stop(&mut self) {
        self.stop = None;
    }
}

fn serve(connection: &UnixStream, memory: &File, stopped: &UnixStream, answer: impl Fn(&Uffd, u64, &[u8])) {
    let mut message = [0; 4096];
    let (len, fd) = {
        let (len, file) = connection.recv_with_fd(&mut message).unwrap();
        (len, file.expect("the userfaultfd comes with the regions"))
    };
    let regions: Vec<Mapping> = serde_json::from_slice(&message[..len]).unwrap();
    let uffd = sys::take_uffd(fd.into());
    let mut page = [0; PAGE as usize];
    while wait(&uffd, connection, stopped) {
        while let Ok(Some(Event::Pagefault { addr, .. })) = uffd.read_event() {
            let address = addr as u64 & !(PAGE - 1);
            let region = regions
                .iter()
                .find(|it| (it.base_host_virt_addr..it.base_host_virt_addr + it.size).contains(&address))
                .expect("faults are within the regions");
            assert_eq!(region.page_size, PAGE);
            memory.read_exact_at(&mut page, region.offset + (address - region.base_host_virt_addr)).unwrap();
            answer(&uffd, address, &page);
        }
    }
}

/// Waits for faults; false when the monitor has gone or the server is to stop.
fn wait(uffd: &Uffd, connection: &UnixStream, stopped: &UnixStream) -> bool {
    let of = |fd, flags| PollFd::from_borrowed_fd(fd, flags);
    let mut fds = [
        of(uffd.as_fd(), PollFlags::IN),
        of(connection.as_fd(), PollFlags::RDHUP),
        of(stopped.as_fd(), PollFlags::RDHUP),
    ];
    let _ = poll(&mut fds, None);
    fds[1].revents().is_empty() && fds[2].revents().is_empty()
}

//! The thread that serves all slots of a host, and its ends in the slots' namespaces.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hickory_proto::rr::Name;
use tokio::runtime;
use tokio::sync::oneshot;
use wrenn_base::Deadline;

use super::serve::serve;
use super::upstream::Upstream;
use crate::address::GATEWAY;
use crate::error::NetError;
use crate::host::Shared;
use crate::named::Verdict;
use crate::netns::{self, Place};

/// How often the end of a thread or task is looked for. It takes microseconds.
const LOOK: Duration = Duration::from_millis(1);

/// The thread. Dropping it ends it, but does not wait.
#[derive(Debug)]
pub(crate) struct Resolver {
    runtime: runtime::Handle,
    upstream: Arc<Upstream>,
    thread: JoinHandle<()>,
    /// Dropped, it stops.
    running: oneshot::Sender<()>,
}

impl Resolver {
    /// Starts it in the host's namespace.
    pub(crate) fn start(host: &File, servers: Vec<Ipv4Addr>) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (running, stopped) = oneshot::channel::<()>();
        let host = host.try_clone()?;
        let thread = netns::spawn(host, "wrenn-names", move || {
            // Only ever ends with an error: nothing is sent.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { runtime: handle, upstream: Arc::new(Upstream::new(servers)), thread, running })
    }

    /// Listens in a slot's namespace, and answers what comes there as for the slot of a claim.
    pub(crate) fn listen(
        &self,
        shared: &Arc<Shared>,
        index: u16,
        claim: u64,
        netns: &Path,
    ) -> io::Result<Ear> {
        let namespace = File::open(netns)?;
        let (udp, tcp) = netns::within(Place::Existing(&namespace), || {
            let udp = UdpSocket::bind((GATEWAY, 53))?;
            let tcp = TcpListener::bind((GATEWAY, 53))?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            io::Result::Ok((udp, tcp))
        })??;
        let _context = self.runtime.enter();
        let (udp, tcp) = (tokio::net::UdpSocket::from_std(udp)?, tokio::net::TcpListener::from_std(tcp)?);
        let upstream = Arc::clone(&self.upstream);
        let client = Client { shared: Arc::downgrade(shared), index, claim, upstream };
        Ok(Ear { task: self.runtime.spawn(serve(client, udp, tcp)), redirected: false })
    }

    /// Ends it, and with it all that it has open.
    pub(crate) fn end(self, deadline: Deadline) -> io::Result<()> {
        drop(self.running);
        until(deadline, || self.thread.is_finished())?;
        self.thread
            .join()
            .map_err(|_| io::Error::other("the thread that answers questions for names panicked"))
    }
}

/// What listens in one slot's namespace. Dropping it ends it, but does not wait.
#[derive(Debug)]
pub(crate) struct Ear {
    task: tokio::task::JoinHandle<()>,
    /// Whether the guest's questions are brought there.
    pub(crate) redirected: bool,
}

impl Ear {
    /// Ends it, so that nothing of it keeps the namespace.
    pub(crate) fn end(&self, deadline: Deadline) -> io::Result<()> {
        self.task.abort();
        until(deadline, || self.task.is_finished())
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn until(deadline: Deadline, done: impl Fn() -> bool) -> io::Result<()> {
    while !done() {
        if deadline.passed() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// The slot whose questions a task answers.
#[derive(Debug)]
pub(crate) struct Client {
    /// Weak, as a task keeps nothing alive.
    shared: Weak<Shared>,
    index: u16,
    claim: u64,
    upstream: Arc<Upstream>,
}

impl Client {
    pub(super) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    pub(super) fn verdict(&self, name: &Name) -> Verdict {
        self.shared.upgrade().map_or(Verdict::Refused, |shared| shared.verdict(self.index, name))
    }

    /// Opens what of `addresses` the policy allows for `name`, and returns what the guest may be told.
    pub(super) fn pin(
        &self,
        name: &Name,
        addresses: &[Ipv4Addr],
        time: Duration,
    ) -> Result<Vec<Ipv4Addr>, NetError> {
        let shared = self.shared.upgrade().ok_or(NetError::SlotGone { index: self.index })?;
        shared.pin(self.index, self.claim, name, addresses, time)
    }
}

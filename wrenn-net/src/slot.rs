//! One slot: made in an order that never shares anything before it is claimed, removed in the reverse.
//!
//! ```text
//! claim index ─> clean leftovers ─> egress policy                                   (here and in claims.rs)
//!        ─> namespace ─> TAP ─> veth pair ─> its rules                   (inside.rs, in the namespace)
//!                                    ─> host's end up ─> route, the claim on the address ─> address   (here)
//!        ─> an ear for its questions, if its policy has names                          (claims.rs, names.rs)
//! ```
//!
//! The undo list deletes the host's end first: from then on the guest is cut off, even where a process keeps the
//! namespace alive. It then removes the namespace's name, and the rest goes with the namespace. What the host's table
//! said about the slot is taken out last.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream};
use wrenn_base::{Deadline, SandboxId, UndoList};

use crate::address::{GuestNet, MacAddr, Pair};
use crate::egress::EgressPolicy;
use crate::error::NetError;
use crate::host::{HostNet, Shared, switch_on};
use crate::inside;
use crate::link::Links;
use crate::netns::{self, Place};

/// The TAP device's name, in every namespace.
pub(crate) const TAP: &str = "tap0";
/// The name of the namespace's end of the veth pair.
pub(crate) const UPLINK: &str = "uplink";

/// How long the first attempt to connect waits for an answer.
const FIRST_PATIENCE: Duration = Duration::from_millis(25);

/// Which slot to make.
#[derive(Debug, Clone)]
pub struct SlotSpec {
    /// The sandbox that gets it: the namespace has its name.
    pub sandbox: SandboxId,
    /// Which of the pool's address pairs it takes, from 1 to [`crate::AddressPool::last_index`].
    pub index: u16,
}

/// A sandbox's network: a namespace with a TAP for the monitor, connected to the host.
///
/// A handle only: dropping it changes nothing, the undo list given to [`HostNet::slot`] removes the slot. Clones are
/// the same slot.
#[derive(Debug, Clone)]
pub struct Slot {
    netns: PathBuf,
    index: u16,
    link: String,
    address: Ipv4Addr,
    guest: GuestNet,
    claim: u64,
    /// Weak, as a handle keeps nothing alive.
    shared: Weak<Shared>,
}

/// What a slot's parts are called, worked out before anything is made.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// For people who list the interfaces.
    pub(crate) note: String,
    pub(crate) index: u16,
    pub(crate) claim: u64,
    pub(crate) pair: Pair,
    pub(crate) link: String,
    pub(crate) netns: PathBuf,
}

impl Plan {
    /// The hardware addresses are set, as udev on the host would else change them while the link comes up.
    pub(crate) fn mac(address: Ipv4Addr) -> MacAddr {
        let [a, b, c, d] = address.octets();
        MacAddr([6, 1, a, b, c, d])
    }
}

impl HostNet {
    /// Makes a slot with the default egress policy, after cleaning up what a killed process left of one with the same
    /// sandbox or index.
    ///
    /// Blocks for some 10 milliseconds. All or nothing once `undo` has run: its steps, which also free the index, are
    /// registered before anything is made.
    ///
    /// # Errors
    /// [`NetError::IndexOutOfRange`] and [`NetError::IndexInUse`] with nothing done and nothing registered. All
    /// others with the undo of what was done in `undo`; after [`NetError::IndexTaken`] the call may be repeated with
    /// another index and the same list.
    pub fn slot(&self, spec: SlotSpec, undo: &mut UndoList) -> Result<Slot, NetError> {
        self.slot_with_egress(spec, &EgressPolicy::default(), undo)
    }

    /// Like [`HostNet::slot`], with an egress policy that is in force before the slot's first packet.
    ///
    /// # Errors
    /// Those of [`HostNet::slot`].
    pub fn slot_with_egress(
        &self,
        spec: SlotSpec,
        egress: &EgressPolicy,
        undo: &mut UndoList,
    ) -> Result<Slot, NetError> {
        let shared = &self.shared;
        let pair = shared.pool.pair(spec.index)?;
        let plan = Plan {
            // The one step that comes before its undo, which must not free an index that this call did not get.
            claim: shared.claim(spec.index)?,
            note: format!("wrenn sandbox {}", spec.sandbox),
            index: spec.index,
            pair,
            link: shared.link_name(spec.index),
            netns: shared.netns_dir.join(spec.sandbox.as_str()),
        };
        self.make(&plan, egress, undo)
    }

    /// Makes the slot of a plan, whose index is claimed.
    pub(crate) fn make(
        &self,
        plan: &Plan,
        egress: &EgressPolicy,
        undo: &mut UndoList,
    ) -> Result<Slot, NetError> {
        let shared = &self.shared;
        register_undo(shared, plan, undo);
        shared.on_host(|| shared.delete_link(&plan.link))?;
        remove_namespace(&plan.netns)?;
        shared.checkpoint("leftovers cleaned")?;
        shared.set_egress(plan.index, plan.claim, egress)?;
        shared.checkpoint("egress set")?;
        netns::within(Place::Fresh, || inside::build(shared, plan))
            .map_err(|e| NetError::step("make a network namespace", e))??;
        shared.on_host(|| connect_host(shared, plan))?;
        shared.hear(plan.index, plan.claim, &plan.netns)?;
        shared.checkpoint("questions heard")?;
        tracing::debug!(note = plan.note, index = plan.index, link = plan.link, "network slot made");
        Ok(Slot::of(shared, plan))
    }
}

impl Slot {
    /// The slot of a plan, which is there.
    pub(crate) fn of(shared: &Arc<Shared>, plan: &Plan) -> Self {
        Self {
            netns: plan.netns.clone(),
            index: plan.index,
            link: plan.link.clone(),
            address: plan.pair.slot,
            guest: GuestNet::new(shared.dns.clone()),
            claim: plan.claim,
            shared: Arc::downgrade(shared),
        }
    }

    /// Where the namespace is mounted: what a monitor enters by `setns`.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// The TAP device's name in that namespace. It was made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, one queue.
    pub fn tap(&self) -> &'static str {
        TAP
    }

    /// The network as the guest sees it.
    pub fn guest(&self) -> &GuestNet {
        &self.guest
    }

    /// The slot's index.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The name of the host's end of the veth pair.
    pub fn link(&self) -> &str {
        &self.link
    }

    /// The address that the host knows the slot by.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Changes what the guest may reach, at once and for the connections it has as well.
    ///
    /// One transaction: at no time does a packet get through that neither the old nor the new policy allows. What both
    /// allow may meanwhile lose a packet. Blocks for about a millisecond.
    ///
    /// Where names come into the policy, or go, questions are brought to another place from then on; one that is asked
    /// again from the same port within two minutes is lost.
    ///
    /// # Errors
    /// [`NetError::SlotGone`] once the slot's undo list runs; [`NetError::Firewall`], [`NetError::NotPermitted`] or
    /// [`NetError::Step`] with the old policy still in force. A [`NetError::Step`] to answer questions for names comes
    /// after that: the new policy is in force, but the guest's questions are lost or refused.
    pub fn set_egress(&self, egress: &EgressPolicy) -> Result<(), NetError> {
        let shared = self.shared.upgrade().ok_or(NetError::SlotGone { index: self.index })?;
        shared.set_egress(self.index, self.claim, egress)?;
        shared.hear(self.index, self.claim, &self.netns)
    }

    /// Connects to a TCP port of the guest, from inside the namespace, within `timeout`.
    ///
    /// For some milliseconds after a monitor has attached to the TAP the kernel still drops what is sent to it, and
    /// TCP itself would repeat a lost first packet only after a second. So it is asked anew, at growing intervals.
    ///
    /// # Errors
    /// The socket's own (`ConnectionRefused`, `TimedOut`, …), or `NotFound` once the slot is removed. The slot stays
    /// as it is.
    ///
    /// # Cancel safety
    /// A dropped future lets go of the namespace within milliseconds.
    pub async fn connect(&self, port: u16, timeout: Duration) -> io::Result<TcpStream> {
        let guest = SocketAddr::from((self.guest.ip, port));
        let deadline = Deadline::after(timeout);
        let mut patience = FIRST_PATIENCE;
        loop {
            let attempt = self.socket().await?.connect(guest);
            match tokio::time::timeout(patience.min(deadline.remaining()), attempt).await {
                Ok(outcome) => return outcome,
                Err(_) if deadline.passed() => return Err(io::ErrorKind::TimedOut.into()),
                Err(_) => patience *= 2,
            }
        }
    }

    /// A TCP socket that belongs to the namespace, whichever thread uses it.
    async fn socket(&self) -> io::Result<TcpSocket> {
        let path = self.netns.clone();
        let made = tokio::task::spawn_blocking(move || {
            let namespace = File::open(path)?;
            netns::within(Place::Existing(&namespace), || {
                socket_with(
                    AddressFamily::INET,
                    SocketType::STREAM,
                    SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
                    None,
                )
            })?
            .map_err(io::Error::from)
        });
        let socket = made.await.map_err(io::Error::other)??;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }
}

pub(crate) fn register_undo(shared: &Arc<Shared>, plan: &Plan, undo: &mut UndoList) {
    let Plan { index, claim, link, netns, .. } = plan.clone();
    let owner = Arc::clone(shared);
    undo.push(format!("slot index {index}"), move |_| {
        owner.release(index, claim);
        Ok(())
    });
    let owner = Arc::clone(shared);
    undo.push(format!("egress rules of {link}"), move |deadline| {
        Ok(owner.end_egress(index, claim, deadline)?)
    });
    undo.push(format!("network namespace {}", netns.display()), move |_| Ok(remove_namespace(&netns)?));
    let owner = Arc::clone(shared);
    undo.push(format!("link {link}"), move |_| Ok(owner.on_host(|| owner.delete_link(&link))?));
}

pub(crate) fn remove_namespace(path: &Path) -> Result<(), NetError> {
    netns::remove(path)
        .map_err(|e| NetError::step(format!("remove the network namespace {}", path.display()), e))
}

/// Connects the host's end, in the host's namespace.
fn connect_host(shared: &Shared, plan: &Plan) -> Result<(), NetError> {
    let link = &plan.link;
    let failed = |what: &str| {
        let step = format!("{what} {link}");
        move |e| NetError::step(step, e)
    };
    disable_ipv6(link).map_err(failed("switch IPv6 off on"))?;
    let mut links = Links::open();
    let index = links.index(link).map_err(failed("find the link"))?;
    links.set_up_noting(index, &plan.note).map_err(failed("bring up the link"))?;
    shared.checkpoint("host's end up")?;

    // Of all there is on the machine only one gets this route: it settles whose the address pair is.
    links.add_host_route(index, plan.pair.slot).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => {
            NetError::IndexTaken { index: plan.index, address: plan.pair.slot, source }
        }
        _ => NetError::step(format!("route {} to {link}", plan.pair.slot), source),
    })?;
    shared.checkpoint("address claimed")?;
    links.add_address(index, plan.pair.host, 32).map_err(failed("give an address to"))?;
    shared.checkpoint("host's end addressed")
}

/// Keeps an interface of the calling thread's namespace without IPv6, or all of them, by their name in /proc.
pub(crate) fn disable_ipv6(link: &str) -> io::Result<()> {
    match switch_on(&format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6")) {
        // A kernel without IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Shared {
    /// Marks a point between two steps, where tests make creation fail.
    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests have another version")]
    pub(crate) fn checkpoint(&self, _done: &'static str) -> Result<(), NetError> {
        Ok(())
    }

    /// Marks a point between two steps, where tests make creation fail.
    #[cfg(test)]
    pub(crate) fn checkpoint(&self, done: &'static str) -> Result<(), NetError> {
        self.faults.pass(done)
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! What all slots of one host id share: the firewall table and the address pool.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wrenn_base::{HostId, UndoList};

use crate::address::AddressPool;
use crate::claims::Claims;
use crate::error::NetError;
use crate::link::Links;
use crate::netns::{self, Place};
use crate::nft::{self, Transaction};
use crate::policy;
use crate::pool::SlotPool;
use crate::ranges::Range;
use crate::slot::remove_namespace;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// What a [`HostNet`] is made from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HostNetSpec {
    /// Whose slots these are: the id is part of every link's and the table's name.
    pub host: HostId,
    /// Where the namespaces get their names. Made if absent; its parent must exist.
    pub netns_dir: PathBuf,
    /// Where the slots' addresses come from; [`AddressPool::DEFAULT`] at first.
    pub pool: AddressPool,
    /// The guests' DNS servers, by default 1.1.1.1 and 8.8.8.8. Guests may ask them wherever they are, even on this
    /// machine or in a private network. For guests whose policies have names they are asked by this process, from the
    /// namespace in which [`HostNet::open`] was called.
    pub dns: Vec<Ipv4Addr>,
    /// The least time for which an address stays open after a guest was told it for an allowed name; 60 s by default.
    /// An answer with a longer time to live opens it for longer.
    pub least_pin: Duration,
}

impl HostNetSpec {
    /// The defaults for `host`, with namespaces named in `netns_dir`.
    pub fn new(host: HostId, netns_dir: impl Into<PathBuf>) -> Self {
        let dns = vec![Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];
        let least_pin = Duration::from_secs(60);
        Self { host, netns_dir: netns_dir.into(), pool: AddressPool::DEFAULT, dns, least_pin }
    }
}

/// The network of one host: makes slots. Clones are the same host.
///
/// ```no_run
/// # use wrenn_base::{HostId, Reaper, SandboxId, UndoList};
/// # use wrenn_net::{HostNet, HostNetSpec, SlotSpec};
/// let reaper = Reaper::start();
/// let mut host_undo = UndoList::new(&reaper);
/// let net = HostNet::open(HostNetSpec::new(HostId::random(), "/run/wrenn-netns"), &mut host_undo)?;
/// let mut undo = UndoList::new(&reaper);
/// let slot = net.slot(SlotSpec { sandbox: SandboxId::random(), index: 1 }, &mut undo)?;
/// println!("the monitor runs in {}", slot.netns().display());
/// # Ok::<(), wrenn_net::NetError>(())
/// ```
#[derive(Debug, Clone)]
pub struct HostNet {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) host: HostId,
    pub(crate) netns_dir: PathBuf,
    pub(crate) pool: AddressPool,
    pub(crate) dns: Vec<Ipv4Addr>,
    pub(crate) least_pin: Duration,
    /// The namespace in which [`HostNet::open`] was called, whichever thread calls later.
    pub(crate) namespace: File,
    pub(crate) claims: Mutex<Claims>,
    #[cfg(test)]
    pub(crate) faults: crate::slot::tests::Faults,
}

impl HostNet {
    /// Sets up the host's side: the directory, the firewall table `wrenn_<host id>`, and forwarding.
    ///
    /// The host is the network namespace of the calling thread. A table that a killed process left is replaced in
    /// one step, so that slots that live on are not cut off; those with an egress policy of their own are, until they are
    /// [taken over](crate::SlotPool::take_over) with it. Blocks for a few milliseconds.
    ///
    /// # Errors
    /// [`NetError::InvalidDnsServer`] and [`NetError::PoolClash`] before anything is changed; [`NetError::Firewall`],
    /// [`NetError::NotPermitted`] or [`NetError::Step`] with what was done registered in `undo`. Undoing leaves
    /// `ip_forward` as it is, and fails while slots are left in the directory.
    pub fn open(spec: HostNetSpec, undo: &mut UndoList) -> Result<Self, NetError> {
        for &address in &spec.dns {
            check_dns_server(address)?;
        }
        let namespace =
            netns::current().map_err(|e| NetError::step("open the host's network namespace", e))?;
        let shared = Arc::new(Shared {
            host: spec.host,
            netns_dir: spec.netns_dir,
            pool: spec.pool,
            dns: spec.dns,
            least_pin: spec.least_pin,
            namespace,
            claims: Mutex::default(),
            #[cfg(test)]
            faults: Default::default(),
        });
        shared.on_host(|| shared.check_pool())?;

        let dir = shared.netns_dir.clone();
        undo.push(format!("directory {}", dir.display()), move |_| Ok(remove_dir(&dir)?));
        make_dir(&shared.netns_dir)
            .map_err(|e| NetError::step(format!("make the directory {}", shared.netns_dir.display()), e))?;

        let owner = Arc::clone(&shared);
        undo.push(format!("nftables table {}", shared.table()), move |_| {
            Ok(owner.on_host(|| owner.delete_table())?)
        });
        // It is started by the first policy that needs it.
        let owner = Arc::clone(&shared);
        undo.push("the resolver for names", move |deadline| Ok(owner.end_resolver(deadline)?));
        shared.on_host(|| {
            let table = shared.table();
            let failed = |e| NetError::firewall(&table, e);
            let cut_off = nft::links_in(&table, policy::OWN_POLICY).map_err(failed)?;
            policy::host_table(&table, &shared.link_prefix(), shared.pool, &shared.dns, &cut_off)
                .commit()
                .map_err(failed)?;
            shared.cut_off(cut_off);
            forward_packets().map_err(|e| NetError::step(format!("switch on {IP_FORWARD}"), e))
        })?;
        tracing::debug!(host = %shared.host, pool = %shared.pool, "host network open");
        Ok(Self { shared })
    }
}

impl HostNet {
    /// Removes every slot that a killed process left: links and namespaces of this host's id. Call it before the
    /// first slot is made. Slots of a [pool](crate::SlotPool) with an index in `keep` stay, for
    /// [`SlotPool::take_over`](crate::SlotPool::take_over).
    ///
    /// # Errors
    /// The first failure; the rest has been tried nevertheless.
    pub fn sweep(&self, keep: &BTreeSet<u16>) -> Result<(), NetError> {
        let shared = &self.shared;
        keep.iter().try_for_each(|&index| shared.keep(index))?;
        let kept_links: Vec<_> = keep.iter().map(|&index| shared.link_name(index)).collect();
        let kept_namespaces: Vec<_> = keep.iter().map(|&index| shared.pool_namespace(index)).collect();
        let prefix = shared.link_prefix();
        let links = shared.on_host(|| {
            Links::open().names().map_err(|e| NetError::step("list the host's network interfaces", e))
        })?;
        let links = links.into_iter().filter(|name| name.starts_with(&prefix) && !kept_links.contains(name));
        let mut results: Vec<_> = links.map(|name| shared.on_host(|| shared.delete_link(&name))).collect();
        results.extend(shared.unclaimed().iter().map(|link| shared.forget_reach(link)));
        let dir = &shared.netns_dir;
        let names = fs::read_dir(dir)
            .map_err(|e| NetError::step(format!("list the directory {}", dir.display()), e))?;
        let names = names.flatten().map(|entry| entry.path()).filter(|path| !kept_namespaces.contains(path));
        results.extend(names.map(|path| remove_namespace(&path)));
        results.into_iter().collect()
    }
}

impl Shared {
    pub(crate) fn table(&self) -> String {
        format!("wrenn_{}", self.host)
    }

    /// What the names of all links on the host's side begin with.
    pub(crate) fn link_prefix(&self) -> String {
        format!("w{}v", self.host)
    }

    /// At most 13 characters; an interface name has up to 15.
    pub(crate) fn link_name(&self, index: u16) -> String {
        format!("{}{index}", self.link_prefix())
    }

    /// Where the namespace of a pool's slot is named.
    pub(crate) fn pool_namespace(&self, index: u16) -> PathBuf {
        self.netns_dir.join(SlotPool::namespace_name(index))
    }

    /// Runs `work` in the host's namespace, on a thread of its own.
    pub(crate) fn on_host<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetError> + Send,
    ) -> Result<T, NetError> {
        netns::within(Place::Existing(&self.namespace), work)
            .map_err(|e| NetError::step("work in the host's network namespace", e))?
    }

    /// Deletes the host's end of a slot's veth pair, and the other end with it; none there is success.
    pub(crate) fn delete_link(&self, name: &str) -> Result<(), NetError> {
        let failed = |e| NetError::step(format!("delete the link {name}"), e);
        let mut links = Links::open();
        let Some(link) = links.find(name).map_err(failed)? else { return Ok(()) };
        match link.kind.as_deref() {
            Some("veth") => links.delete(link.index).map_err(failed),
            other => {
                let kind = other.unwrap_or("hardware").to_owned();
                Err(NetError::NameClash { name: name.to_owned(), kind })
            }
        }
    }

    fn delete_table(&self) -> Result<(), NetError> {
        let table = self.table();
        let mut transaction = Transaction::on(&table);
        transaction.delete_table();
        transaction.commit().map_err(|e| NetError::step(format!("delete the nftables table {table}"), e))
    }

    /// Refuses a pool that would take somebody's network away from this machine.
    fn check_pool(&self) -> Result<(), NetError> {
        let routes = Links::open().destinations().map_err(|e| NetError::step("list the host's routes", e))?;
        for (range, prefix) in routes {
            // Wider than a /8 it is a default route in halves or quarters, as VPNs set them. Single addresses are
            // slots, of this host or another; one that is not shows up as a taken index.
            if (8..32).contains(&prefix) && range.overlaps(self.pool.range()) {
                let route = format!("{}/{prefix}", Ipv4Addr::from_bits(range.first));
                return Err(NetError::PoolClash { pool: self.pool, route });
            }
        }
        Ok(())
    }
}

fn check_dns_server(address: Ipv4Addr) -> Result<(), NetError> {
    let rule = if address.is_loopback() {
        "a loopback address would be the guest itself; name the machine's address, or another server's"
    } else if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        "it must be one machine's address"
    } else if Range::cidr(crate::address::GUEST, crate::address::GUEST_PREFIX).contains(address) {
        "that is the guest's own network"
    } else {
        return Ok(());
    };
    Err(NetError::InvalidDnsServer { address, rule })
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        other => other,
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Lets the calling thread's namespace forward IPv4 packets between its interfaces.
pub(crate) fn forward_packets() -> io::Result<()> {
    // Not written without need: writing resets settings of every interface.
    if fs::read_to_string(IP_FORWARD)?.trim() == "1" {
        return Ok(());
    }
    switch_on(IP_FORWARD)
}

/// Sets a switch under /proc/sys of the calling thread's namespace.
pub(crate) fn switch_on(path: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(b"1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_servers_that_no_guest_could_ask_are_refused() {
        for address in ["127.0.0.53", "0.0.0.0", "224.0.0.251", "255.255.255.255", "169.254.0.22"] {
            let refused = check_dns_server(address.parse().unwrap()).unwrap_err();
            assert!(refused.to_string().starts_with(address), "{refused}");
        }
        for address in ["1.1.1.1", "10.0.0.53", "192.168.1.1", "169.254.169.253"] {
            check_dns_server(address.parse().unwrap()).unwrap();
        }
    }
}

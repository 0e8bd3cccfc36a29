//! A host with one slot and an internet, and what a process in the slot reaches of it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use wrenn_base::UndoList;
use wrenn_net::{AllowRule, EgressPolicy, HostNet, HostNetSpec, Slot};

use super::common::{Host, Internet, PATIENCE, is_silent, listen, run, within, within_path};
use super::net::{removed, spec};

/// Reached under every policy of these tests: what was sent before a packet that has arrived there is decided.
pub(crate) const MARK: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 53);
/// How long what must not come is waited for, where there is no telling otherwise.
const SILENCE: Duration = Duration::from_millis(300);

pub(crate) struct World<'a> {
    pub(crate) host: &'a Host,
    pub(crate) net: HostNet,
    pub(crate) slot: Slot,
    pub(crate) internet: Internet,
    mark: UdpSocket,
    undo: UndoList,
    host_undo: UndoList,
}

/// Nothing but the mark.
pub(crate) fn nothing() -> EgressPolicy {
    EgressPolicy::deny_all().allow(AllowRule::to(MARK.into())).unwrap()
}

impl<'a> World<'a> {
    /// With all `addresses` on the internet, whichever range they are from.
    pub(crate) fn new(host: &'a Host, addresses: &[Ipv4Addr], policy: &EgressPolicy) -> Self {
        Self::of(host, addresses, policy, |_| ())
    }

    /// The same, with a host's network that is opened otherwise.
    pub(crate) fn of(
        host: &'a Host,
        addresses: &[Ipv4Addr],
        policy: &EgressPolicy,
        adapt: impl FnOnce(&mut HostNetSpec),
    ) -> Self {
        let internet = host.internet(&[addresses, &[MARK, RESOLVER]].concat());
        let (mut host_undo, mut undo) = (host.undo(), host.undo());
        let mut config = HostNetSpec::new(host.id.clone(), host.netns_dir());
        config.dns = vec![RESOLVER];
        adapt(&mut config);
        let net = HostNet::open(config, &mut host_undo).unwrap();
        let slot = net.slot_with_egress(spec(1), policy, &mut undo).unwrap();
        let mark = internet.socket(MARK, 9);
        Self { host, net, slot, internet, mark, undo, host_undo }
    }

    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within_path(self.slot.netns(), work)
    }

    /// Returns once whatever the slot has sent so far has passed the host's rules, or has not.
    pub(crate) fn settle(&self) {
        self.inside(|| sender().send_to(b"mark", (MARK, 9)).unwrap());
        self.mark.recv_from(&mut [0; 100]).unwrap();
    }

    /// Whether a datagram gets there.
    pub(crate) fn udp(&self, to: Ipv4Addr, port: u16) -> bool {
        let socket = self.internet.socket(to, port);
        self.inside(|| sender().send_to(b"hello", (to, port)).unwrap());
        self.settle();
        !is_silent(&socket)
    }

    /// Whether a connection comes about, if need be at a second attempt of TCP's.
    pub(crate) fn tcp(&self, to: Ipv4Addr, port: u16) -> bool {
        self.connects(to, port, PATIENCE)
    }

    /// Whether no connection comes about for a while.
    pub(crate) fn no_tcp(&self, to: Ipv4Addr, port: u16) -> bool {
        !self.connects(to, port, SILENCE)
    }

    fn connects(&self, to: Ipv4Addr, port: u16, time: Duration) -> bool {
        let _listener = within(&self.internet.namespace, || TcpListener::bind((to, port)).unwrap());
        let to = SocketAddr::from((to, port));
        self.inside(|| TcpStream::connect_timeout(&to, time).is_ok())
    }

    /// A connection, with both of its ends.
    pub(crate) fn connection(&self, to: Ipv4Addr, port: u16) -> (TcpStream, TcpStream) {
        let listener = within(&self.internet.namespace, || TcpListener::bind((to, port)).unwrap());
        let to = SocketAddr::from((to, port));
        let ours = self.inside(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
        (ours, listener.accept().unwrap().0)
    }

    /// Takes the rules of one of the host's chains away.
    pub(crate) fn without(&self, chain: &str) {
        run("nft", &["flush", "chain", "inet", &self.table(), chain]);
    }

    pub(crate) fn table(&self) -> String {
        format!("wrenn_{}", self.host.id)
    }

    /// Leaves everything as a process does that is killed.
    pub(crate) fn abandon(self) -> (Slot, Internet) {
        self.undo.commit();
        self.host_undo.commit();
        (self.slot, self.internet)
    }

    pub(crate) fn remove(self) {
        removed(self.undo);
        removed(self.host_undo);
    }
}

pub(crate) fn sender() -> UdpSocket {
    listen(Ipv4Addr::UNSPECIFIED, 0)
}

/// Whether what is written at one end comes out at the other.
pub(crate) fn carries(from: &TcpStream, to: &TcpStream, time: Duration) -> bool {
    use std::io::{Read, Write};
    (&mut &*from).write_all(b"x").unwrap();
    to.set_read_timeout(Some(time)).unwrap();
    (&mut &*to).read_exact(&mut [0]).is_ok()
}

/// As [`carries`], for ends between which nothing must pass.
pub(crate) fn is_cut(from: &TcpStream, to: &TcpStream) -> bool {
    !carries(from, to, SILENCE)
}

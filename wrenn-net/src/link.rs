//! Links, addresses, routes and neighbours, over a blocking rtnetlink socket.
//!
//! A [`Links`] belongs to the namespace of the thread that first used it. Requests carry names and addresses made by
//! this crate; what comes back is the kernel's.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, Ifinfomsg, PushLinkAttrs};
use netlink_bindings::rt_neigh::{self, Ndmsg};
use netlink_bindings::rt_route::{self, Rtmsg};
use netlink_bindings::traits::{NetlinkRequest, Pusher};
use netlink_bindings::utils::{finalize_nested_header, push_nested_header};
use netlink_socket2::{NetlinkSocket, ReplyError};

use crate::address::MacAddr;
use crate::ranges::Range;

// linux/if_link.h and linux/veth.h: the kernel's description of rtnetlink leaves veth out.
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

/// A connection to the kernel's rtnetlink.
pub(crate) struct Links(NetlinkSocket);

/// One interface.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    /// Its driver's name for its kind, such as "veth"; hardware has none.
    pub(crate) kind: Option<String>,
}

/// One end of a veth pair to be.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: MacAddr,
}

impl Links {
    pub(crate) fn open() -> Self {
        Self(NetlinkSocket::new())
    }

    /// The interface called `name`, if there is one.
    pub(crate) fn find(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::new());
        request.encode().push_ifname_bytes(name.as_bytes());
        let mut reply = self.0.request(&request).map_err(not_sent)?;
        match reply.recv_one() {
            Ok((header, attributes)) => {
                let kind = attributes.get_linkinfo().and_then(|info| info.get_kind());
                let kind = kind.ok().map(|kind| kind.to_string_lossy().into_owned());
                Ok(Some(Link { index: header.ifi_index as u32, kind }))
            }
            Err(e) if is(e.as_io_error(), libc::ENODEV) => Ok(None),
            Err(e) => Err(refused(e)),
        }
    }

    /// The names of all interfaces.
    pub(crate) fn names(&mut self) -> io::Result<Vec<String>> {
        let request = rt_link::Request::new().op_getlink_dump(&Ifinfomsg::new());
        let mut reply = self.0.request(&request).map_err(not_sent)?;
        let mut names = Vec::new();
        while let Some((_, attributes)) = reply.recv().transpose().map_err(refused)? {
            if let Ok(name) = attributes.get_ifname() {
                names.push(name.to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    /// The index of the interface called `name`, which is expected to be there.
    pub(crate) fn index(&mut self, name: &str) -> io::Result<u32> {
        self.find(name)?.map(|link| link.index).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// Deletes an interface, at once; one that is gone already is success.
    pub(crate) fn delete(&mut self, index: u32) -> io::Result<()> {
        let header = Ifinfomsg { ifi_index: index as i32, ..Ifinfomsg::new() };
        let request = rt_link::Request::new().op_dellink_do(&header);
        match self.0.request(&request).map_err(not_sent)?.recv_ack() {
            Err(e) if is(e.as_io_error(), libc::ENODEV) => Ok(()),
            other => other.map_err(refused),
        }
    }

    /// Makes a veth pair: `here` in this socket's namespace, `there` in the namespace `there_netns`.
    pub(crate) fn add_veth(
        &mut self,
        here: End<'_>,
        there: End<'_>,
        there_netns: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&Ifinfomsg::new());
        let attributes = request.encode().push_ifname_bytes(here.name.as_bytes()).push_address(&here.mac.0);
        let mut info = attributes.nested_linkinfo().push_kind(c"veth");
        let buffer = info.as_vec_mut();
        let data = push_nested_header(buffer, IFLA_INFO_DATA);
        let peer = push_nested_header(buffer, VETH_INFO_PEER);
        buffer.extend_from_slice(Ifinfomsg::new().as_slice());
        PushLinkAttrs::new(&mut *buffer)
            .push_ifname_bytes(there.name.as_bytes())
            .push_address(&there.mac.0)
            .push_net_ns_fd(there_netns.as_raw_fd() as u32);
        finalize_nested_header(buffer, peer);
        finalize_nested_header(buffer, data);
        drop(info);
        self.ask(&request)
    }

    /// Brings an interface up.
    pub(crate) fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.ask(&rt_link::Request::new().op_setlink_do(&up(index)))
    }

    /// Brings an interface up, with a hardware address.
    pub(crate) fn set_up_as(&mut self, index: u32, mac: MacAddr) -> io::Result<()> {
        let mut request = rt_link::Request::new().op_setlink_do(&up(index));
        request.encode().push_address(&mac.0);
        self.ask(&request)
    }

    /// Brings an interface up, with a note for people who list the interfaces.
    pub(crate) fn set_up_noting(&mut self, index: u32, note: &str) -> io::Result<()> {
        let mut request = rt_link::Request::new().op_setlink_do(&up(index));
        request.encode().push_ifalias_bytes(note.as_bytes());
        self.ask(&request)
    }

    /// Gives an interface an address, and its network's route with it.
    pub(crate) fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let header = Ifaddrmsg {
            ifa_family: libc::AF_INET as u8,
            ifa_prefixlen: prefix,
            ifa_index: index,
            ..Ifaddrmsg::default()
        };
        let mut request = rt_addr::Request::new().set_create().set_excl().op_newaddr_do(&header);
        request.encode().push_local(address.into()).push_address(address.into());
        self.ask(&request)
    }

    /// Routes everything without a better route through `gateway`, which is on the interface's network.
    pub(crate) fn add_default_route(&mut self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let mut request = rt_route::Request::new()
            .set_create()
            .set_excl()
            .op_newroute_do(&route(0, libc::RT_SCOPE_UNIVERSE));
        request.encode().push_oif(index).push_gateway(gateway.into());
        self.ask(&request)
    }

    /// Routes one address to an interface; `AlreadyExists` if the machine has a route to just this address.
    pub(crate) fn add_host_route(&mut self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut request =
            rt_route::Request::new().set_create().set_excl().op_newroute_do(&route(32, libc::RT_SCOPE_LINK));
        request.encode().push_oif(index).push_dst(address.into());
        self.ask(&request)
    }

    /// Tells an interface for good which hardware address a neighbour has.
    pub(crate) fn add_neighbour(&mut self, index: u32, address: Ipv4Addr, mac: MacAddr) -> io::Result<()> {
        let header = Ndmsg {
            ndm_family: libc::AF_INET as u8,
            ndm_ifindex: index as i32,
            ndm_state: rt_neigh::NudState::Permanent as u16,
            ..Ndmsg::default()
        };
        let mut request = rt_neigh::Request::new().set_create().set_replace().op_newneigh_do(&header);
        request.encode().push_dst(address.into()).push_lladdr(&mac.0);
        self.ask(&request)
    }

    /// The IPv4 destinations that this namespace routes, default routes left out, each with its prefix length.
    pub(crate) fn destinations(&mut self) -> io::Result<Vec<(Range, u8)>> {
        let header = Rtmsg { rtm_family: libc::AF_INET as u8, ..Rtmsg::default() };
        let request = rt_route::Request::new().op_getroute_dump(&header);
        let mut reply = self.0.request(&request).map_err(not_sent)?;
        let mut found = Vec::new();
        while let Some((header, attributes)) = reply.recv().transpose().map_err(refused)? {
            if let Ok(IpAddr::V4(base)) = attributes.get_dst() {
                let prefix = header.rtm_dst_len.min(32);
                found.push((Range::cidr(base, prefix), prefix));
            }
        }
        Ok(found)
    }

    fn ask<R: NetlinkRequest>(&mut self, request: &R) -> io::Result<()> {
        self.0.request(request).map_err(not_sent)?.recv_ack().map_err(refused)
    }
}

fn up(index: u32) -> Ifinfomsg {
    let up = libc::IFF_UP as u32;
    Ifinfomsg { ifi_index: index as i32, ifi_flags: up, ifi_change: up, ..Ifinfomsg::new() }
}

fn route(prefix: u8, scope: u8) -> Rtmsg {
    Rtmsg {
        rtm_family: libc::AF_INET as u8,
        rtm_dst_len: prefix,
        rtm_table: libc::RT_TABLE_MAIN,
        rtm_protocol: libc::RTPROT_STATIC,
        rtm_scope: scope,
        rtm_type: libc::RTN_UNICAST,
        ..Rtmsg::default()
    }
}

fn is(error: &io::Error, errno: i32) -> bool {
    error.raw_os_error() == Some(errno)
}

/// The kernel's answer as an error: the plain one, or the same kind with what else the kernel said.
pub(crate) fn refused(reply: ReplyError) -> io::Error {
    let said = reply.to_string();
    let said = said.strip_suffix(" (no extended ack)").unwrap_or(&said);
    let code = io::Error::from(reply);
    if said == code.to_string() { code } else { io::Error::new(code.kind(), said) }
}

/// The error of a request that did not reach the kernel.
///
/// The library takes the number of a failed `socket` from its return value, so that whatever was wrong reads as
/// EPERM, an error that sending to the kernel cannot have.
pub(crate) fn not_sent(error: io::Error) -> io::Error {
    if is(&error, libc::EPERM) {
        return io::Error::other(
            "no netlink socket to be had (too many open files, or a sandbox that forbids it)",
        );
    }
    error
}

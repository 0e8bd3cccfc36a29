//! Gives a network interface an address and brings it up: two rtnetlink messages, put together by hand, as
//! the guest should need no more than the standard library and `rustix`.

use std::io;
use std::net::Ipv4Addr;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, netdevice::name_to_index, recv, sendto, socket,
};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
/// Request, acknowledge.
const CHANGE: u16 = 0x5;
/// Request, acknowledge, create.
const CREATE: u16 = 0x405;
const IFF_UP: u32 = 1;
const IFA_LOCAL: u16 = 2;
const AF_INET: u8 = 2;
const NLMSG_ERROR: u16 = 2;

pub(crate) fn bring_up(name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let index = name_to_index(socket(AddressFamily::UNIX, SocketType::DGRAM, None)?, name)?;
    // ifaddrmsg: family, prefix length, flags, scope, index; then one attribute.
    let mut body = vec![AF_INET, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(8u16.to_ne_bytes());
    body.extend(IFA_LOCAL.to_ne_bytes());
    body.extend(address.octets());
    request(RTM_NEWADDR, CREATE, &body)?;
    // ifinfomsg: family, pad, type, index, flags, mask of flags.
    let mut body = vec![0; 4];
    for word in [index, IFF_UP, IFF_UP] {
        body.extend(word.to_ne_bytes());
    }
    request(RTM_NEWLINK, CHANGE, &body)
}

/// Sends one message, and expects its acknowledgement.
fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 1024];
    recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // nlmsghdr: length, type, …; then the error number, negated, or zero.
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    match (u16::from_ne_bytes([answer[4], answer[5]]), error) {
        (NLMSG_ERROR, 0) => Ok(()),
        (NLMSG_ERROR, error) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::other("that is no acknowledgement")),
    }
}

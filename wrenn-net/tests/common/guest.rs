//! A guest's network card and a small IP stack: Ethernet frames written to and read from the slot's TAP device.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{PATIENCE, sys, within_path};

pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
const GUEST_MAC: [u8; 6] = [6, 0, 0xa9, 0xfe, 0, 0x15];
const GATEWAY_MAC: [u8; 6] = [6, 0, 0xa9, 0xfe, 0, 0x16];
const VNET_HEADER: usize = 10; // struct virtio_net_hdr
const PORT: u16 = 4242;

pub(crate) struct Guest {
    tap: File,
}

impl Guest {
    pub(crate) fn attach(netns: &Path) -> Self {
        let tap = within_path(netns, || {
            let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("the TUN driver");
            sys::attach_tap(&tun).expect("a free TAP");
            tun
        });
        let mut guest = Self { tap };
        // Carrier and queue of the TAP come up a moment after attaching; until then what is sent to it is lost.
        super::eventually("the gateway's hardware address", || guest.ask_for_gateway() == Some(GATEWAY_MAC));
        guest
    }

    fn send(&mut self, to: [u8; 6], kind: u16, payload: &[u8]) {
        let mut frame = vec![0; VNET_HEADER];
        frame.extend(to);
        frame.extend(GUEST_MAC);
        frame.extend(kind.to_be_bytes());
        frame.extend(payload);
        self.tap.write_all(&frame).expect("to send a frame");
    }

    /// The next frame for which `wanted` has an answer, if it comes in time.
    fn receive<T>(&mut self, time: Duration, wanted: impl Fn([u8; 6], u16, &[u8]) -> Option<T>) -> Option<T> {
        let start = Instant::now();
        loop {
            let left = Timespec::try_from(time.checked_sub(start.elapsed())?).expect("a short time");
            if poll(&mut [PollFd::new(&self.tap, PollFlags::IN)], Some(&left)).expect("to poll") == 0 {
                return None;
            }
            let mut frame = [0; 4096];
            let length = self.tap.read(&mut frame).expect("to receive a frame");
            let frame = &frame[VNET_HEADER..length];
            let sender = frame[6..12].try_into().expect("six bytes");
            let kind = u16::from_be_bytes([frame[12], frame[13]]);
            if let Some(found) = wanted(sender, kind, &frame[14..]) {
                return Some(found);
            }
        }
    }

    /// Asks by ARP who has the gateway's address, and returns the answer.
    fn ask_for_gateway(&mut self) -> Option<[u8; 6]> {
        let mut question = vec![0, 1, 8, 0, 6, 4, 0, 1];
        question.extend(GUEST_MAC);
        question.extend(GUEST.octets());
        question.extend([0; 6]);
        question.extend(GATEWAY.octets());
        self.send([0xff; 6], 0x0806, &question);
        self.receive(Duration::from_millis(100), |_, kind, arp| {
            let is_answer = kind == 0x0806 && arp[7] == 2 && arp[14..18] == GATEWAY.octets();
            is_answer.then(|| arp[8..14].try_into().expect("six bytes"))
        })
    }

    pub(crate) fn send_ipv4(&mut self, source: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) {
        let mut packet = vec![0x45, 0];
        packet.extend((20 + payload.len() as u16).to_be_bytes());
        packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(to.octets());
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        self.send(GATEWAY_MAC, 0x0800, &packet);
    }

    pub(crate) fn send_udp(&mut self, to: SocketAddrV4, text: &str) {
        self.send_udp_as(GUEST, to, text);
    }

    pub(crate) fn send_udp_as(&mut self, source: Ipv4Addr, to: SocketAddrV4, text: &str) {
        let mut datagram = Vec::new();
        datagram.extend(PORT.to_be_bytes());
        datagram.extend(to.port().to_be_bytes());
        datagram.extend((8 + text.len() as u16).to_be_bytes());
        datagram.extend([0, 0]); // no checksum, which IPv4 allows
        datagram.extend(text.as_bytes());
        self.send_ipv4(source, *to.ip(), 17, &datagram);
    }

    /// The next datagram to the guest, and who sent it.
    pub(crate) fn receive_udp(&mut self) -> (SocketAddrV4, String) {
        let datagram = self.receive(PATIENCE, |sender, kind, packet| {
            let for_guest = kind == 0x0800 && packet[9] == 17 && packet[16..20] == GUEST.octets();
            if !for_guest || packet[22..24] != PORT.to_be_bytes() {
                return None;
            }
            assert_eq!(sender, GATEWAY_MAC);
            let ip: [u8; 4] = packet[12..16].try_into().expect("four bytes");
            let port = u16::from_be_bytes([packet[20], packet[21]]);
            let text = String::from_utf8_lossy(&packet[28..]).into_owned();
            Some((SocketAddrV4::new(ip.into(), port), text))
        });
        datagram.expect("a datagram for the guest")
    }

    pub(crate) fn ping_gateway(&mut self) {
        let mut echo = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
        let sum = checksum(&echo);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        self.send_ipv4(GUEST, GATEWAY, 1, &echo);
        let echo = self.receive(PATIENCE, |_, kind, packet| {
            let is_echo =
                kind == 0x0800 && packet[9] == 1 && packet[20] == 0 && packet[24..26] == [0x12, 0x34];
            is_echo.then_some(())
        });
        echo.expect("the gateway to answer a ping");
    }
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

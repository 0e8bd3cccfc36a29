//! Sets: what they hold, their elements, and reading back what a set holds.

use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use netlink_bindings::nftables::{PushSetelemListAttrs, Request, SetElemFlags, SetFlags};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};
use netlink_socket2::NetlinkSocket;

use super::{Transaction, inet, whole_name};
use crate::link::{not_sent, refused};
use crate::named::Opening;
use crate::ranges::Range;

/// NFTA_SET_ELEM_KEY_END and NFTA_DATA_VALUE. The library has another number for the first, as it leaves a filler out.
const KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;
/// NFTA_SET_USERDATA, and what nftables' own tool keeps there: the byte order of keys, which is the host's. Without it
/// the tool shows names backwards.
const USERDATA: u16 = 13;
const KEYS_IN_HOST_ORDER: [u8; 6] = {
    let [a, b, c, d] = 1u32.to_ne_bytes();
    [0, 4, a, b, c, d]
};

/// More would not fit the 64 KiB that a list of elements can be long.
const ELEMENTS_OF_A_MESSAGE: usize = 400;

/// A part of a set's key: nftables' number for its type, for programs that list the set, and its length in bytes.
#[derive(Debug, Clone, Copy)]
struct Field {
    kind: u32,
    len: u32,
}

const ADDRESS: Field = Field { kind: 7, len: 4 };
const PROTOCOL: Field = Field { kind: 12, len: 1 };
const PORT: Field = Field { kind: 13, len: 2 };
const LINK: Field = Field { kind: 41, len: libc::IFNAMSIZ as u32 };

/// What the keys of a set are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Ranges of addresses.
    Addresses,
    /// Interfaces, by their names.
    Links,
    /// Interfaces, each with a range of addresses.
    LinksWithAddresses,
    /// Interfaces, each with ranges of addresses and of a protocol's ports.
    LinksWithServices,
    /// Interfaces, each with an address. Elements last for a time.
    PinnedHosts,
    /// Interfaces, each with an address, a protocol and a port. Elements last for a time.
    PinnedPorts,
}

impl Keys {
    fn fields(self) -> &'static [Field] {
        match self {
            Self::Addresses => &[ADDRESS],
            Self::Links => &[LINK],
            Self::LinksWithAddresses | Self::PinnedHosts => &[LINK, ADDRESS],
            Self::LinksWithServices | Self::PinnedPorts => &[LINK, ADDRESS, PROTOCOL, PORT],
        }
    }

    fn flags(self) -> u32 {
        match self {
            Self::Addresses => SetFlags::Interval as u32,
            Self::Links => 0,
            Self::LinksWithAddresses | Self::LinksWithServices => {
                SetFlags::Interval as u32 | SetFlags::Concat as u32
            }
            // Without ranges it is a hash table, to which adding costs the same however large it is.
            Self::PinnedHosts | Self::PinnedPorts => SetFlags::Timeout as u32,
        }
    }
}

/// An element: the key it begins with and, in sets with ranges of several fields, the key it ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    first: Vec<u8>,
    last: Option<Vec<u8>>,
    flags: u32,
    /// When the kernel takes it out.
    timeout: Option<Duration>,
}

impl Element {
    fn key(first: Vec<u8>) -> Self {
        Self { first, last: None, flags: 0, timeout: None }
    }

    fn range(first: Vec<u8>, last: Vec<u8>) -> Self {
        Self { last: Some(last), ..Self::key(first) }
    }

    /// The elements of a set of addresses; `ranges` are sorted and do not touch each other.
    pub(crate) fn addresses(ranges: &[Range]) -> Vec<Self> {
        let one = |key: u32, flags| Self { flags, ..Self::key(key.to_be_bytes().into()) };
        // An interval is two elements: its first address, and the first address behind it, if there is one.
        let both = |range: &Range| {
            let end = range.last.checked_add(1).map(|end| one(end, SetElemFlags::IntervalEnd as u32));
            [Some(one(range.first, 0)), end].into_iter().flatten()
        };
        ranges.iter().flat_map(both).collect()
    }

    pub(crate) fn link(name: &str) -> Self {
        Self::key(whole_name(name))
    }

    pub(crate) fn link_with_address(name: &str, addresses: Range) -> Self {
        let key = |address: u32| [&whole_name(name)[..], &address.to_be_bytes()].concat();
        Self::range(key(addresses.first), key(addresses.last))
    }

    pub(crate) fn link_with_service(name: &str, addresses: Range, protocol: u8, ports: Range) -> Self {
        let key = |address: u32, port: u32| service(name, address.into(), protocol, port as u16);
        Self::range(key(addresses.first, ports.first), key(addresses.last, ports.last))
    }

    /// An element of the set that is for what is opened.
    pub(crate) fn pin(name: &str, address: Ipv4Addr, opening: Opening) -> Self {
        Self::key(match opening {
            Opening::Everything => [&whole_name(name)[..], &address.octets()].concat(),
            Opening::Port { protocol, port } => service(name, address, protocol, port),
        })
    }

    /// The same, for so long; not much less than a millisecond.
    pub(crate) fn lasting(self, time: Duration) -> Self {
        Self { timeout: Some(time), ..self }
    }
}

/// Each field of a key fills registers of four bytes, of which a protocol is one and a port two.
fn service(name: &str, address: Ipv4Addr, protocol: u8, port: u16) -> Vec<u8> {
    [&whole_name(name)[..], &address.octets(), &[protocol, 0, 0, 0], &port.to_be_bytes(), &[0, 0]].concat()
}

impl Transaction<'_> {
    /// Makes a set, empty.
    pub(crate) fn set(&mut self, name: &CStr, keys: Keys) {
        let fields = keys.fields();
        self.sent += 1;
        self.sets += 1;
        let id = self.sets;
        let mut request = self.messages.request().set_create().op_newset_do(&inet());
        let set = request.encode().push_table_bytes(self.table.as_bytes()).push_name(name);
        let mut set = set
            .push_flags(keys.flags())
            .push_key_type(fields.iter().fold(0, |kinds, field| kinds << 6 | field.kind))
            .push_key_len(fields.iter().map(|field| field.len.next_multiple_of(4)).sum())
            .push_id(id);
        if keys == Keys::Links {
            push_header(set.as_vec_mut(), USERDATA, KEYS_IN_HOST_ORDER.len() as u16);
            set.as_vec_mut().extend(KEYS_IN_HOST_ORDER);
            // Attributes are multiples of four bytes.
            set.as_vec_mut().extend([0; 2]);
        }
        if keys.flags() & SetFlags::Concat as u32 != 0 {
            let mut lengths = set.nested_desc().nested_concat();
            for field in fields {
                lengths = lengths.nested_elem().push_len(field.len).end_nested();
            }
        }
    }

    /// Adds elements to a set; one that is there is fine.
    pub(crate) fn add(&mut self, set: &CStr, elements: &[Element]) {
        for some in elements.chunks(ELEMENTS_OF_A_MESSAGE) {
            self.sent += 1;
            let mut request = self.messages.request().set_create().op_newsetelem_do(&inet());
            push(request.encode().push_table_bytes(self.table.as_bytes()).push_set(set), some);
        }
    }

    /// Takes elements, which must be there, from a set.
    pub(crate) fn remove(&mut self, set: &CStr, elements: &[Element]) {
        for some in elements.chunks(ELEMENTS_OF_A_MESSAGE) {
            self.sent += 1;
            let mut request = self.messages.request().op_delsetelem_do(&inet());
            push(request.encode().push_table_bytes(self.table.as_bytes()).push_set(set), some);
        }
    }
}

impl Transaction<'_> {
    /// Takes elements, which may have run out meanwhile, from a set whose elements last for a time.
    pub(crate) fn withdraw(&mut self, set: &CStr, elements: &[Element]) {
        // There is a message for just this from Linux 6.3 on; adding them first does for all.
        self.add(set, elements);
        self.remove(set, elements);
    }
}

fn push<P: Pusher>(list: PushSetelemListAttrs<P>, elements: &[Element]) {
    let mut list = list.nested_elements();
    for Element { first, last, flags, timeout } in elements {
        let mut element = list.nested_elem().nested_key().push_value(first).end_nested();
        if let Some(last) = last {
            let buffer = element.as_vec_mut();
            let end = push_nested_header(buffer, KEY_END);
            push_header(buffer, DATA_VALUE, last.len() as u16);
            buffer.extend(last);
            finalize_nested_header(buffer, end);
        }
        if let Some(timeout) = timeout {
            // In milliseconds, and not in this machine's byte order, which is the library's.
            element = element.push_timeout((timeout.as_millis().max(1) as u64).to_be());
        }
        list = element.push_flags(&flags.to_be_bytes()).end_nested();
    }
}

/// The links that a set in the calling thread's namespace holds; none if there is no such set.
pub(crate) fn links_in(table: &str, set: &CStr) -> io::Result<Vec<String>> {
    let mut request = Request::new().op_getsetelem_dump(&inet());
    request.encode().push_table_bytes(table.as_bytes()).push_set(set);
    let mut socket = NetlinkSocket::new();
    let mut reply = socket.request(&request).map_err(not_sent)?;
    let mut links = Vec::new();
    while let Some(answer) = reply.recv() {
        let (_, attributes) = match answer {
            Ok(part) => part,
            Err(e) if e.as_io_error().raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
            Err(e) => return Err(refused(e)),
        };
        let Ok(elements) = attributes.get_elements() else { continue };
        for element in elements.get_elem() {
            if let Ok(key) = element.get_key().and_then(|key| key.get_value()) {
                let name = key.split(|&byte| byte == 0).next().unwrap_or_default();
                links.push(String::from_utf8_lossy(name).into_owned());
            }
        }
    }
    Ok(links)
}

/// Whether the calling thread's namespace has the table.
pub(crate) fn has_table(table: &str) -> io::Result<bool> {
    let mut request = Request::new().op_gettable_do(&inet());
    request.encode().push_name_bytes(table.as_bytes());
    match NetlinkSocket::new().request(&request).map_err(not_sent)?.recv_one() {
        Ok(_) => Ok(true),
        Err(e) if e.as_io_error().raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(refused(e)),
    }
}

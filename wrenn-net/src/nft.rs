//! nftables tables, written in one transaction over netlink: all of a table or nothing.
//!
//! Only what the rules of [`crate::policy`] need, in their vocabulary; linux/netfilter/nf_tables.h has the numbers.

use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;

use netlink_bindings::nftables::{
    Chained, CmpOps, CtKeys, FibFlags, MetaKeys, Nfgenmsg, PayloadBase, PushExprListAttrs, Registers,
    SetElemFlags, SetFlags, VerdictCode,
};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::push_header;
use netlink_socket2::NetlinkSocket;

use crate::address::Range;
use crate::link::{not_sent, refused};

const NFPROTO_INET: u8 = 1;
const SUBSYSTEM: u16 = 10; // NFNL_SUBSYS_NFTABLES
/// nftables' number for "IPv4 address", for programs that list the set.
const TYPE_IPV4_ADDRESS: u32 = 7;
/// NFT_FIB_RESULT_OIF. The library's own constant is off by one, as in the kernel's description.
const FIB_RESULT_OIF: u32 = 1;
/// NFTA_LOOKUP_SREG. The library has another number, from the same source.
const LOOKUP_SREG: u16 = 2;
const CT_ESTABLISHED_OR_RELATED: u32 = 2 | 4;
const REG: u32 = Registers::Reg1 as u32;

/// The library loses count of a transaction's answers when it has a multiple of 64 messages.
const MOST_MESSAGES: u32 = 63;

/// When a chain sees packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Input,
    Forward,
    /// Source address translation, after routing.
    SourceNat,
}

/// What a packet that no rule decided meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Otherwise {
    Accept,
    Drop,
}

#[derive(Debug)]
enum Expr {
    Meta(MetaKeys),
    Network {
        offset: u32,
        len: u32,
    },
    Transport {
        offset: u32,
        len: u32,
    },
    ConnectionState,
    /// The interface through which the packet's source would be answered, 0 if not the one it came from.
    ReversePath,
    And(u32),
    Is(Vec<u8>),
    IsNot(Vec<u8>),
    InSet(&'static CStr),
    Counter,
    Masquerade,
    Verdict(VerdictCode),
    Jump(&'static CStr),
}

/// One rule: conditions, then what happens to a packet that meets them all.
#[derive(Debug)]
pub(crate) struct Rule {
    chain: &'static CStr,
    exprs: Vec<Expr>,
}

impl Rule {
    pub(crate) fn on(chain: &'static CStr) -> Self {
        Self { chain, exprs: Vec::new() }
    }

    fn and(mut self, exprs: impl IntoIterator<Item = Expr>) -> Self {
        self.exprs.extend(exprs);
        self
    }

    pub(crate) fn comes_from(self, name: &str) -> Self {
        self.and([Expr::Meta(MetaKeys::Iifname), Expr::Is(whole_name(name))])
    }

    pub(crate) fn goes_to(self, name: &str) -> Self {
        self.and([Expr::Meta(MetaKeys::Oifname), Expr::Is(whole_name(name))])
    }

    /// The name of the interface it came from begins with `prefix`.
    pub(crate) fn comes_from_any(self, prefix: &str) -> Self {
        self.and([Expr::Meta(MetaKeys::Iifname), Expr::Is(prefix.into())])
    }

    pub(crate) fn goes_to_any(self, prefix: &str) -> Self {
        self.and([Expr::Meta(MetaKeys::Oifname), Expr::Is(prefix.into())])
    }

    pub(crate) fn goes_to_none(self, prefix: &str) -> Self {
        self.and([Expr::Meta(MetaKeys::Oifname), Expr::IsNot(prefix.into())])
    }

    pub(crate) fn not_ipv4(self) -> Self {
        self.and([Expr::Meta(MetaKeys::Nfproto), Expr::IsNot(vec![libc::NFPROTO_IPV4 as u8])])
    }

    /// Its answers would not go to where it came from.
    pub(crate) fn forged_source(self) -> Self {
        self.and([Expr::ReversePath, Expr::Is(0u32.to_ne_bytes().into())])
    }

    /// It belongs to a connection, or reports on one, that was let through before.
    pub(crate) fn of_known_connection(self) -> Self {
        self.and([
            Expr::ConnectionState,
            Expr::And(CT_ESTABLISHED_OR_RELATED),
            Expr::IsNot(0u32.to_ne_bytes().into()),
        ])
    }

    pub(crate) fn source(self, address: Ipv4Addr) -> Self {
        self.ipv4().and([Expr::Network { offset: 12, len: 4 }, Expr::Is(address.octets().into())])
    }

    /// `range` is a whole CIDR block.
    pub(crate) fn source_in(self, range: Range) -> Self {
        let mask = !(range.first ^ range.last);
        self.ipv4().and([
            Expr::Network { offset: 12, len: 4 },
            Expr::And(u32::from_ne_bytes(mask.to_be_bytes())),
            Expr::Is(range.first.to_be_bytes().into()),
        ])
    }

    pub(crate) fn destination_in(self, set: &'static CStr) -> Self {
        self.ipv4().and([Expr::Network { offset: 16, len: 4 }, Expr::InSet(set)])
    }

    pub(crate) fn ping(self) -> Self {
        const ECHO_REQUEST: u8 = 8;
        let ping = [Expr::Transport { offset: 0, len: 1 }, Expr::Is(vec![ECHO_REQUEST])];
        self.ipv4().protocol(libc::IPPROTO_ICMP).and(ping)
    }

    /// `protocol` is TCP or UDP, a libc `IPPROTO_` number.
    pub(crate) fn at_port(self, protocol: i32, port: u16) -> Self {
        let at_port = [Expr::Transport { offset: 2, len: 2 }, Expr::Is(port.to_be_bytes().into())];
        self.protocol(protocol).and(at_port)
    }

    fn protocol(self, protocol: i32) -> Self {
        self.and([Expr::Meta(MetaKeys::L4Proto), Expr::Is(vec![protocol as u8])])
    }

    fn ipv4(self) -> Self {
        self.and([Expr::Meta(MetaKeys::Nfproto), Expr::Is(vec![libc::NFPROTO_IPV4 as u8])])
    }

    pub(crate) fn accept(self) -> Self {
        self.and([Expr::Verdict(VerdictCode::Accept)])
    }

    /// Dropped and counted, so that the operator sees what is refused.
    pub(crate) fn drop(self) -> Self {
        self.and([Expr::Counter, Expr::Verdict(VerdictCode::Drop)])
    }

    pub(crate) fn jump(self, chain: &'static CStr) -> Self {
        self.and([Expr::Jump(chain)])
    }

    pub(crate) fn masquerade(self) -> Self {
        self.and([Expr::Masquerade])
    }
}

fn whole_name(name: &str) -> Vec<u8> {
    // The kernel compares as many bytes as it is given: with all 16 it is the whole name.
    let mut padded = name.as_bytes().to_vec();
    padded.resize(libc::IFNAMSIZ, 0);
    padded
}

/// A transaction on one table of the calling thread's namespace.
pub(crate) struct Transaction<'a> {
    socket: NetlinkSocket,
    messages: Chained<'static>,
    sent: u32,
    table: &'a str,
}

impl<'a> Transaction<'a> {
    pub(crate) fn on(table: &'a str) -> Self {
        let mut socket = NetlinkSocket::new();
        let mut messages = Chained::new(socket.reserve_seq(MOST_MESSAGES));
        messages.request().op_batch_begin_do(&batch());
        Self { socket, messages, sent: 1, table }
    }

    /// Makes the table if it is not there.
    fn ensure_table(&mut self) {
        self.sent += 1;
        self.messages
            .request()
            .set_create()
            .op_newtable_do(&inet())
            .encode()
            .push_name_bytes(self.table.as_bytes());
    }

    /// Deletes the table with all that is in it; no table is fine.
    pub(crate) fn delete_table(&mut self) {
        // There is a message for just this from Linux 6.3 on; creating it first does for all.
        self.ensure_table();
        self.sent += 1;
        self.messages.request().op_deltable_do(&inet()).encode().push_name_bytes(self.table.as_bytes());
    }

    /// Makes the table, empty. An older one of the name is replaced without a moment between.
    pub(crate) fn fresh_table(&mut self) {
        self.delete_table();
        self.ensure_table();
    }

    pub(crate) fn base_chain(&mut self, name: &CStr, hook: Hook, otherwise: Otherwise) {
        // linux/netfilter.h (hooks) and linux/netfilter_ipv4.h (priorities)
        let (kind, number, priority) = match hook {
            Hook::Input => (c"filter", 1, 0),
            Hook::Forward => (c"filter", 2, 0),
            Hook::SourceNat => (c"nat", 4, 100),
        };
        let policy = match otherwise {
            Otherwise::Accept => VerdictCode::Accept,
            Otherwise::Drop => VerdictCode::Drop,
        };
        self.sent += 1;
        let mut request = self.messages.request().set_create().op_newchain_do(&inet());
        let chain = request.encode().push_table_bytes(self.table.as_bytes()).push_name(name);
        let chain = chain.nested_hook().push_num(number).push_priority(priority).end_nested();
        chain.push_policy(policy as u32).push_type(kind);
    }

    /// A chain that only jumps lead to.
    pub(crate) fn chain(&mut self, name: &CStr) {
        self.sent += 1;
        let mut request = self.messages.request().set_create().op_newchain_do(&inet());
        request.encode().push_table_bytes(self.table.as_bytes()).push_name(name);
    }

    /// A set of addresses; `ranges` are sorted and do not touch each other.
    pub(crate) fn address_set(&mut self, id: u32, name: &CStr, ranges: &[Range]) {
        self.sent += 1;
        let mut request = self.messages.request().set_create().op_newset_do(&inet());
        let set = request.encode().push_table_bytes(self.table.as_bytes()).push_name(name);
        set.push_flags(SetFlags::Interval as u32)
            .push_key_type(TYPE_IPV4_ADDRESS)
            .push_key_len(4)
            .push_id(id);
        drop(request);
        if ranges.is_empty() {
            return;
        }
        self.sent += 1;
        let mut request = self.messages.request().set_create().op_newsetelem_do(&inet());
        let set = request.encode().push_table_bytes(self.table.as_bytes()).push_set(name).push_set_id(id);
        let mut elements = set.nested_elements();
        // An interval is two elements: its first address, and the first address behind it, if there is one.
        for (key, flags) in ranges.iter().flat_map(|range| {
            let end = range.last.checked_add(1).map(|end| (end, SetElemFlags::IntervalEnd as u32));
            [Some((range.first, 0)), end].into_iter().flatten()
        }) {
            let element = elements.nested_elem().nested_key().push_value(&key.to_be_bytes()).end_nested();
            elements = element.push_flags(&flags.to_be_bytes()).end_nested();
        }
    }

    pub(crate) fn rule(&mut self, rule: Rule) {
        self.sent += 1;
        let mut request = self.messages.request().set_create().set_append().op_newrule_do(&inet());
        let new = request.encode().push_table_bytes(self.table.as_bytes()).push_chain(rule.chain);
        rule.exprs.iter().fold(new.nested_expressions(), push);
    }

    /// Sends it all; on an error nothing of it was done.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        self.sent += 1;
        assert!(self.sent <= MOST_MESSAGES, "a table of {} messages: split it", self.sent);
        self.messages.request().op_batch_end_do(&batch());
        let messages = self.messages.finalize();
        self.socket.request_chained(&messages).map_err(not_sent)?.recv_all().map_err(refused)
    }
}

fn batch() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM);
    header
}

fn inet() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: NFPROTO_INET, ..Nfgenmsg::new() }
}

fn push<P: Pusher>(list: PushExprListAttrs<P>, expr: &Expr) -> PushExprListAttrs<P> {
    let payload = |list: PushExprListAttrs<P>, base: PayloadBase, offset: u32, len: u32| {
        let load = list.nested_elem().nested_data_payload().push_dreg(REG).push_base(base as u32);
        load.push_offset(offset).push_len(len).end_nested().end_nested()
    };
    let compare = |list: PushExprListAttrs<P>, op: CmpOps, value: &[u8]| {
        let compare = list.nested_elem().nested_data_cmp().push_sreg(REG).push_op(op as u32);
        compare.nested_data().push_value(value).end_nested().end_nested().end_nested()
    };
    match expr {
        Expr::Meta(key) => list
            .nested_elem()
            .nested_data_meta()
            .push_dreg(REG)
            .push_key(*key as u32)
            .end_nested()
            .end_nested(),
        Expr::Network { offset, len } => payload(list, PayloadBase::NetworkHeader, *offset, *len),
        Expr::Transport { offset, len } => payload(list, PayloadBase::TransportHeader, *offset, *len),
        Expr::ConnectionState => {
            let load = list.nested_elem().nested_data_ct().push_dreg(REG).push_key(CtKeys::State as u32);
            load.end_nested().end_nested()
        }
        Expr::ReversePath => {
            let load = list.nested_elem().nested_data_fib().push_dreg(REG).push_result(FIB_RESULT_OIF);
            load.push_flags(FibFlags::Saddr as u32 | FibFlags::Iif as u32).end_nested().end_nested()
        }
        Expr::And(mask) => {
            let and = list.nested_elem().nested_data_bitwise().push_sreg(REG).push_dreg(REG).push_len(4);
            let and = and.nested_mask().push_value(&mask.to_ne_bytes()).end_nested();
            and.nested_xor().push_value(&[0; 4]).end_nested().end_nested().end_nested()
        }
        Expr::Is(value) => compare(list, CmpOps::Eq, value),
        Expr::IsNot(value) => compare(list, CmpOps::Neq, value),
        Expr::InSet(set) => {
            let mut lookup = list.nested_elem().nested_data_lookup().push_set(set);
            push_header(lookup.as_vec_mut(), LOOKUP_SREG, 4);
            lookup.as_vec_mut().extend(REG.to_be_bytes());
            lookup.end_nested().end_nested()
        }
        Expr::Counter => list.nested_elem().nested_data_counter().end_nested().end_nested(),
        // It has no options here, and the kernel's description leaves it out.
        Expr::Masquerade => list.nested_elem().push_name(c"masq").end_nested(),
        Expr::Verdict(code) => verdict(list, *code, None),
        Expr::Jump(chain) => verdict(list, VerdictCode::Jump, Some(chain)),
    }
}

fn verdict<P: Pusher>(
    list: PushExprListAttrs<P>,
    code: VerdictCode,
    chain: Option<&CStr>,
) -> PushExprListAttrs<P> {
    let immediate = list.nested_elem().nested_data_immediate().push_dreg(Registers::RegVerdict as u32);
    let mut verdict = immediate.nested_data().nested_verdict().push_code(code as u32);
    if let Some(chain) = chain {
        verdict = verdict.push_chain(chain);
    }
    verdict.end_nested().end_nested().end_nested().end_nested()
}

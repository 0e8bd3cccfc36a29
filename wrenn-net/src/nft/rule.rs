//! Rules: conditions, then what happens to a packet that meets them all.

use std::ffi::CStr;
use std::net::Ipv4Addr;

use netlink_bindings::nftables::{
    CmpOps, CtKeys, FibFlags, LookupFlags, MetaKeys, PayloadBase, PushExprListAttrs, Registers, VerdictCode,
};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};

use super::whole_name;
use crate::ranges::Range;

/// NFT_FIB_RESULT_OIF. The library's own constant is off by one, as in the kernel's description.
const FIB_RESULT_OIF: u32 = 1;
/// NFTA_LOOKUP_SREG. The library has another number, from the same source.
const LOOKUP_SREG: u16 = 2;
// linux/netfilter/nf_tables.h: the kernel's description leaves limits out.
const EXPR_DATA: u16 = 2;
const LIMIT_RATE: u16 = 1;
const LIMIT_UNIT: u16 = 2;
const LIMIT_TYPE: u16 = 4;
const LIMIT_FLAGS: u16 = 5;
const LIMIT_BYTES: u32 = 1;
const LIMIT_OVER: u32 = 1;
const CT_ESTABLISHED: u32 = 2;
const CT_RELATED: u32 = 4;
const REG: Registers = Registers::Reg1;

/// Which way a packet goes: what of it names the slot, and what the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    FromSlot,
    ToSlot,
}

impl Way {
    /// The interface of the slot.
    fn link(self) -> Load {
        Load::Meta(match self {
            Self::FromSlot => MetaKeys::Iifname,
            Self::ToSlot => MetaKeys::Oifname,
        })
    }

    /// The address of the other side.
    fn peer(self) -> Load {
        match self {
            Self::FromSlot => Load::Network { offset: 16, len: 4 },
            Self::ToSlot => Load::Network { offset: 12, len: 4 },
        }
    }

    /// The port of the other side.
    fn peer_port(self) -> Load {
        match self {
            Self::FromSlot => Load::Transport { offset: 2, len: 2 },
            Self::ToSlot => Load::Transport { offset: 0, len: 2 },
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Load {
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
}

#[derive(Debug)]
enum Expr {
    /// Into the register from which the next expression takes it.
    Load(Load),
    /// Into a place of its own, for a set whose keys have several fields.
    LoadAt(Registers, Load),
    And(u32),
    Is(Vec<u8>),
    IsNot(Vec<u8>),
    InSet(&'static CStr),
    NotInSet(&'static CStr),
    /// There was more than so many bytes in a second.
    Over(u64),
    Counter,
    Masquerade,
    Redirect,
    Verdict(VerdictCode),
    Jump(&'static CStr),
}

/// One rule of a chain.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(super) chain: &'static CStr,
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

    fn meta(self, key: MetaKeys, expr: Expr) -> Self {
        self.and([Expr::Load(Load::Meta(key)), expr])
    }

    pub(crate) fn comes_from(self, name: &str) -> Self {
        self.meta(MetaKeys::Iifname, Expr::Is(whole_name(name)))
    }

    pub(crate) fn goes_to(self, name: &str) -> Self {
        self.meta(MetaKeys::Oifname, Expr::Is(whole_name(name)))
    }

    /// The name of the interface it came from begins with `prefix`.
    pub(crate) fn comes_from_any(self, prefix: &str) -> Self {
        self.meta(MetaKeys::Iifname, Expr::Is(prefix.into()))
    }

    pub(crate) fn goes_to_any(self, prefix: &str) -> Self {
        self.meta(MetaKeys::Oifname, Expr::Is(prefix.into()))
    }

    pub(crate) fn goes_to_none(self, prefix: &str) -> Self {
        self.meta(MetaKeys::Oifname, Expr::IsNot(prefix.into()))
    }

    /// The slot's link is in a set of links.
    pub(crate) fn link_in(self, way: Way, set: &'static CStr) -> Self {
        self.and([Expr::Load(way.link()), Expr::InSet(set)])
    }

    pub(crate) fn link_not_in(self, way: Way, set: &'static CStr) -> Self {
        self.and([Expr::Load(way.link()), Expr::NotInSet(set)])
    }

    pub(crate) fn peer_in(self, way: Way, set: &'static CStr) -> Self {
        self.ipv4().and([Expr::Load(way.peer()), Expr::InSet(set)])
    }

    pub(crate) fn peer_not_in(self, way: Way, set: &'static CStr) -> Self {
        self.ipv4().and([Expr::Load(way.peer()), Expr::NotInSet(set)])
    }

    /// A set of links with addresses has the two.
    pub(crate) fn link_and_peer_in(self, way: Way, set: &'static CStr) -> Self {
        self.ipv4().and([
            Expr::LoadAt(Registers::Reg3200, way.link()),
            Expr::LoadAt(Registers::Reg3204, way.peer()),
            Expr::InSet(set),
        ])
    }

    /// A set of links with addresses, protocols and ports has the four.
    pub(crate) fn link_and_service_in(self, way: Way, set: &'static CStr) -> Self {
        self.ipv4().and([
            Expr::LoadAt(Registers::Reg3200, way.link()),
            Expr::LoadAt(Registers::Reg3204, way.peer()),
            Expr::LoadAt(Registers::Reg3205, Load::Meta(MetaKeys::L4Proto)),
            Expr::LoadAt(Registers::Reg3206, way.peer_port()),
            Expr::InSet(set),
        ])
    }

    pub(crate) fn not_ipv4(self) -> Self {
        self.meta(MetaKeys::Nfproto, Expr::IsNot(vec![libc::NFPROTO_IPV4 as u8]))
    }

    /// Its answers would not go to where it came from.
    pub(crate) fn forged_source(self) -> Self {
        self.and([Expr::Load(Load::ReversePath), Expr::Is(0u32.to_ne_bytes().into())])
    }

    /// It belongs to a connection, or reports on one, that was let through before.
    pub(crate) fn of_known_connection(self) -> Self {
        self.connection(CT_ESTABLISHED | CT_RELATED, Expr::IsNot)
    }

    /// It reports on a connection that was let through before.
    pub(crate) fn on_known_connection(self) -> Self {
        self.connection(CT_RELATED, Expr::IsNot)
    }

    pub(crate) fn of_no_known_connection(self) -> Self {
        self.connection(CT_ESTABLISHED, Expr::Is)
    }

    fn connection(self, states: u32, compare: impl Fn(Vec<u8>) -> Expr) -> Self {
        self.and([Expr::Load(Load::ConnectionState), Expr::And(states), compare(0u32.to_ne_bytes().into())])
    }

    pub(crate) fn source(self, address: Ipv4Addr) -> Self {
        self.ipv4().and([Expr::Load(Load::Network { offset: 12, len: 4 }), Expr::Is(address.octets().into())])
    }

    /// `range` is a whole CIDR block.
    pub(crate) fn source_in(self, range: Range) -> Self {
        let mask = !(range.first ^ range.last);
        self.ipv4().and([
            Expr::Load(Load::Network { offset: 12, len: 4 }),
            Expr::And(u32::from_ne_bytes(mask.to_be_bytes())),
            Expr::Is(range.first.to_be_bytes().into()),
        ])
    }

    pub(crate) fn ping(self) -> Self {
        const ECHO_REQUEST: u8 = 8;
        let ping = [Expr::Load(Load::Transport { offset: 0, len: 1 }), Expr::Is(vec![ECHO_REQUEST])];
        self.ipv4().protocol(libc::IPPROTO_ICMP).and(ping)
    }

    /// `protocol` is TCP or UDP, a libc `IPPROTO_` number.
    pub(crate) fn at_peer_port(self, way: Way, protocol: i32, port: u16) -> Self {
        let at_port = [Expr::Load(way.peer_port()), Expr::Is(port.to_be_bytes().into())];
        self.protocol(protocol).and(at_port)
    }

    fn protocol(self, protocol: i32) -> Self {
        self.meta(MetaKeys::L4Proto, Expr::Is(vec![protocol as u8]))
    }

    fn ipv4(self) -> Self {
        self.meta(MetaKeys::Nfproto, Expr::Is(vec![libc::NFPROTO_IPV4 as u8]))
    }

    /// It is beyond what this rule may see in a second, in bytes; a second's worth may come at once.
    pub(crate) fn over(self, bytes_per_second: u64) -> Self {
        self.and([Expr::Over(bytes_per_second)])
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

    /// To the address of the interface it came from, at the same port.
    pub(crate) fn redirect(self) -> Self {
        self.and([Expr::Redirect])
    }

    pub(super) fn push<P: Pusher>(&self, list: PushExprListAttrs<P>) -> PushExprListAttrs<P> {
        self.exprs.iter().fold(list, push)
    }
}

fn push<P: Pusher>(list: PushExprListAttrs<P>, expr: &Expr) -> PushExprListAttrs<P> {
    let compare = |list: PushExprListAttrs<P>, op: CmpOps, value: &[u8]| {
        let compare = list.nested_elem().nested_data_cmp().push_sreg(REG as u32).push_op(op as u32);
        compare.nested_data().push_value(value).end_nested().end_nested().end_nested()
    };
    match expr {
        Expr::Load(what) => load(list, REG, *what),
        Expr::LoadAt(register, what) => load(list, *register, *what),
        Expr::And(mask) => {
            let and = list.nested_elem().nested_data_bitwise().push_sreg(REG as u32).push_dreg(REG as u32);
            let and = and.push_len(4).nested_mask().push_value(&mask.to_ne_bytes()).end_nested();
            and.nested_xor().push_value(&[0; 4]).end_nested().end_nested().end_nested()
        }
        Expr::Is(value) => compare(list, CmpOps::Eq, value),
        Expr::IsNot(value) => compare(list, CmpOps::Neq, value),
        Expr::InSet(set) => lookup(list, set, 0),
        Expr::NotInSet(set) => lookup(list, set, LookupFlags::Invert as u32),
        Expr::Over(rate) => limit(list, *rate),
        Expr::Counter => list.nested_elem().nested_data_counter().end_nested().end_nested(),
        // They have no options here, and the kernel's description leaves them out.
        Expr::Masquerade => list.nested_elem().push_name(c"masq").end_nested(),
        Expr::Redirect => list.nested_elem().push_name(c"redir").end_nested(),
        Expr::Verdict(code) => verdict(list, *code, None),
        Expr::Jump(chain) => verdict(list, VerdictCode::Jump, Some(chain)),
    }
}

fn load<P: Pusher>(list: PushExprListAttrs<P>, to: Registers, what: Load) -> PushExprListAttrs<P> {
    let payload = |list: PushExprListAttrs<P>, base: PayloadBase, offset: u32, len: u32| {
        let load = list.nested_elem().nested_data_payload().push_dreg(to as u32).push_base(base as u32);
        load.push_offset(offset).push_len(len).end_nested().end_nested()
    };
    match what {
        Load::Meta(key) => {
            let load = list.nested_elem().nested_data_meta().push_dreg(to as u32).push_key(key as u32);
            load.end_nested().end_nested()
        }
        Load::Network { offset, len } => payload(list, PayloadBase::NetworkHeader, offset, len),
        Load::Transport { offset, len } => payload(list, PayloadBase::TransportHeader, offset, len),
        Load::ConnectionState => {
            let load = list.nested_elem().nested_data_ct().push_dreg(to as u32);
            load.push_key(CtKeys::State as u32).end_nested().end_nested()
        }
        Load::ReversePath => {
            let load = list.nested_elem().nested_data_fib().push_dreg(to as u32).push_result(FIB_RESULT_OIF);
            load.push_flags(FibFlags::Saddr as u32 | FibFlags::Iif as u32).end_nested().end_nested()
        }
    }
}

fn lookup<P: Pusher>(list: PushExprListAttrs<P>, set: &CStr, flags: u32) -> PushExprListAttrs<P> {
    let mut lookup = list.nested_elem().nested_data_lookup().push_set(set);
    push_header(lookup.as_vec_mut(), LOOKUP_SREG, 4);
    lookup.as_vec_mut().extend((REG as u32).to_be_bytes());
    lookup.push_flags(flags).end_nested().end_nested()
}

fn limit<P: Pusher>(list: PushExprListAttrs<P>, bytes_per_second: u64) -> PushExprListAttrs<P> {
    let mut limit = list.nested_elem().push_name(c"limit");
    let buffer = limit.as_vec_mut();
    let data = push_nested_header(buffer, EXPR_DATA);
    for (attribute, value) in [(LIMIT_RATE, bytes_per_second), (LIMIT_UNIT, 1)] {
        push_header(buffer, attribute, 8);
        buffer.extend(value.to_be_bytes());
    }
    for (attribute, value) in [(LIMIT_TYPE, LIMIT_BYTES), (LIMIT_FLAGS, LIMIT_OVER)] {
        push_header(buffer, attribute, 4);
        buffer.extend(value.to_be_bytes());
    }
    finalize_nested_header(buffer, data);
    limit.end_nested()
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

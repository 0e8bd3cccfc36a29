//! nftables tables, written in one transaction over netlink: all of it or nothing.
//!
//! Only what the rules of [`crate::policy`] need, in their vocabulary; linux/netfilter/nf_tables.h has the numbers.

mod rule;
mod set;

use std::ffi::CStr;
use std::io;

use netlink_bindings::nftables::{Chained, Nfgenmsg, VerdictCode};
use netlink_socket2::NetlinkSocket;

pub(crate) use self::rule::{Rule, Way};
pub(crate) use self::set::{Element, Keys, has_table, links_in};
use crate::link::{not_sent, refused};

const NFPROTO_INET: u8 = 1;
const SUBSYSTEM: u16 = 10; // NFNL_SUBSYS_NFTABLES

/// The library loses count of a transaction's answers when it has a multiple of 64 messages.
const MOST_MESSAGES: u32 = 63;

/// When a chain sees packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Input,
    Forward,
    /// Destination address translation, before routing.
    DestinationNat,
    /// Source address translation, after routing.
    SourceNat,
}

/// What a packet that no rule decided meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Otherwise {
    Accept,
    Drop,
}

/// A transaction on one table of the calling thread's namespace.
pub(crate) struct Transaction<'a> {
    socket: NetlinkSocket,
    messages: Chained<'static>,
    sent: u32,
    sets: u32,
    table: &'a str,
}

impl<'a> Transaction<'a> {
    pub(crate) fn on(table: &'a str) -> Self {
        let mut socket = NetlinkSocket::new();
        let mut messages = Chained::new(socket.reserve_seq(MOST_MESSAGES));
        messages.request().op_batch_begin_do(&batch());
        Self { socket, messages, sent: 1, sets: 0, table }
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
            Hook::DestinationNat => (c"nat", 0, -100),
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

    /// Takes all rules out of a chain.
    pub(crate) fn flush(&mut self, chain: &CStr) {
        self.sent += 1;
        let mut request = self.messages.request().op_delrule_do(&inet());
        request.encode().push_table_bytes(self.table.as_bytes()).push_chain(chain);
    }

    pub(crate) fn rule(&mut self, rule: Rule) {
        self.sent += 1;
        let mut request = self.messages.request().set_create().set_append().op_newrule_do(&inet());
        let new = request.encode().push_table_bytes(self.table.as_bytes()).push_chain(rule.chain);
        rule.push(new.nested_expressions());
    }

    /// Sends it all; on an error nothing of it was done.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        self.sent += 1;
        assert!(self.sent <= MOST_MESSAGES, "a transaction of {} messages: split it", self.sent);
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

/// An interface's name such that all of it is compared: the kernel compares as many bytes as it is given.
fn whole_name(name: &str) -> Vec<u8> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(libc::IFNAMSIZ, 0);
    padded
}

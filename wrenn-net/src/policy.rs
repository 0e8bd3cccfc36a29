//! The firewall rules: who may talk to whom.
//!
//! The table in a slot's namespace translates addresses and lets nothing past but the guest itself. What a guest may
//! reach is decided on the host, where a process that broke out of the monitor into the namespace cannot pass it by.
//! The host's rules match links by the prefix of their name, so their number does not grow with the slots.

use std::ffi::CStr;
use std::net::Ipv4Addr;

use crate::address::{AddressPool, GUEST, Range};
use crate::nft::{Hook, Otherwise, Rule, Transaction};
use crate::slot::{TAP, UPLINK};

/// The table of a slot, inside its namespace.
pub(crate) const SLOT_TABLE: &str = "wrenn";

const INPUT: &CStr = c"input";
const FORWARD: &CStr = c"forward";
const POSTROUTING: &CStr = c"postrouting";
const FROM_SLOT: &CStr = c"from_slot";
const TO_SLOT: &CStr = c"to_slot";
const DENIED: &CStr = c"denied";
const RESOLVERS: &CStr = c"resolvers";

/// What no guest reaches: the addresses that mean something only to this machine or this site (RFC 6890), and those
/// that are no destination on the internet.
const NEVER: [Range; 11] = [
    Range::cidr(Ipv4Addr::new(0, 0, 0, 0), 8),
    Range::cidr(Ipv4Addr::new(10, 0, 0, 0), 8),
    Range::cidr(Ipv4Addr::new(100, 64, 0, 0), 10),
    Range::cidr(Ipv4Addr::new(127, 0, 0, 0), 8),
    Range::cidr(Ipv4Addr::new(169, 254, 0, 0), 16),
    Range::cidr(Ipv4Addr::new(172, 16, 0, 0), 12),
    Range::cidr(Ipv4Addr::new(192, 0, 0, 0), 24),
    Range::cidr(Ipv4Addr::new(192, 168, 0, 0), 16),
    Range::cidr(Ipv4Addr::new(198, 18, 0, 0), 15),
    Range::cidr(Ipv4Addr::new(224, 0, 0, 0), 4),
    Range::cidr(Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The table that the slots of one host share.
pub(crate) fn host_table<'a>(
    name: &'a str,
    links: &str,
    pool: AddressPool,
    resolvers: &[Ipv4Addr],
) -> Transaction<'a> {
    let mut table = Transaction::on(name);
    table.fresh_table();
    table.address_set(1, DENIED, &joined(NEVER.into_iter().chain([pool.range()])));
    table.address_set(2, RESOLVERS, &joined(resolvers.iter().map(|&dns| Range::cidr(dns, 32))));
    table.base_chain(INPUT, Hook::Input, Otherwise::Accept);
    table.base_chain(FORWARD, Hook::Forward, Otherwise::Accept);
    table.base_chain(POSTROUTING, Hook::SourceNat, Otherwise::Accept);
    table.chain(FROM_SLOT);
    table.chain(TO_SLOT);

    // A packet from slot to slot meets the rule for its destination first, and ends there.
    table.rule(Rule::on(FORWARD).goes_to_any(links).jump(TO_SLOT));
    table.rule(Rule::on(TO_SLOT).of_known_connection().accept());
    table.rule(Rule::on(TO_SLOT).drop());

    table.rule(Rule::on(FORWARD).comes_from_any(links).jump(FROM_SLOT));
    table.rule(Rule::on(FORWARD).comes_from_any(links).destination_in(DENIED).drop());

    // Towards the host itself: nothing but a resolver that the operator named.
    table.rule(Rule::on(INPUT).comes_from_any(links).jump(FROM_SLOT));
    table.rule(Rule::on(INPUT).comes_from_any(links).drop());

    table.rule(Rule::on(FROM_SLOT).not_ipv4().drop());
    table.rule(Rule::on(FROM_SLOT).forged_source().drop());
    table.rule(Rule::on(FROM_SLOT).of_known_connection().accept());
    for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_TCP] {
        table.rule(Rule::on(FROM_SLOT).destination_in(RESOLVERS).at_port(protocol, 53).accept());
    }

    table.rule(Rule::on(POSTROUTING).source_in(pool.range()).goes_to_none(links).masquerade());
    table
}

/// The table of one slot.
pub(crate) fn slot_table() -> Transaction<'static> {
    let mut table = Transaction::on(SLOT_TABLE);
    table.fresh_table();
    table.base_chain(INPUT, Hook::Input, Otherwise::Drop);
    table.base_chain(FORWARD, Hook::Forward, Otherwise::Drop);
    table.base_chain(POSTROUTING, Hook::SourceNat, Otherwise::Accept);

    table.rule(Rule::on(INPUT).comes_from("lo").accept());
    table.rule(Rule::on(INPUT).of_known_connection().accept());
    table.rule(Rule::on(INPUT).comes_from(TAP).ping().accept());

    table.rule(Rule::on(FORWARD).comes_from(TAP).goes_to(UPLINK).source(GUEST).accept());
    table.rule(Rule::on(FORWARD).comes_from(UPLINK).goes_to(TAP).of_known_connection().accept());

    table.rule(Rule::on(POSTROUTING).goes_to(UPLINK).masquerade());
    table
}

/// Sorted, with overlapping and touching ranges made one: the kernel refuses intervals that overlap.
fn joined(ranges: impl IntoIterator<Item = Range>) -> Vec<Range> {
    let mut ranges: Vec<_> = ranges.into_iter().collect();
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if u64::from(range.first) <= u64::from(last.last) + 1 => {
                last.last = last.last.max(range.last)
            }
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_ranges_cover_the_same_addresses_without_touching() {
        let pool: AddressPool = "192.169.0.0/16".parse().unwrap();
        let ranges = joined(NEVER.into_iter().chain([pool.range(), AddressPool::DEFAULT.range()]));
        assert!(ranges.windows(2).all(|pair| pair[0].last + 1 < pair[1].first), "{ranges:?}");
        for inside in
            ["10.0.0.1", "192.168.255.255", "192.169.0.0", "192.169.255.255", "198.19.7.7", "255.255.255.255"]
        {
            let address = inside.parse().unwrap();
            assert!(ranges.iter().any(|range| range.contains(address)), "{inside}");
        }
        for outside in
            ["1.1.1.1", "9.255.255.255", "11.0.0.0", "192.170.0.0", "192.167.255.255", "223.255.255.255"]
        {
            let address = outside.parse().unwrap();
            assert!(!ranges.iter().any(|range| range.contains(address)), "{outside}");
        }
        assert_eq!(
            ranges.last().unwrap().first,
            Ipv4Addr::new(224, 0, 0, 0).to_bits(),
            "two blocks made one"
        );
    }

    #[test]
    fn joining_keeps_what_lies_inside_another() {
        let range = |first, last| Range { first, last };
        let joined = joined([range(5, 9), range(0, 20), range(21, 22), range(30, u32::MAX), range(40, 41)]);
        assert_eq!(joined, [range(0, 22), range(30, u32::MAX)]);
    }
}

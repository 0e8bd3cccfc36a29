//! The firewall rules: who may talk to whom.
//!
//! The table in a slot's namespace translates addresses and lets nothing past but the guest itself. What a guest may
//! reach is decided on the host, where a process that broke out of the monitor into the namespace cannot pass it by.
//! The host's rules match links by the prefix of their name, and what differs from slot to slot is in sets, by the
//! name of the link, which nothing inside a slot can change: so the number of rules does not grow with the slots.
//!
//! A slot with the default policy has no entry in any set. All others are in the set of links with a policy of their
//! own, and get nothing but what the sets say they reach ([`crate::reach`]). What a policy allows by name is in sets
//! whose elements the kernel takes out in time ([`crate::names`]).
//!
//! Every packet is judged, in both directions, whether its connection is known or not. A change of policy therefore
//! ends what it denies at once, without a look at the connections there are. Only news about a connection (ICMP
//! errors) comes in from anywhere, as any router on the way may send it.

use std::ffi::CStr;
use std::net::Ipv4Addr;
use std::time::Instant;

use crate::address::{AddressPool, GUEST};
use crate::named::Opening;
use crate::names::{Elements, Times};
use crate::nft::{Element, Hook, Keys, Otherwise, Rule, Transaction, Way};
use crate::ranges::{Range, joined};
use crate::reach::Reach;
use crate::slot::{TAP, UPLINK};

/// The table of a slot, inside its namespace.
pub(crate) const SLOT_TABLE: &str = "wrenn";
/// The links whose slots have a policy other than the default.
pub(crate) const OWN_POLICY: &CStr = c"own_policy";

const INPUT: &CStr = c"input";
const FORWARD: &CStr = c"forward";
const POSTROUTING: &CStr = c"postrouting";
const FROM_SLOT: &CStr = c"from_slot";
const TO_SLOT: &CStr = c"to_slot";
const QUESTIONS: &CStr = c"questions";
const ANSWERS: &CStr = c"answers";
const DENIED: &CStr = c"denied";
const RESOLVERS: &CStr = c"resolvers";
/// Of the links with a policy of their own, those that may ask the resolvers.
const ASKS_NAMES: &CStr = c"asks_names";
const HOSTS: &CStr = c"hosts";
const SERVICES: &CStr = c"services";
/// Addresses that names have stood for lately, for everything or for a port; and those to which connections may be.
const PINNED_HOSTS: &CStr = c"pinned_hosts";
const PINNED_PORTS: &CStr = c"pinned_ports";
const KEPT_HOSTS: &CStr = c"kept_hosts";
const KEPT_PORTS: &CStr = c"kept_ports";
/// Inside a slot, a table of its own: it comes and goes with the names in the slot's policy.
const NAMES_TABLE: &str = "wrenn_names";
const PREROUTING: &CStr = c"prerouting";
const BANDWIDTH: &CStr = c"bandwidth";

/// What no guest reaches by default: the addresses that mean something only to this machine or this site (RFC 6890),
/// and those that are no destination on the internet.
pub(crate) const NEVER: [Range; 11] = [
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

/// The table that the slots of one host share. The links of `cut_off` reach nothing.
pub(crate) fn host_table<'a>(
    name: &'a str,
    links: &str,
    pool: AddressPool,
    resolvers: &[Ipv4Addr],
    cut_off: &[String],
) -> Transaction<'a> {
    let mut table = Transaction::on(name);
    table.fresh_table();
    table.set(DENIED, Keys::Addresses);
    table.add(DENIED, &Element::addresses(&joined(NEVER.into_iter().chain([pool.range()]))));
    table.set(RESOLVERS, Keys::Addresses);
    let resolvers = joined(resolvers.iter().map(|&dns| Range::cidr(dns, 32)));
    table.add(RESOLVERS, &Element::addresses(&resolvers));
    table.set(OWN_POLICY, Keys::Links);
    table.add(OWN_POLICY, &cut_off.iter().map(|link| Element::link(link)).collect::<Vec<_>>());
    table.set(ASKS_NAMES, Keys::Links);
    table.set(HOSTS, Keys::LinksWithAddresses);
    table.set(SERVICES, Keys::LinksWithServices);
    for (hosts, ports) in [(PINNED_HOSTS, PINNED_PORTS), (KEPT_HOSTS, KEPT_PORTS)] {
        table.set(hosts, Keys::PinnedHosts);
        table.set(ports, Keys::PinnedPorts);
    }
    table.base_chain(INPUT, Hook::Input, Otherwise::Accept);
    table.base_chain(FORWARD, Hook::Forward, Otherwise::Accept);
    table.base_chain(POSTROUTING, Hook::SourceNat, Otherwise::Accept);
    for chain in [FROM_SLOT, TO_SLOT, QUESTIONS, ANSWERS] {
        table.chain(chain);
    }

    // A packet from slot to slot meets the rule for its destination first, and ends there.
    table.rule(Rule::on(FORWARD).goes_to_any(links).jump(TO_SLOT));
    table.rule(Rule::on(TO_SLOT).on_known_connection().accept());
    table.rule(Rule::on(TO_SLOT).of_no_known_connection().drop());
    resolve_names(&mut table, TO_SLOT, Way::ToSlot, ANSWERS);
    judge(&mut table, || Rule::on(TO_SLOT), Way::ToSlot);

    table.rule(Rule::on(FORWARD).comes_from_any(links).jump(FROM_SLOT));
    judge(&mut table, || Rule::on(FORWARD).comes_from_any(links), Way::FromSlot);

    // Towards the host itself: nothing but a resolver that the operator named.
    table.rule(Rule::on(INPUT).comes_from_any(links).jump(FROM_SLOT));
    table.rule(Rule::on(INPUT).comes_from_any(links).drop());

    table.rule(Rule::on(FROM_SLOT).not_ipv4().drop());
    table.rule(Rule::on(FROM_SLOT).forged_source().drop());
    resolve_names(&mut table, FROM_SLOT, Way::FromSlot, QUESTIONS);

    table.rule(Rule::on(POSTROUTING).source_in(pool.range()).goes_to_none(links).masquerade());
    table
}

/// Lets through what goes to the resolvers, or comes from them, if the slot may ask them.
fn resolve_names(table: &mut Transaction<'_>, on: &'static CStr, way: Way, to: &'static CStr) {
    table.rule(Rule::on(on).link_not_in(way, OWN_POLICY).jump(to));
    table.rule(Rule::on(on).link_in(way, ASKS_NAMES).jump(to));
    for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_TCP] {
        table.rule(Rule::on(to).peer_in(way, RESOLVERS).at_peer_port(way, protocol, 53).accept());
    }
}

/// Lets through what the slot's policy does, and drops the rest.
fn judge(table: &mut Transaction<'_>, start: impl Fn() -> Rule, way: Way) {
    table.rule(start().link_not_in(way, OWN_POLICY).peer_not_in(way, DENIED).accept());
    table.rule(start().link_and_peer_in(way, HOSTS).accept());
    table.rule(start().link_and_service_in(way, SERVICES).accept());
    table.rule(start().link_and_peer_in(way, PINNED_HOSTS).accept());
    table.rule(start().link_and_service_in(way, PINNED_PORTS).accept());
    table.rule(start().of_known_connection().link_and_peer_in(way, KEPT_HOSTS).accept());
    table.rule(start().of_known_connection().link_and_service_in(way, KEPT_PORTS).accept());
    table.rule(start().drop());
}

/// Changes what the slot behind `link` reaches in the host's table; no reach of its own is the default policy.
pub(crate) fn change(table: &mut Transaction<'_>, link: &str, old: Option<&Reach>, new: Option<&Reach>) {
    for (set, of) in [
        (OWN_POLICY, own as fn(&str, &Reach) -> Vec<Element>),
        (ASKS_NAMES, asks_names),
        (HOSTS, hosts),
        (SERVICES, services),
    ] {
        let elements = |reach: Option<&Reach>| reach.map(|reach| of(link, reach)).unwrap_or_default();
        let (before, after) = (elements(old), elements(new));
        // What both have stays untouched, so that its packets pass all the while.
        table.remove(set, &missing_from(&after, &before));
        table.add(set, &missing_from(&before, &after));
    }
}

/// Changes which addresses are pinned for the slot behind `link`, and for how long from now on.
pub(crate) fn change_pins(
    table: &mut Transaction<'_>,
    link: &str,
    old: &Elements,
    new: &Elements,
    now: Instant,
) {
    let element = |&(address, opening): &(Ipv4Addr, Opening)| Element::pin(link, address, opening);
    type Until = fn(&Times) -> Instant;
    let (fresh, kept): (Until, Until) = (|times| times.fresh, |times| times.kept);
    for (set, everything, until) in [
        (PINNED_HOSTS, true, fresh),
        (PINNED_PORTS, false, fresh),
        (KEPT_HOSTS, true, kept),
        (KEPT_PORTS, false, kept),
    ] {
        // Those of the set that are not in `other` for as long.
        let changed = |(key, times): &(&(Ipv4Addr, Opening), &Times), other: &Elements| {
            (key.1 == Opening::Everything) == everything && other.get(key).map(until) != Some(until(times))
        };
        let gone: Vec<_> = old.iter().filter(|it| changed(it, new)).map(|(key, _)| element(key)).collect();
        let come = new.iter().filter(|it| changed(it, old) && until(it.1) > now);
        let come: Vec<_> = come.map(|(key, times)| element(key).lasting(until(times) - now)).collect();
        table.withdraw(set, &gone);
        table.add(set, &come);
    }
}

fn own(link: &str, _: &Reach) -> Vec<Element> {
    vec![Element::link(link)]
}

fn asks_names(link: &str, reach: &Reach) -> Vec<Element> {
    reach.asks.then(|| Element::link(link)).into_iter().collect()
}

fn hosts(link: &str, reach: &Reach) -> Vec<Element> {
    reach.hosts.iter().map(|&hosts| Element::link_with_address(link, hosts)).collect()
}

fn services(link: &str, reach: &Reach) -> Vec<Element> {
    let element = |service: &crate::reach::Service| {
        Element::link_with_service(link, service.hosts, service.protocol, service.ports)
    };
    reach.services.iter().map(element).collect()
}

/// What `all` has and `some` lacks.
fn missing_from(some: &[Element], all: &[Element]) -> Vec<Element> {
    all.iter().filter(|element| !some.contains(element)).cloned().collect()
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
    // Whoever listens there is this process.
    for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_TCP] {
        table.rule(Rule::on(INPUT).comes_from(TAP).at_peer_port(Way::FromSlot, protocol, 53).accept());
    }

    table.chain(BANDWIDTH);
    table.rule(Rule::on(FORWARD).jump(BANDWIDTH));
    table.rule(Rule::on(FORWARD).comes_from(TAP).goes_to(UPLINK).source(GUEST).accept());
    table.rule(Rule::on(FORWARD).comes_from(UPLINK).goes_to(TAP).of_known_connection().accept());

    table.rule(Rule::on(POSTROUTING).goes_to(UPLINK).masquerade());
    table
}

/// Brings what the guest asks on port 53, of whichever server, to the slot's own end of the TAP; or no longer does.
pub(crate) fn redirect_questions(redirected: bool) -> Transaction<'static> {
    let mut table = Transaction::on(NAMES_TABLE);
    if !redirected {
        table.delete_table();
        return table;
    }
    table.fresh_table();
    table.base_chain(PREROUTING, Hook::DestinationNat, Otherwise::Accept);
    for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_TCP] {
        let question = Rule::on(PREROUTING).comes_from(TAP).at_peer_port(Way::FromSlot, protocol, 53);
        table.rule(question.redirect());
    }
    table
}

/// Bounds what passes through a slot, each way for itself, in the slot's table.
pub(crate) fn bound(bytes_per_second: Option<u64>) -> Transaction<'static> {
    let mut table = Transaction::on(SLOT_TABLE);
    table.flush(BANDWIDTH);
    if let Some(rate) = bytes_per_second {
        for link in [TAP, UPLINK] {
            table.rule(Rule::on(BANDWIDTH).comes_from(link).over(rate).drop());
        }
    }
    table
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
}

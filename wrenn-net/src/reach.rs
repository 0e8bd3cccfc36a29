//! A policy worked out: the list of all that it lets through.
//!
//! Only what is allowed is listed; denied blocks are cut out here and never become rules. The firewall looks a packet
//! up in two sets, one after the other, while a change of policy may be under way. As each hit is something that the
//! old or the new policy allows, no packet gets through that neither does, whichever moments the two looks fall
//! into. A list of exceptions would not have that property.

use std::net::Ipv4Addr;

use crate::allow::Protocol;
use crate::egress::EgressPolicy;
use crate::named::Named;
use crate::policy::NEVER;
use crate::ranges::{Range, joined, without};

/// Ports of one protocol at a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) hosts: Range,
    /// An `IPPROTO_` number.
    pub(crate) protocol: u8,
    pub(crate) ports: Range,
}

/// All that a policy lets through; no two entries of a list overlap, as the kernel refuses those that do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reach {
    /// Whether the host's DNS servers are reached.
    pub(crate) asks: bool,
    /// Addresses that are reached by any protocol.
    pub(crate) hosts: Vec<Range>,
    /// What else is reached.
    pub(crate) services: Vec<Service>,
    /// What answers to questions for names are to open.
    pub(crate) named: Named,
}

impl Reach {
    /// What `policy` allows but for `closed`, which no policy opens.
    pub(crate) fn of(policy: &EgressPolicy, closed: &[Range]) -> Self {
        let denied = joined(policy.denied.iter().map(|block| block.range()).chain(closed.iter().copied()));
        let internet = match policy.internet {
            true => without(Range { first: 0, last: u32::MAX }, &joined(NEVER)),
            false => Vec::new(),
        };
        let everything = policy.allowed.iter().filter(|rule| rule.protocol.is_none() && rule.ports.is_none());
        let open = joined(internet.into_iter().chain(everything.filter_map(|rule| rule.block())));
        let hosts: Vec<_> = open.into_iter().flat_map(|range| without(range, &denied)).collect();
        let settled = joined(denied.into_iter().chain(hosts.iter().copied()));
        let services = [(Protocol::Tcp, libc::IPPROTO_TCP), (Protocol::Udp, libc::IPPROTO_UDP)]
            .into_iter()
            .flat_map(|(protocol, number)| services(policy, protocol, number as u8, &settled))
            .collect();
        let named = Named::of(policy, closed);
        Self { asks: policy.dns && named.is_empty(), hosts, services, named }
    }

    /// Whether something at `address` is reached, whatever answers open.
    pub(crate) fn has(&self, address: Ipv4Addr) -> bool {
        self.hosts.iter().any(|hosts| hosts.contains(address))
            || self.services.iter().any(|service| service.hosts.contains(address))
    }

    pub(crate) fn entries(&self) -> usize {
        self.hosts.len() + self.services.len()
    }
}

/// The services of one protocol outside `settled`: the addresses are cut wherever a rule begins or ends, and each
/// piece gets the ports of all rules that cover it.
fn services(policy: &EgressPolicy, protocol: Protocol, number: u8, settled: &[Range]) -> Vec<Service> {
    let rules: Vec<(Range, Range)> = policy
        .allowed
        .iter()
        .filter(|rule| rule.protocol == Some(protocol) || (rule.protocol.is_none() && rule.ports.is_some()))
        .filter_map(|rule| Some((rule.block()?, rule.port_range())))
        .collect();
    let mut cuts: Vec<u64> =
        rules.iter().flat_map(|(hosts, _)| [u64::from(hosts.first), u64::from(hosts.last) + 1]).collect();
    cuts.sort_unstable();
    cuts.dedup();

    let mut services = Vec::new();
    for piece in cuts.windows(2) {
        let piece = Range { first: piece[0] as u32, last: (piece[1] - 1) as u32 };
        let ports = joined(rules.iter().filter(|(hosts, _)| hosts.overlaps(piece)).map(|&(_, ports)| ports));
        for hosts in without(piece, settled) {
            services.extend(ports.iter().map(|&ports| Service { hosts, protocol: number, ports }));
        }
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allow::AllowRule;
    use crate::egress::Cidr;

    const TCP: u8 = libc::IPPROTO_TCP as u8;
    const UDP: u8 = libc::IPPROTO_UDP as u8;
    const ICMP: u8 = libc::IPPROTO_ICMP as u8;

    fn block(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn passes(reach: &Reach, to: &str, protocol: u8, port: u16) -> bool {
        let to: Ipv4Addr = to.parse().unwrap();
        let port = Ipv4Addr::from_bits(port.into());
        reach.hosts.iter().any(|range| range.contains(to))
            || reach.services.iter().any(|service| {
                service.protocol == protocol && service.hosts.contains(to) && service.ports.contains(port)
            })
    }

    fn overlap(a: &Service, b: &Service) -> bool {
        a.protocol == b.protocol && a.hosts.overlaps(b.hosts) && a.ports.overlaps(b.ports)
    }

    #[test]
    fn the_default_is_the_internet_and_names() {
        let reach = Reach::of(&EgressPolicy::default(), &[]);
        assert!(reach.asks && reach.services.is_empty());
        for open in ["1.1.1.1", "9.255.255.255", "11.0.0.0", "223.255.255.255", "169.253.255.255"] {
            assert!(passes(&reach, open, ICMP, 0), "{open}");
        }
        for closed in ["10.0.0.1", "127.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "0.0.0.0"]
        {
            assert!(!passes(&reach, closed, TCP, 443), "{closed}");
        }
        assert_eq!(Reach::of(&EgressPolicy::deny_all(), &[]), Reach::default());
    }

    #[test]
    fn a_denied_block_wins_in_either_order() {
        let rule = || AllowRule::to(block("10.0.0.0/8"));
        let closed = block("10.1.0.0/16");
        for policy in [
            EgressPolicy::deny_all().allow(rule()).unwrap().deny(closed).unwrap(),
            EgressPolicy::deny_all().deny(closed).unwrap().allow(rule()).unwrap(),
            EgressPolicy::deny_all().deny(closed).unwrap().allow(rule().ports(1..=9)).unwrap(),
        ] {
            let reach = Reach::of(&policy, &[]);
            assert!(passes(&reach, "10.0.255.255", TCP, 7) && passes(&reach, "10.2.0.0", UDP, 7));
            assert!(!passes(&reach, "10.1.0.0", TCP, 7) && !passes(&reach, "10.1.255.255", UDP, 7));
        }
    }

    #[test]
    fn what_no_policy_opens_stays_closed() {
        let policy = EgressPolicy::deny_all().allow(AllowRule::to(block("0.0.0.0/0"))).unwrap();
        let policy = policy.allow(AllowRule::to(block("198.19.0.0/24")).ports(1..=2)).unwrap();
        let reach = Reach::of(&policy, &[block("198.19.0.0/16").range()]);
        assert!(passes(&reach, "198.18.255.255", ICMP, 0) && passes(&reach, "198.20.0.0", ICMP, 0));
        assert!(!passes(&reach, "198.19.0.1", TCP, 1));
    }

    #[test]
    fn overlapping_rules_add_up_without_overlapping_entries() {
        let policy = EgressPolicy::deny_all()
            .allow(AllowRule::to(block("10.0.0.0/8")).ports(80..=90))
            .and_then(|p| p.allow(AllowRule::to(block("10.1.0.0/16")).ports(85..=99)))
            .and_then(|p| p.allow(AllowRule::to(block("10.1.2.0/24")).protocol(Protocol::Tcp)))
            .and_then(|p| p.allow(AllowRule::to(block("10.1.2.3"))))
            .and_then(|p| p.deny(block("10.0.0.0/24")))
            .unwrap();
        let reach = Reach::of(&policy, &[]);
        for (to, protocol, port, expected) in [
            ("10.9.0.1", TCP, 80, true),
            ("10.9.0.1", UDP, 90, true),
            ("10.9.0.1", UDP, 91, false),
            ("10.9.0.1", ICMP, 80, false),
            ("10.1.0.1", UDP, 80, true),
            ("10.1.0.1", TCP, 99, true),
            ("10.1.0.1", TCP, 100, false),
            ("10.1.2.1", TCP, 65535, true),
            ("10.1.2.1", UDP, 65535, false),
            ("10.1.2.3", ICMP, 0, true),
            ("10.0.0.9", TCP, 80, false),
        ] {
            assert_eq!(passes(&reach, to, protocol, port), expected, "{to} {protocol} {port}");
        }
        for (n, service) in reach.services.iter().enumerate() {
            for other in &reach.services[n + 1..] {
                assert!(!overlap(service, other), "{service:?} {other:?}");
            }
        }
    }
}

//! What a policy allows by name, worked out: which names, and what is opened at the addresses they stand for.
//!
//! An opening is one port, or everything. So an entry in the firewall's sets means the same under every policy, and
//! rules that share an address add up without a look at each other.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use hickory_proto::rr::Name;

use crate::allow::{AllowRule, Protocol};
use crate::egress::EgressPolicy;
use crate::name::NamePattern;
use crate::policy::NEVER;
use crate::ranges::{Range, joined};

/// What is opened at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Opening {
    Everything,
    Port {
        /// An `IPPROTO_` number.
        protocol: u8,
        port: u16,
    },
}

/// All that a policy allows by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Named {
    rules: Vec<(NamePattern, Vec<Opening>)>,
    /// What no answer opens.
    closed: Vec<Range>,
    /// Whether the guest is told the addresses of other names too.
    others: bool,
}

/// What becomes of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is answered, and what the answer names is opened.
    Opens,
    /// It is answered.
    Answered,
    Refused,
}

impl Named {
    /// What `policy` allows by name but for `closed`, which no policy opens.
    pub(crate) fn of(policy: &EgressPolicy, closed: &[Range]) -> Self {
        let rules = policy.allowed.iter().filter_map(|rule| Some((rule.name()?.clone(), openings(rule))));
        let rules: Vec<_> = rules.collect();
        // All that they could open is open.
        if policy.internet || rules.is_empty() {
            return Self::default();
        }
        let denied = policy.denied.iter().map(|block| block.range());
        let closed = joined(NEVER.into_iter().chain(denied).chain(closed.iter().copied()));
        Self { rules, closed, others: policy.dns }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What an answer for `name` opens at each address.
    pub(crate) fn openings(&self, name: &Name) -> BTreeSet<Opening> {
        let rules = self.rules.iter().filter(|(pattern, _)| pattern.matches_wire(name));
        let openings: BTreeSet<_> = rules.flat_map(|(_, openings)| openings.iter().copied()).collect();
        if openings.contains(&Opening::Everything) { [Opening::Everything].into() } else { openings }
    }

    /// Whether an answer may open `address`.
    pub(crate) fn may_open(&self, address: Ipv4Addr) -> bool {
        !self.closed.iter().any(|range| range.contains(address))
    }

    pub(crate) fn verdict(&self, name: &Name) -> Verdict {
        if self.rules.iter().any(|(pattern, _)| pattern.matches_wire(name)) {
            return Verdict::Opens;
        }
        if self.others && !self.is_empty() { Verdict::Answered } else { Verdict::Refused }
    }
}

/// How many ports the rules for names of a policy have, counted for each protocol; at least so many where one alone
/// has too many.
pub(crate) fn ports(policy: &EgressPolicy) -> usize {
    let rules = || policy.allowed.iter().filter(|rule| rule.name().is_some() && !is_for_everything(rule));
    let most = rules().map(width).max().unwrap_or_default();
    if most > EgressPolicy::MOST_NAMED_PORTS {
        return most;
    }
    rules().flat_map(openings).collect::<BTreeSet<_>>().len()
}

fn is_for_everything(rule: &AllowRule) -> bool {
    rule.protocol.is_none() && rule.ports.is_none()
}

fn width(rule: &AllowRule) -> usize {
    let ports = rule.port_range();
    protocols(rule).len() * (ports.last - ports.first + 1) as usize
}

fn openings(rule: &AllowRule) -> Vec<Opening> {
    if is_for_everything(rule) {
        return vec![Opening::Everything];
    }
    let ports = rule.port_range();
    let of = |protocol| (ports.first..=ports.last).map(move |port| (protocol, port as u16));
    let all = protocols(rule).iter().flat_map(|&protocol| of(protocol));
    all.map(|(protocol, port)| Opening::Port { protocol, port }).collect()
}

fn protocols(rule: &AllowRule) -> &'static [u8] {
    const TCP: u8 = libc::IPPROTO_TCP as u8;
    const UDP: u8 = libc::IPPROTO_UDP as u8;
    match rule.protocol {
        Some(Protocol::Tcp) => &[TCP],
        Some(Protocol::Udp) => &[UDP],
        None => &[TCP, UDP],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::EgressError;

    fn rule(name: &str) -> AllowRule {
        AllowRule::to_name(name.parse().unwrap())
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn opens(named: &Named, asked: &str, protocol: u8, port: u16) -> bool {
        let openings = named.openings(&name(asked));
        openings == [Opening::Everything].into() || openings.contains(&Opening::Port { protocol, port })
    }

    #[test]
    fn each_name_has_its_own_ports() {
        let policy = EgressPolicy::deny_all()
            .allow(rule("a.com").protocol(Protocol::Tcp).ports(443..=443))
            .and_then(|policy| policy.allow(rule("*.a.com").ports(440..=445)))
            .and_then(|policy| policy.allow(rule("b.com")))
            .and_then(|policy| policy.allow(rule("b.com").ports(1..=1)))
            .unwrap();
        let named = Named::of(&policy, &[]);
        for (asked, protocol, port, expected) in [
            ("a.com", 6, 443, true),
            ("a.com", 17, 443, false),
            ("a.com", 6, 440, false),
            ("x.a.com", 6, 443, true),
            ("x.a.com", 17, 445, true),
            ("x.a.com", 17, 446, false),
            ("x.a.com", 1, 443, false),
            ("b.com", 6, 65535, true),
            ("b.com", 1, 0, true),
            ("c.com", 6, 443, false),
        ] {
            assert_eq!(opens(&named, asked, protocol, port), expected, "{asked} {protocol} {port}");
        }
    }

    #[test]
    fn policies_are_bounded_in_the_ports_of_their_names() {
        let too_many = |policy: Result<EgressPolicy, EgressError>| match policy {
            Err(EgressError::TooManyNamedPorts { ports, most: 16 }) => ports,
            other => panic!("{other:?}"),
        };
        let none = EgressPolicy::deny_all;
        assert_eq!(too_many(none().allow(rule("a.com").protocol(Protocol::Tcp))), 65536);
        assert_eq!(too_many(none().allow(rule("a.com").ports(1..=9))), 18);
        let policy = none().allow(rule("a.com").ports(1..=8)).unwrap();
        let policy = policy.allow(rule("b.com").ports(4..=8)).unwrap().allow(rule("c.com")).unwrap();
        assert_eq!(too_many(policy.allow(rule("b.com").protocol(Protocol::Udp).ports(9..=9))), 17);
    }

    #[test]
    fn closed_and_denied_addresses_are_not_opened() {
        let policy = EgressPolicy::deny_all().allow(rule("a.com")).unwrap();
        let policy = policy.deny("1.2.0.0/16".parse().unwrap()).unwrap();
        let named = Named::of(&policy, &[crate::AddressPool::new([9, 9, 0, 0].into(), 16).unwrap().range()]);
        for closed in
            ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0", "1.2.3.4", "9.9.1.1"]
        {
            assert!(!named.may_open(closed.parse().unwrap()), "{closed}");
        }
        assert!(named.may_open([1, 1, 1, 1].into()));
    }

    #[test]
    fn other_names_are_answered_only_if_the_policy_says_so() {
        let policy = EgressPolicy::deny_all().allow(rule("a.com")).unwrap();
        let verdict = |policy: &EgressPolicy, asked| Named::of(policy, &[]).verdict(&name(asked));
        assert_eq!(verdict(&policy, "A.com"), Verdict::Opens);
        assert_eq!(verdict(&policy, "b.com"), Verdict::Refused);
        let policy = policy.dns(true);
        assert_eq!(verdict(&policy, "a.com"), Verdict::Opens);
        assert_eq!(verdict(&policy, "b.com"), Verdict::Answered);
    }

    #[test]
    fn names_add_nothing_to_the_internet() {
        let policy = EgressPolicy::internet().allow(rule("a.com").ports(1..=2)).unwrap();
        assert_eq!(Named::of(&policy, &[]), Named::default());
        assert_eq!(
            crate::reach::Reach::of(&policy, &[]),
            crate::reach::Reach::of(&EgressPolicy::default(), &[])
        );
    }
}

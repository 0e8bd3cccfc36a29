//! What a guest may reach, as a value: a base, rules that allow more, blocks that are denied.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::allow::AllowRule;
use crate::named;
use crate::ranges::Range;
use crate::reach::Reach;
use crate::stored::StoredPolicy;

/// Why an [`EgressPolicy`], or a part of one, was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EgressError {
    /// A block of IPv6 addresses.
    #[error("{block} is IPv6: guests have IPv4 alone, and none of their IPv6 packets leave the host")]
    Ipv6 {
        /// The block as it was given.
        block: String,
    },

    /// The text or the numbers given are no block of IPv4 addresses.
    #[error("{block:?} is no block of IPv4 addresses: {rule}")]
    InvalidCidr {
        /// The block as it was given.
        block: String,
        /// The rule that it breaks.
        rule: &'static str,
    },

    /// The text is neither a DNS name nor a pattern of them.
    #[error("{name:?} is no DNS name or pattern of names: {rule}")]
    InvalidName {
        /// The name as it was given, or its beginning.
        name: String,
        /// The rule that it breaks.
        rule: &'static str,
    },

    /// A range of ports without a port in it.
    #[error("the ports {first} to {last} are none: the first comes before the last")]
    NoPorts {
        /// The first port as it was given.
        first: u16,
        /// The last one.
        last: u16,
    },

    /// More rules than a policy may have.
    #[error("an egress policy has at most {most} rules, allowing and denying ones together")]
    TooManyRules {
        /// How many there may be.
        most: usize,
    },

    /// Rules whose overlaps come to more pieces than the firewall is to hold for one slot.
    #[error(
        "the rules overlap in {entries} pieces, of which a policy may have {most}: use fewer blocks or port ranges"
    )]
    TooDetailed {
        /// How many pieces there would be.
        entries: usize,
        /// How many there may be.
        most: usize,
    },

    /// More ports than may be opened for each address of a name.
    #[error(
        "the rules for names have {ports} ports, of which a policy may have {most}, TCP and UDP counted each: name \
         fewer, or none and no protocol either, which is for everything"
    )]
    TooManyNamedPorts {
        /// How many there would be.
        ports: usize,
        /// How many there may be.
        most: usize,
    },
}

/// A block of IPv4 addresses, written `10.0.0.0/8`; an address alone is a block of one.
///
/// ```
/// # use wrenn_net::Cidr;
/// let block: Cidr = "10.20.0.0/16".parse()?;
/// assert!(block.contains([10, 20, 255, 1].into()));
/// assert_eq!("10.20.0.1".parse::<Cidr>()?.to_string(), "10.20.0.1/32");
/// assert!("fd00::/8".parse::<Cidr>().unwrap_err().to_string().contains("IPv6"));
/// # Ok::<(), wrenn_net::EgressError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// The block `base/prefix`.
    ///
    /// # Errors
    /// [`EgressError::InvalidCidr`] unless the prefix is 0 to 32 bits and `base` is the block's first address.
    pub fn new(base: Ipv4Addr, prefix: u8) -> Result<Self, EgressError> {
        let refuse = |rule| Err(EgressError::InvalidCidr { block: format!("{base}/{prefix}"), rule });
        if prefix > 32 {
            return refuse("its prefix length is 0 to 32");
        }
        // A slip of the pen would else open, or close, the whole block around it.
        if Range::cidr(base, prefix).first != base.to_bits() {
            return refuse("it begins with the first address of its block");
        }
        Ok(Self { base, prefix })
    }

    /// Whether the block has this address.
    pub const fn contains(self, address: Ipv4Addr) -> bool {
        self.range().contains(address)
    }

    pub(crate) const fn range(self) -> Range {
        Range::cidr(self.base, self.prefix)
    }
}

impl From<Ipv4Addr> for Cidr {
    fn from(base: Ipv4Addr) -> Self {
        Self { base, prefix: 32 }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        let (base, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let block = || text.chars().take(80).collect();
        if base.parse::<Ipv6Addr>().is_ok() {
            return Err(EgressError::Ipv6 { block: block() });
        }
        let (Ok(base), Ok(prefix)) = (base.parse(), prefix.parse()) else {
            return Err(EgressError::InvalidCidr { block: block(), rule: "it is written like 10.0.0.0/8" });
        };
        Self::new(base, prefix)
    }
}

/// What one guest may reach.
///
/// A policy begins with the whole internet ([`EgressPolicy::internet`], the default) or with nothing
/// ([`EgressPolicy::deny_all`]). Rules allow more, private ranges and the cloud's metadata address among it, if they
/// say so. A denied block wins over everything that is allowed, in whatever order they were given.
///
/// No policy opens the host's own addresses, other sandboxes, IPv6, or a forged source: a rule that covers them, such
/// as one for `0.0.0.0/0`, leaves them closed. Services on the host are to be offered at an address that is not the
/// host's own.
///
/// The DNS servers of [`crate::HostNetSpec::dns`] are reached on port 53 even where they lie in a denied block, as
/// without names the rest of a policy is of little use; but not from `deny_all`, because whoever may ask for names
/// can send data out in the questions. [`EgressPolicy::dns`] chooses otherwise.
///
/// # Names
/// With a rule for a name ([`AllowRule::to_name`]) whatever the guest asks on port 53, of whichever server, is answered
/// by a resolver of the host's. It passes questions for allowed names on to the servers of [`crate::HostNetSpec::dns`],
/// and opens the IPv4 addresses of an answer before the guest gets it: for the answer's time to live, but at least
/// [`crate::HostNetSpec::least_pin`] and at most a day. What connections there are by then go on for a day after the
/// last such answer. An alias (CNAME) counts as the name that was asked for. Other names are refused, or with
/// [`EgressPolicy::dns`] answered without anything being opened. Guests have no IPv6, so there are no such addresses.
///
/// No answer opens what is closed by default or denied: such addresses are taken out of it, unless a rule for a block
/// allows them. The first 16 addresses of an answer are told. At most 256 are open for one slot, counted once for each
/// name and port; beyond, those that were asked for longest ago are closed. When a policy changes, addresses stay open
/// as far as their names stay allowed. A new slot has nothing open yet: a guest that was resumed into it and remembers an
/// address has to ask again.
///
/// Names add nothing to [`EgressPolicy::internet`]: all that they could open is open there, and no resolver steps in.
///
/// ```
/// # use wrenn_net::{AllowRule, EgressPolicy, Protocol};
/// let policy = EgressPolicy::deny_all()
///     .dns(true)
///     .allow(AllowRule::to("10.20.0.0/16".parse()?).protocol(Protocol::Tcp).ports(443..=443))?
///     .deny("10.20.99.0/24".parse()?)?;
/// # Ok::<(), wrenn_net::EgressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredPolicy", into = "StoredPolicy")]
pub struct EgressPolicy {
    pub(crate) internet: bool,
    pub(crate) dns: bool,
    pub(crate) allowed: Vec<AllowRule>,
    pub(crate) denied: Vec<Cidr>,
}

impl EgressPolicy {
    /// The most rules that a policy may have.
    pub const MOST_RULES: usize = 128;
    /// The most entries that the rules of a policy may come to in the firewall's sets.
    pub const MOST_ENTRIES: usize = 512;
    /// The most different ports, each of one protocol, that the rules for names of a policy may have.
    pub const MOST_NAMED_PORTS: usize = 16;

    /// The internet: every address but the private, shared, link-local (cloud metadata), loopback, benchmarking,
    /// multicast and reserved ones.
    pub const fn internet() -> Self {
        Self { internet: true, dns: true, allowed: Vec::new(), denied: Vec::new() }
    }

    /// Nothing at all, not even DNS.
    pub const fn deny_all() -> Self {
        Self { internet: false, dns: false, allowed: Vec::new(), denied: Vec::new() }
    }

    /// Whether the host's DNS servers are reached on port 53; in a policy with names, whether other names are answered.
    #[must_use]
    pub fn dns(mut self, reached: bool) -> Self {
        self.dns = reached;
        self
    }

    /// Allows what `rule` says; a rule for a block also in ranges that are closed by default.
    ///
    /// # Errors
    /// [`EgressError::NoPorts`] for an empty range of ports, [`EgressError::TooManyRules`],
    /// [`EgressError::TooDetailed`] and [`EgressError::TooManyNamedPorts`]; the policy is gone then.
    pub fn allow(mut self, rule: AllowRule) -> Result<Self, EgressError> {
        if let Some(ports) = rule.ports.as_ref().filter(|ports| ports.is_empty()) {
            return Err(EgressError::NoPorts { first: *ports.start(), last: *ports.end() });
        }
        self.allowed.push(rule);
        self.bounded()
    }

    /// Denies a block, whatever allows it.
    ///
    /// # Errors
    /// [`EgressError::TooManyRules`] and [`EgressError::TooDetailed`]; the policy is gone then.
    pub fn deny(mut self, block: Cidr) -> Result<Self, EgressError> {
        self.denied.push(block);
        self.bounded()
    }

    fn bounded(self) -> Result<Self, EgressError> {
        if self.allowed.len() + self.denied.len() > Self::MOST_RULES {
            return Err(EgressError::TooManyRules { most: Self::MOST_RULES });
        }
        let entries = Reach::of(&self, &[]).entries();
        if entries > Self::MOST_ENTRIES {
            return Err(EgressError::TooDetailed { entries, most: Self::MOST_ENTRIES });
        }
        let ports = named::ports(&self);
        if ports > Self::MOST_NAMED_PORTS {
            return Err(EgressError::TooManyNamedPorts { ports, most: Self::MOST_NAMED_PORTS });
        }
        Ok(self)
    }
}

impl Default for EgressPolicy {
    fn default() -> Self {
        Self::internet()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn blocks_are_read_as_they_are_written() {
        for (text, printed) in
            [("0.0.0.0/0", "0.0.0.0/0"), ("10.0.0.0/8", "10.0.0.0/8"), ("1.2.3.4", "1.2.3.4/32")]
        {
            assert_eq!(block(text).to_string(), printed);
        }
        assert!(!block("10.1.0.0/16").contains([10, 2, 0, 0].into()));
    }

    #[test]
    fn what_is_no_block_is_refused_by_its_name() {
        for text in ["", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.1.0.0/8", "10.0.0", "any"] {
            let error = text.parse::<Cidr>().unwrap_err();
            assert!(matches!(error, EgressError::InvalidCidr { .. }), "{text}: {error:?}");
        }
        for text in ["::/0", "fd00::/8", "2001:db8::1", "::ffff:10.0.0.1/128"] {
            let error = text.parse::<Cidr>().unwrap_err();
            assert_eq!(error, EgressError::Ipv6 { block: text.into() });
        }
    }

    #[test]
    fn policies_have_bounds() {
        let mut policy = EgressPolicy::default();
        for third in 0..EgressPolicy::MOST_RULES as u8 {
            policy = policy.deny(Cidr::new([1, 2, third, 0].into(), 25).unwrap()).unwrap();
        }
        let error = policy.deny(block("9.9.9.9")).unwrap_err();
        assert_eq!(error, EgressError::TooManyRules { most: 128 });

        // Every address of the one half has each port of the other.
        let mut policy = Ok(EgressPolicy::deny_all());
        for n in 0..32 {
            let everywhere = AllowRule::to(block("0.0.0.0/0")).ports(2 * n..=2 * n);
            let here = AllowRule::to(Cidr::from(Ipv4Addr::new(1, 1, 1, 2 * n as u8))).ports(9999..=9999);
            policy = policy.and_then(|policy| policy.allow(everywhere)?.allow(here));
        }
        assert!(matches!(policy, Err(EgressError::TooDetailed { most: 512, .. })), "{policy:?}");
    }

    #[test]
    #[expect(clippy::reversed_empty_ranges, reason = "the point of the test")]
    fn empty_port_ranges_are_refused() {
        let rule = AllowRule::to(block("10.0.0.0/8")).ports(443..=80);
        let error = EgressPolicy::default().allow(rule).unwrap_err();
        assert_eq!(error, EgressError::NoPorts { first: 443, last: 80 });
    }
}

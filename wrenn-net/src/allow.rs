//! One rule of an egress policy: where to, and which protocols and ports.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::egress::Cidr;
use crate::name::NamePattern;
use crate::ranges::Range;

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP, and with it QUIC.
    Udp,
}

/// What a guest may reach beyond the base of its policy: a block or what a name stands for, all of it or some
/// protocols and ports.
///
/// ```
/// # use wrenn_net::{AllowRule, Protocol};
/// let database = AllowRule::to("10.20.0.7".parse()?).protocol(Protocol::Tcp).ports(5432..=5433);
/// let packages = AllowRule::to_name("*.debian.org".parse()?).protocol(Protocol::Tcp).ports(443..=443);
/// # Ok::<(), wrenn_net::EgressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowRule {
    pub(crate) to: Target,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) ports: Option<RangeInclusive<u16>>,
}

/// Whose addresses they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Block(Cidr),
    Name(NamePattern),
}

impl AllowRule {
    /// Everything at these addresses, whatever the protocol.
    pub const fn to(block: Cidr) -> Self {
        Self { to: Target::Block(block), protocol: None, ports: None }
    }

    /// Everything at the addresses that the guest is told when it asks for these names, whatever the protocol.
    ///
    /// [`crate::EgressPolicy`] says which addresses these are and for how long they are reached. Each port counts by itself:
    /// a policy may have [`crate::EgressPolicy::MOST_NAMED_PORTS`] for its names, and a protocol only with ports.
    pub const fn to_name(name: NamePattern) -> Self {
        Self { to: Target::Name(name), protocol: None, ports: None }
    }

    pub(crate) fn block(&self) -> Option<Range> {
        match &self.to {
            Target::Block(block) => Some(block.range()),
            Target::Name(_) => None,
        }
    }

    /// The ports that it is about, where it is about ports.
    pub(crate) fn port_range(&self) -> Range {
        let ports = self.ports.as_ref().map_or((0, u16::MAX), |ports| (*ports.start(), *ports.end()));
        Range { first: ports.0.into(), last: ports.1.into() }
    }

    pub(crate) fn name(&self) -> Option<&NamePattern> {
        match &self.to {
            Target::Block(_) => None,
            Target::Name(name) => Some(name),
        }
    }

    /// Only this protocol. Without one but with ports, the rule is for both that have ports.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Only these destination ports, first and last included.
    #[must_use]
    pub fn ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.ports = Some(ports);
        self
    }
}

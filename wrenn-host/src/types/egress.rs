//! What a guest may reach.

use super::Malformed;
use crate::pb;

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP, and with it QUIC.
    Udp,
}

/// Something that a guest may reach beyond the base of its policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressRule {
    /// A block of IPv4 addresses (`10.0.0.0/8`, `10.0.0.1`), or a DNS name or pattern of names (`*.example.com`).
    pub to: String,
    /// Only this protocol.
    pub protocol: Option<Protocol>,
    /// Only these ports, first and last included.
    pub ports: Option<(u16, u16)>,
}

/// What a guest may reach.
///
/// The host's own addresses and other sandboxes it never reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Whether it begins with the internet, without private networks; or with nothing.
    pub internet: bool,
    /// What it may reach beyond that.
    pub allow: Vec<EgressRule>,
    /// Blocks of IPv4 addresses that win over all that is allowed.
    pub deny: Vec<String>,
    /// Whether it may ask the host's resolvers; `None`: where it has the internet.
    pub dns: Option<bool>,
}

impl Default for Egress {
    /// The internet.
    fn default() -> Self {
        Self { internet: true, allow: Vec::new(), deny: Vec::new(), dns: None }
    }
}

impl Egress {
    /// Nothing.
    pub fn none() -> Self {
        Self { internet: false, ..Self::default() }
    }

    pub(crate) fn into_wire(self) -> pb::Egress {
        let rule = |rule: EgressRule| {
            let (first, last) = rule.ports.unwrap_or((0, 0));
            let protocol = match rule.protocol {
                None => pb::Protocol::PROTOCOL_UNSPECIFIED,
                Some(Protocol::Tcp) => pb::Protocol::PROTOCOL_TCP,
                Some(Protocol::Udp) => pb::Protocol::PROTOCOL_UDP,
            };
            pb::EgressRule {
                to: rule.to,
                protocol: protocol.into(),
                first_port: first.into(),
                last_port: last.into(),
            }
        };
        pb::Egress {
            internet: self.internet,
            allow: self.allow.into_iter().map(rule).collect(),
            deny: self.deny,
            dns: self.dns,
        }
    }

    pub(crate) fn of_wire(wire: pb::Egress) -> Result<Self, Malformed> {
        let port = |number: u32| u16::try_from(number).map_err(|_| Malformed::new("egress", "no such port"));
        let rule = |rule: pb::EgressRule| {
            let ports = match (port(rule.first_port)?, port(rule.last_port)?) {
                (0, 0) => None,
                range => Some(range),
            };
            let protocol = match rule.protocol.as_known() {
                Some(pb::Protocol::PROTOCOL_UNSPECIFIED) => None,
                Some(pb::Protocol::PROTOCOL_TCP) => Some(Protocol::Tcp),
                Some(pb::Protocol::PROTOCOL_UDP) => Some(Protocol::Udp),
                // To allow everything for want of understanding would be the wrong way round.
                None => {
                    return Err(Malformed::new(
                        "egress",
                        "it names a protocol that this version does not know",
                    ));
                }
            };
            Ok(EgressRule { to: rule.to, protocol, ports })
        };
        let allow = wire.allow.into_iter().map(rule).collect::<Result<_, _>>()?;
        Ok(Self { internet: wire.internet, allow, deny: wire.deny, dns: wire.dns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_survive_the_wire() {
        let rule = |to: &str, protocol, ports| EgressRule { to: to.into(), protocol, ports };
        let policy = Egress {
            internet: false,
            allow: vec![
                rule("10.0.0.0/8", None, None),
                rule("*.example.com", Some(Protocol::Tcp), Some((443, 443))),
                rule("10.1.1.1", Some(Protocol::Udp), Some((1, u16::MAX))),
            ],
            deny: vec!["10.9.0.0/16".into()],
            dns: Some(true),
        };
        for policy in [policy, Egress::default(), Egress::none()] {
            assert_eq!(Egress::of_wire(policy.clone().into_wire()), Ok(policy));
        }
    }

    #[test]
    fn what_is_not_understood_allows_nothing() {
        let rule = pb::EgressRule { to: "10.0.0.1".into(), ..pb::EgressRule::default() };
        let wrong = [
            pb::EgressRule { first_port: 65_536, ..rule.clone() },
            pb::EgressRule { last_port: u32::MAX, ..rule.clone() },
            pb::EgressRule { protocol: buffa::EnumValue::from(9), ..rule },
        ];
        for rule in wrong {
            let wire = pb::Egress { allow: vec![rule], ..pb::Egress::default() };
            assert!(Egress::of_wire(wire).is_err());
        }
    }
}

//! The form in which policies are kept on disk: what a builder was told, checked again when it is read.
//!
//! A block is a string (`"10.0.0.0/8"`), a rule an object (`{"to":"10.0.0.7/32","protocol":"tcp","ports":[443,443]}`), which
//! has a `name` in place of `to` if that is what it is about.

use serde::{Deserialize, Serialize};

use crate::allow::{AllowRule, Protocol, Target};
use crate::bandwidth::{Bandwidth, BandwidthError};
use crate::egress::{Cidr, EgressError, EgressPolicy};
use crate::name::NamePattern;

impl TryFrom<String> for Cidr {
    type Error = EgressError;

    fn try_from(text: String) -> Result<Self, EgressError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(block: Cidr) -> Self {
        block.to_string()
    }
}

impl TryFrom<String> for NamePattern {
    type Error = EgressError;

    fn try_from(text: String) -> Result<Self, EgressError> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.to_string()
    }
}

impl TryFrom<u64> for Bandwidth {
    type Error = BandwidthError;

    fn try_from(bytes_per_second: u64) -> Result<Self, BandwidthError> {
        Self::new(bytes_per_second)
    }
}

impl From<Bandwidth> for u64 {
    fn from(bound: Bandwidth) -> Self {
        bound.bytes_per_second()
    }
}

/// An [`EgressPolicy`] as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredPolicy {
    internet: bool,
    dns: bool,
    allow: Vec<StoredRule>,
    deny: Vec<Cidr>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredRule {
    Block(StoredBlock),
    Name(StoredName),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredBlock {
    to: Cidr,
    protocol: Option<Protocol>,
    ports: Option<(u16, u16)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredName {
    name: NamePattern,
    protocol: Option<Protocol>,
    ports: Option<(u16, u16)>,
}

impl From<AllowRule> for StoredRule {
    fn from(AllowRule { to, protocol, ports }: AllowRule) -> Self {
        let ports = ports.map(|ports| (*ports.start(), *ports.end()));
        match to {
            Target::Block(to) => Self::Block(StoredBlock { to, protocol, ports }),
            Target::Name(name) => Self::Name(StoredName { name, protocol, ports }),
        }
    }
}

impl From<StoredRule> for AllowRule {
    fn from(stored: StoredRule) -> Self {
        let (to, protocol, ports) = match stored {
            StoredRule::Block(StoredBlock { to, protocol, ports }) => (Target::Block(to), protocol, ports),
            StoredRule::Name(StoredName { name, protocol, ports }) => (Target::Name(name), protocol, ports),
        };
        Self { to, protocol, ports: ports.map(|(first, last)| first..=last) }
    }
}

impl From<EgressPolicy> for StoredPolicy {
    fn from(policy: EgressPolicy) -> Self {
        let EgressPolicy { internet, dns, allowed, denied } = policy;
        Self { internet, dns, allow: allowed.into_iter().map(Into::into).collect(), deny: denied }
    }
}

impl TryFrom<StoredPolicy> for EgressPolicy {
    type Error = EgressError;

    fn try_from(stored: StoredPolicy) -> Result<Self, EgressError> {
        let base = if stored.internet { Self::internet() } else { Self::deny_all() };
        let policy = stored.allow.into_iter().try_fold(base.dns(stored.dns), |p, r| p.allow(r.into()))?;
        stored.deny.into_iter().try_fold(policy, Self::deny)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<EgressPolicy, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn policies_come_back_as_they_were() {
        let block = |text: &str| text.parse::<Cidr>().unwrap();
        let rules = EgressPolicy::deny_all()
            .dns(true)
            .allow(AllowRule::to(block("10.0.0.0/8")).protocol(Protocol::Udp).ports(53..=99))
            .and_then(|policy| policy.allow(AllowRule::to(block("1.2.3.4"))))
            .and_then(|policy| policy.allow(AllowRule::to_name("*.Example.com".parse()?).ports(443..=443)))
            .and_then(|policy| policy.deny(block("10.1.0.0/16")))
            .unwrap();
        for policy in [EgressPolicy::internet(), EgressPolicy::deny_all(), rules] {
            let text = serde_json::to_string(&policy).unwrap();
            assert_eq!(read(&text).unwrap(), policy, "{text}");
        }
        let bound = Bandwidth::new(1 << 20).unwrap();
        assert_eq!(
            serde_json::from_str::<Bandwidth>(&serde_json::to_string(&bound).unwrap()).unwrap(),
            bound
        );
    }

    #[test]
    fn what_no_builder_would_take_is_refused() {
        let policy = |allow: &str, deny: &str| {
            read(&format!(r#"{{"internet":false,"dns":true,"allow":[{allow}],"deny":[{deny}]}}"#))
        };
        policy("", "").unwrap();
        policy(r#"{"to":"10.0.0.7","protocol":"tcp","ports":[1,2]}"#, r#""10.0.0.0/8""#).unwrap();
        assert!(policy(r#"{"to":"10.0.0.7","protocol":"tcp","ports":[2,1]}"#, "").is_err());
        policy(r#"{"name":"a.example","protocol":"tcp","ports":[1,2]}"#, "").unwrap();
        assert!(policy(r#"{"to":"10.0.0.7/8"}"#, "").is_err());
        assert!(policy(r#"{"to":"10.0.0.7","name":"a.example"}"#, "").is_err());
        assert!(policy(r#"{"name":"*"}"#, "").is_err());
        assert!(policy("", r#""fd00::/8""#).is_err());
        assert!(policy("", &[r#""10.0.0.7""#; 129].join(",")).is_err());
        assert!(read(r#"{"internet":true}"#).is_err());
        assert!(serde_json::from_str::<Bandwidth>("1").is_err());
    }
}

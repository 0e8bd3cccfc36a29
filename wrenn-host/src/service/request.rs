//! What is asked for, in wrenn-core's terms.

use std::collections::BTreeMap;
use std::time::Duration;

use connectrpc::ConnectError;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wrenn_core::{AllowRule, Cidr, EgressPolicy};

use crate::Reason;
use crate::types::{Branch, CreateSandbox, Egress, EgressRule, OnTimeout, Protocol, Source, Timeout, millis};

/// Labels whose keys begin so are the host agent's own.
const OWN: &str = "wrenn.";
/// The label that keeps what a sandbox was asked for by: by it the same request is known again, also by a later process.
const REQUEST: &str = "wrenn.request";
/// wrenn-core takes 64.
const MOST_METADATA: usize = 60;

/// The mark of a request: equal for equal ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark(String);

impl Mark {
    fn of(request: &Value) -> Self {
        // The keys of each object are sorted.
        Self(format!("{:x}", Sha256::digest(request.to_string())))
    }

    pub(super) fn of_create(request: &CreateSandbox) -> Self {
        let CreateSandbox {
            id,
            source,
            vcpus,
            memory,
            env,
            metadata,
            timeout,
            egress,
            hostname,
            ready_timeout,
        } = request;
        let source = match source {
            Source::Image(name) => json!({ "image": name.as_str() }),
            Source::Template(name) => json!({ "template": name.as_str() }),
        };
        Self::of(&json!({
            "id": id.as_str(), "source": source, "vcpus": vcpus, "memory": memory.map(|size| size.0), "env": env,
            "metadata": metadata, "timeout": timeout.map(timeout_json), "egress": egress.as_ref().map(egress_json),
            "hostname": hostname, "ready": ready_timeout.map(millis),
        }))
    }

    pub(super) fn of_branch(request: &Branch) -> Self {
        let Branch { parent, children, metadata, env, timeout, egress } = request;
        let children: Vec<&str> = children.iter().map(|id| id.as_str()).collect();
        Self::of(&json!({
            "parent": parent.as_str(), "children": children, "metadata": metadata, "env": env,
            "timeout": timeout.map(timeout_json), "egress": egress.as_ref().map(egress_json),
        }))
    }

    /// Whether a sandbox with this metadata was asked for by the same request.
    pub(super) fn is_on(&self, metadata: &BTreeMap<String, String>) -> bool {
        metadata.get(REQUEST).is_some_and(|mark| *mark == self.0)
    }

    /// The metadata that a sandbox is given.
    pub(super) fn put_on(
        self,
        mut metadata: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, ConnectError> {
        if let Some(key) = metadata.keys().find(|key| key.starts_with(OWN)) {
            let why = format!("metadata: the key {key:?} begins with {OWN:?}, which is the host's own");
            return Err(Reason::InvalidArgument.error(why));
        }
        if metadata.len() > MOST_METADATA {
            let why = format!("metadata: {} entries are more than {MOST_METADATA}", metadata.len());
            return Err(Reason::InvalidArgument.error(why));
        }
        metadata.insert(REQUEST.into(), self.0);
        Ok(metadata)
    }
}

/// A sandbox's metadata without what is the host agent's own.
pub(super) fn shown(mut metadata: BTreeMap<String, String>) -> BTreeMap<String, String> {
    metadata.retain(|key, _| !key.starts_with(OWN));
    metadata
}

fn timeout_json(timeout: Timeout) -> Value {
    json!([timeout.after.map(millis), timeout.then == OnTimeout::Pause])
}

fn egress_json(egress: &Egress) -> Value {
    let rule = |rule: &EgressRule| {
        let protocol = rule.protocol.map(|protocol| protocol == Protocol::Udp);
        json!([rule.to, protocol, rule.ports])
    };
    let allow: Vec<Value> = egress.allow.iter().map(rule).collect();
    json!({ "internet": egress.internet, "allow": allow, "deny": egress.deny, "dns": egress.dns })
}

/// A timeout as wrenn-core has it.
pub(super) fn timeout(timeout: Timeout) -> (Option<Duration>, wrenn_core::OnTimeout) {
    let then = match timeout.then {
        OnTimeout::Destroy => wrenn_core::OnTimeout::Destroy,
        OnTimeout::Pause => wrenn_core::OnTimeout::Pause,
    };
    (timeout.after, then)
}

/// A policy as wrenn-core has it.
pub(super) fn egress(wanted: &Egress) -> Result<EgressPolicy, ConnectError> {
    let mut policy = if wanted.internet { EgressPolicy::internet() } else { EgressPolicy::deny_all() };
    if let Some(dns) = wanted.dns {
        policy = policy.dns(dns);
    }
    for wanted in &wanted.allow {
        policy = policy.allow(rule(wanted)?).map_err(refuse)?;
    }
    for block in &wanted.deny {
        policy = policy.deny(block.parse::<Cidr>().map_err(refuse)?).map_err(refuse)?;
    }
    Ok(policy)
}

fn rule(wanted: &EgressRule) -> Result<AllowRule, ConnectError> {
    let EgressRule { to, protocol, ports } = wanted;
    // A name has a letter in its last label, and an address has none.
    let is_name = to.rsplit('.').next().is_some_and(|label| label.contains(|c: char| c.is_alphabetic()))
        && !to.contains(':');
    let mut rule = match is_name {
        true => AllowRule::to_name(to.parse().map_err(refuse)?),
        false => AllowRule::to(to.parse().map_err(refuse)?),
    };
    match protocol {
        Some(Protocol::Tcp) => rule = rule.protocol(wrenn_core::Protocol::Tcp),
        Some(Protocol::Udp) => rule = rule.protocol(wrenn_core::Protocol::Udp),
        None => {}
    }
    if let Some((first, last)) = ports {
        rule = rule.ports(*first..=*last);
    }
    Ok(rule)
}

fn refuse(error: wrenn_core::EgressError) -> ConnectError {
    Reason::InvalidArgument.error(format!("egress: {error}"))
}

#[cfg(test)]
mod tests {
    use wrenn_base::SandboxId;

    use super::*;

    fn request() -> CreateSandbox {
        CreateSandbox::new(SandboxId::random(), Source::Image("debian".parse().unwrap()))
    }

    #[test]
    fn each_difference_makes_another_request() {
        let plain = request();
        let mark = Mark::of_create(&plain);
        assert_eq!(Mark::of_create(&plain.clone()), mark);
        let mut marks = vec![mark];
        let mut differ = |change: &dyn Fn(&mut CreateSandbox)| {
            let mut other = plain.clone();
            change(&mut other);
            let mark = Mark::of_create(&other);
            assert!(!marks.contains(&mark), "{other:?}");
            marks.push(mark);
        };
        differ(&|r| r.source = Source::Template("debian".parse().unwrap()));
        differ(&|r| r.vcpus = Some(1));
        differ(&|r| r.memory = Some(wrenn_base::MiB(1)));
        differ(&|r| drop(r.env.insert("a".into(), "b".into())));
        differ(&|r| drop(r.metadata.insert("a".into(), "b".into())));
        differ(&|r| r.timeout = Some(Timeout::default()));
        differ(&|r| r.timeout = Some(Timeout::pause(Duration::from_secs(1))));
        differ(&|r| r.egress = Some(Egress::default()));
        differ(&|r| r.egress = Some(Egress::none()));
        differ(&|r| r.hostname = Some("a".into()));
        differ(&|r| r.ready_timeout = Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_mark_is_kept_and_not_shown() {
        let mark = Mark::of_create(&request());
        let metadata = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let kept = mark.clone().put_on(metadata.clone()).unwrap();
        assert!(mark.is_on(&kept) && !mark.is_on(&metadata));
        assert_eq!(shown(kept), metadata);
        let own = BTreeMap::from([("wrenn.x".to_owned(), String::new())]);
        assert!(mark.clone().put_on(own).is_err());
        let many = (0..=MOST_METADATA).map(|n| (n.to_string(), String::new())).collect();
        assert!(mark.put_on(many).is_err());
    }

    #[test]
    fn policies_become_wrenn_cores() {
        let rule = |to: &str, protocol, ports| EgressRule { to: to.into(), protocol, ports };
        let wanted = Egress {
            allow: vec![
                rule("10.20.0.0/16", Some(Protocol::Tcp), Some((443, 443))),
                rule("*.debian.org", Some(Protocol::Tcp), Some((443, 443))),
            ],
            deny: vec!["10.20.99.0/24".into()],
            dns: Some(true),
            ..Egress::none()
        };
        let expected = EgressPolicy::deny_all()
            .dns(true)
            .allow(
                AllowRule::to("10.20.0.0/16".parse().unwrap())
                    .protocol(wrenn_core::Protocol::Tcp)
                    .ports(443..=443),
            )
            .and_then(|policy| {
                let name = AllowRule::to_name("*.debian.org".parse().unwrap());
                policy.allow(name.protocol(wrenn_core::Protocol::Tcp).ports(443..=443))
            })
            .and_then(|policy| policy.deny("10.20.99.0/24".parse().unwrap()))
            .unwrap();
        assert_eq!(egress(&wanted).unwrap(), expected);
        assert_eq!(egress(&Egress::default()).unwrap(), EgressPolicy::default());
        for bad in ["", "10.0.0.1/8", "fd00::/8", "a b", "999.1.1.1", "*.*.x", "http://x.y"] {
            let wanted = Egress { allow: vec![rule(bad, None, None)], ..Egress::none() };
            let error = egress(&wanted).unwrap_err();
            assert_eq!(Reason::of(&error), Reason::InvalidArgument, "{bad:?}");
        }
        let backwards = Egress { allow: vec![rule("10.0.0.1", None, Some((2, 1)))], ..Egress::none() };
        assert!(egress(&backwards).is_err());
    }
}

//! What a control plane asks for.

use std::collections::BTreeMap;
use std::time::Duration;

use wrenn_base::{ImageName, MiB, SandboxId, TemplateName};

use super::{Egress, Malformed, Timeout, millis, name};
use crate::pb;

/// What a sandbox is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An image: it is booted.
    Image(ImageName),
    /// A template: it goes on where that was taken.
    Template(TemplateName),
}

/// A sandbox that is asked for.
///
/// The id is the caller's: asked again for what is there already, a host answers with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSandbox {
    /// Its id.
    pub id: SandboxId,
    /// What it is made of.
    pub source: Source,
    /// The number of vCPUs; the template's, or one, where not set.
    pub vcpus: Option<u8>,
    /// Its memory; the template's, or 256 MiB, where not set.
    pub memory: Option<MiB>,
    /// Variables in the environment of every command.
    pub env: BTreeMap<String, String>,
    /// What it is found by: up to 60 entries, keys of up to 128 bytes, values of up to 4096.
    pub metadata: BTreeMap<String, String>,
    /// How long it may be idle; the template's, or for ever, where not set.
    pub timeout: Option<Timeout>,
    /// What the guest may reach; the template's, or the internet, where not set.
    pub egress: Option<Egress>,
    /// The guest's host name; the host's choice where not set.
    pub hostname: Option<String>,
    /// How long it may take until its agent answers; the host's choice where not set.
    pub ready_timeout: Option<Duration>,
}

impl CreateSandbox {
    /// A sandbox of an image or a template, and everything else left to the host.
    pub fn new(id: SandboxId, source: Source) -> Self {
        Self {
            id,
            source,
            vcpus: None,
            memory: None,
            env: BTreeMap::new(),
            metadata: BTreeMap::new(),
            timeout: None,
            egress: None,
            hostname: None,
            ready_timeout: None,
        }
    }

    pub(crate) fn into_wire(self) -> pb::CreateRequest {
        use pb::__buffa::oneof::create_request::Source as Wire;
        pb::CreateRequest {
            id: self.id.as_str().into(),
            source: Some(match self.source {
                Source::Image(name) => Wire::Image(name.as_str().into()),
                Source::Template(name) => Wire::Template(name.as_str().into()),
            }),
            vcpus: self.vcpus.unwrap_or(0).into(),
            memory_mib: self.memory.map_or(0, |size| size.0),
            env: self.env.into_iter().collect(),
            metadata: self.metadata.into_iter().collect(),
            timeout: self.timeout.map(Timeout::to_wire).into(),
            egress: self.egress.map(Egress::into_wire).into(),
            hostname: self.hostname.unwrap_or_default(),
            ready_timeout_ms: self.ready_timeout.map_or(0, millis),
        }
    }

    pub(crate) fn of_wire(wire: pb::CreateRequest) -> Result<Self, Malformed> {
        use pb::__buffa::oneof::create_request::Source as Wire;
        let source = match wire.source {
            Some(Wire::Image(text)) => Source::Image(name("image", &text)?),
            Some(Wire::Template(text)) => Source::Template(name("template", &text)?),
            None => return Err(Malformed::new("source", "it is neither an image nor a template")),
        };
        let vcpus =
            u8::try_from(wire.vcpus).map_err(|_| Malformed::new("vcpus", "no sandbox has so many"))?;
        Ok(Self {
            id: name("id", &wire.id)?,
            source,
            vcpus: Some(vcpus).filter(|count| *count != 0),
            memory: Some(MiB(wire.memory_mib)).filter(|size| size.0 != 0),
            env: wire.env.into_iter().collect(),
            metadata: wire.metadata.into_iter().collect(),
            timeout: wire.timeout.into_option().map(Timeout::of_wire).transpose()?,
            egress: wire.egress.into_option().map(Egress::of_wire).transpose()?,
            hostname: Some(wire.hostname).filter(|name| !name.is_empty()),
            ready_timeout: Some(wire.ready_timeout_ms).filter(|ms| *ms != 0).map(Duration::from_millis),
        })
    }
}

/// Sandboxes that are to go on where a running one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// The running sandbox.
    pub parent: SandboxId,
    /// The children's ids, at least one.
    pub children: Vec<SandboxId>,
    /// What the children are found by, beside what the parent is.
    pub metadata: BTreeMap<String, String>,
    /// Variables beside the parent's.
    pub env: BTreeMap<String, String>,
    /// How long each may be idle; as the parent where not set.
    pub timeout: Option<Timeout>,
    /// What each may reach; what the parent may where not set.
    pub egress: Option<Egress>,
}

impl Branch {
    /// Children that are as their parent.
    pub fn new(parent: SandboxId, children: Vec<SandboxId>) -> Self {
        Self {
            parent,
            children,
            metadata: BTreeMap::new(),
            env: BTreeMap::new(),
            timeout: None,
            egress: None,
        }
    }

    pub(crate) fn into_wire(self) -> pb::BranchRequest {
        pb::BranchRequest {
            id: self.parent.as_str().into(),
            children: self.children.iter().map(|id| id.as_str().to_owned()).collect(),
            metadata: self.metadata.into_iter().collect(),
            env: self.env.into_iter().collect(),
            timeout: self.timeout.map(Timeout::to_wire).into(),
            egress: self.egress.map(Egress::into_wire).into(),
        }
    }

    pub(crate) fn of_wire(wire: pb::BranchRequest) -> Result<Self, Malformed> {
        let mut children: Vec<SandboxId> = Vec::with_capacity(wire.children.len());
        for text in &wire.children {
            let child = name("children", text)?;
            if children.contains(&child) {
                return Err(Malformed::new("children", "one is named twice"));
            }
            children.push(child);
        }
        if children.is_empty() || children.len() > Self::MOST_CHILDREN {
            let why = format!("there are {}, and 1 to {} at a time", children.len(), Self::MOST_CHILDREN);
            return Err(Malformed::new("children", why));
        }
        Ok(Self {
            parent: name("id", &wire.id)?,
            children,
            metadata: wire.metadata.into_iter().collect(),
            env: wire.env.into_iter().collect(),
            timeout: wire.timeout.into_option().map(Timeout::of_wire).transpose()?,
            egress: wire.egress.into_option().map(Egress::of_wire).transpose()?,
        })
    }

    /// How many children one call makes at the most.
    pub const MOST_CHILDREN: usize = 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let plain = CreateSandbox::new(SandboxId::random(), Source::Image("debian".parse().unwrap()));
        let full = CreateSandbox {
            source: Source::Template("base".parse().unwrap()),
            vcpus: Some(2),
            memory: Some(MiB(512)),
            env: [("A".to_owned(), "1".to_owned())].into(),
            metadata: [("b".to_owned(), "2".to_owned())].into(),
            timeout: Some(Timeout::default()),
            egress: Some(Egress::none()),
            hostname: Some("box".into()),
            ready_timeout: Some(Duration::from_secs(9)),
            ..plain.clone()
        };
        for request in [plain, full] {
            assert_eq!(CreateSandbox::of_wire(request.clone().into_wire()), Ok(request));
        }
        let mut branch = Branch::new(SandboxId::random(), vec![SandboxId::random(), SandboxId::random()]);
        branch.timeout = Some(Timeout::pause(Duration::from_secs(1)));
        assert_eq!(Branch::of_wire(branch.clone().into_wire()), Ok(branch));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let sound =
            CreateSandbox::new(SandboxId::random(), Source::Image("debian".parse().unwrap())).into_wire();
        let check = |change: fn(&mut pb::CreateRequest), what| {
            let mut wire = sound.clone();
            change(&mut wire);
            assert_eq!(CreateSandbox::of_wire(wire).unwrap_err().what, what);
        };
        check(|wire| wire.id = "UPPER".into(), "id");
        check(|wire| wire.source = None, "source");
        check(|wire| wire.vcpus = 256, "vcpus");

        let id = SandboxId::random();
        for children in [vec![], vec![id.clone(), id.clone()], vec![id.clone(); Branch::MOST_CHILDREN + 1]] {
            let wire = Branch::new(id.clone(), children).into_wire();
            assert_eq!(Branch::of_wire(wire).unwrap_err().what, "children");
        }
    }
}

//! What a host says of what it has.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use wrenn_agent_api::AccessToken;
use wrenn_base::{Bytes, HostId, ImageName, MiB, SandboxId, TemplateName};

use super::event::{at_millis, since_epoch};
use super::{Malformed, Timeout, name};
use crate::pb;

/// What a sandbox is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SandboxState {
    /// It is being booted.
    Starting,
    /// It is being resumed, or made from a template or of a running sandbox.
    Resuming,
    /// Its guest runs, and its agent has answered.
    Running,
    /// It is being paused to disk.
    Pausing,
    /// What it has on the machine is being removed.
    Stopping,
    /// It is paused, and its snapshot is being worked on.
    Working,
    /// It is paused: a snapshot on disk, and nothing on the machine.
    Paused,
}

impl SandboxState {
    fn to_wire(self) -> pb::State {
        match self {
            Self::Starting => pb::State::STATE_STARTING,
            Self::Resuming => pb::State::STATE_RESUMING,
            Self::Running => pb::State::STATE_RUNNING,
            Self::Pausing => pb::State::STATE_PAUSING,
            Self::Stopping => pb::State::STATE_STOPPING,
            Self::Working => pb::State::STATE_WORKING,
            Self::Paused => pb::State::STATE_PAUSED,
        }
    }

    fn of_wire(wire: buffa::EnumValue<pb::State>) -> Result<Self, Malformed> {
        match wire.as_known() {
            Some(pb::State::STATE_STARTING) => Ok(Self::Starting),
            Some(pb::State::STATE_RESUMING) => Ok(Self::Resuming),
            Some(pb::State::STATE_RUNNING) => Ok(Self::Running),
            Some(pb::State::STATE_PAUSING) => Ok(Self::Pausing),
            Some(pb::State::STATE_STOPPING) => Ok(Self::Stopping),
            Some(pb::State::STATE_WORKING) => Ok(Self::Working),
            Some(pb::State::STATE_PAUSED) => Ok(Self::Paused),
            Some(pb::State::STATE_UNSPECIFIED) | None => {
                Err(Malformed::new("state", "it is none that this version knows"))
            }
        }
    }
}

/// A sandbox as it was when the host was asked.
#[derive(Debug, Clone)]
pub struct SandboxRecord {
    /// Its id.
    pub id: SandboxId,
    /// What it is doing.
    pub state: SandboxState,
    /// The image of its root disk.
    pub image: ImageName,
    /// The template that it was made from, if it was.
    pub template: Option<TemplateName>,
    /// The number of virtual CPUs.
    pub vcpus: u32,
    /// Its memory.
    pub memory: MiB,
    /// What it was given to be found by.
    pub metadata: BTreeMap<String, String>,
    /// When it was made; `None` where that is not known.
    pub created: Option<SystemTime>,
    /// How long it may be idle.
    pub timeout: Timeout,
    /// When it expires, if nothing happens before. `None` while it is busy, paused, or may be idle for ever.
    pub expires: Option<SystemTime>,
    /// What its agent wants to be shown; only of one that runs.
    pub token: Option<AccessToken>,
    /// The guest's host name.
    pub hostname: Option<String>,
}

impl SandboxRecord {
    pub(crate) fn into_wire(self) -> pb::Sandbox {
        pb::Sandbox {
            id: self.id.as_str().into(),
            state: self.state.to_wire().into(),
            image: self.image.as_str().into(),
            template: self.template.map(|name| name.as_str().to_owned()).unwrap_or_default(),
            vcpus: self.vcpus,
            memory_mib: self.memory.0,
            metadata: self.metadata.into_iter().collect(),
            created_ms: self.created.map_or(0, since_epoch),
            timeout: self.timeout.to_wire().into(),
            expires_ms: self.expires.map(since_epoch),
            access_token: self.token.map(|token| token.reveal().to_owned()).unwrap_or_default(),
            hostname: self.hostname.unwrap_or_default(),
        }
    }

    pub(crate) fn of_wire(wire: pb::Sandbox) -> Result<Self, Malformed> {
        let token = Some(wire.access_token).filter(|token| !token.is_empty());
        Ok(Self {
            id: name("id", &wire.id)?,
            state: SandboxState::of_wire(wire.state)?,
            image: name("image", &wire.image)?,
            template: filled(&wire.template).map(|text| name("template", text)).transpose()?,
            vcpus: wire.vcpus,
            memory: MiB(wire.memory_mib),
            metadata: wire.metadata.into_iter().collect(),
            created: (wire.created_ms > 0).then(|| at_millis(wire.created_ms)),
            timeout: wire.timeout.into_option().map_or(Ok(Timeout::default()), Timeout::of_wire)?,
            expires: wire.expires_ms.map(at_millis),
            token: token
                .map(AccessToken::new)
                .transpose()
                .map_err(|why| Malformed::new("access_token", why))?,
            hostname: Some(wire.hostname).filter(|name| !name.is_empty()),
        })
    }
}

fn filled(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// What a host is and has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Description {
    /// The identity of its data directory.
    pub host_id: HostId,
    /// The name that tokens for it have as their audience.
    pub name: String,
    /// The version of the host agent.
    pub version: String,
    /// Another at each start of the host agent.
    pub instance: String,
    /// The CPUs of the machine.
    pub vcpus_total: u32,
    /// The vCPUs of sandboxes that have a machine; CPUs may be committed more than once.
    pub vcpus_committed: u32,
    /// The memory of the machine.
    pub memory_total: MiB,
    /// The memory of sandboxes that have a machine, whether or not they use it.
    pub memory_committed: MiB,
    /// What the system says is available now.
    pub memory_available: MiB,
    /// The size of the file system that has the data directory.
    pub disk_total: Bytes,
    /// What is free of it.
    pub disk_free: Bytes,
    /// The images that sandboxes can be made of.
    pub images: Vec<ImageName>,
    /// Whether it takes no new sandboxes.
    pub draining: bool,
    /// How many sandboxes have a machine.
    pub active: u32,
    /// How many are at rest.
    pub paused: u32,
}

impl Description {
    pub(crate) fn into_wire(self) -> pb::DescribeResponse {
        pb::DescribeResponse {
            host_id: self.host_id.as_str().into(),
            name: self.name,
            version: self.version,
            instance: self.instance,
            vcpus_total: self.vcpus_total,
            vcpus_committed: self.vcpus_committed,
            memory_total_mib: self.memory_total.0,
            memory_committed_mib: self.memory_committed.0,
            memory_available_mib: self.memory_available.0,
            disk_total_bytes: self.disk_total.get(),
            disk_free_bytes: self.disk_free.get(),
            images: self.images.iter().map(|name| name.as_str().to_owned()).collect(),
            draining: self.draining,
            active: self.active,
            paused: self.paused,
        }
    }

    pub(crate) fn of_wire(wire: pb::DescribeResponse) -> Result<Self, Malformed> {
        Ok(Self {
            host_id: name("host_id", &wire.host_id)?,
            name: wire.name,
            version: wire.version,
            instance: wire.instance,
            vcpus_total: wire.vcpus_total,
            vcpus_committed: wire.vcpus_committed,
            memory_total: MiB(wire.memory_total_mib),
            memory_committed: MiB(wire.memory_committed_mib),
            memory_available: MiB(wire.memory_available_mib),
            disk_total: Bytes(wire.disk_total_bytes),
            disk_free: Bytes(wire.disk_free_bytes),
            images: wire.images.iter().map(|text| name("images", text)).collect::<Result<_, _>>()?,
            draining: wire.draining,
            active: wire.active,
            paused: wire.paused,
        })
    }
}

/// A template as a host has it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TemplateRecord {
    /// Its name.
    pub name: TemplateName,
    /// The image of its root disk.
    pub image: ImageName,
    /// The number of vCPUs of every sandbox made from it.
    pub vcpus: u32,
    /// The memory of every sandbox made from it.
    pub memory: MiB,
    /// The disk space that it takes.
    pub allocated: Bytes,
}

impl TemplateRecord {
    pub(crate) fn into_wire(self) -> pb::Template {
        pb::Template {
            name: self.name.as_str().into(),
            image: self.image.as_str().into(),
            vcpus: self.vcpus,
            memory_mib: self.memory.0,
            allocated_bytes: self.allocated.get(),
        }
    }

    pub(crate) fn of_wire(wire: pb::Template) -> Result<Self, Malformed> {
        Ok(Self {
            name: name("template", &wire.name)?,
            image: name("image", &wire.image)?,
            vcpus: wire.vcpus,
            memory: MiB(wire.memory_mib),
            allocated: Bytes(wire.allocated_bytes),
        })
    }
}

/// A sandbox that was paused.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Paused {
    /// The sandbox, at rest.
    pub sandbox: SandboxRecord,
    /// How many snapshots it has had.
    pub generation: u64,
    /// How much of its memory was written; zero where it was paused already.
    pub memory_written: Bytes,
}

/// A template that was just made of a running sandbox.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TakenSnapshot {
    /// The template.
    pub template: TemplateRecord,
    /// How long the sandbox stood still.
    pub stopped: Duration,
    /// How much of its memory was written.
    pub memory_written: Bytes,
}

/// What a running sandbox has used since its machine was started, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Processor time.
    pub cpu: Duration,
    /// What of its memory is in the host's.
    pub memory_resident: Bytes,
    /// What its changes to its root disk take.
    pub disk_allocated: Bytes,
    /// What came to the guest from the network.
    pub network_received: Bytes,
    /// What the guest sent.
    pub network_sent: Bytes,
}

impl Stats {
    pub(crate) fn to_wire(self) -> pb::StatsResponse {
        pb::StatsResponse {
            cpu_us: u64::try_from(self.cpu.as_micros()).unwrap_or(u64::MAX),
            memory_resident_bytes: self.memory_resident.get(),
            disk_allocated_bytes: self.disk_allocated.get(),
            network_received_bytes: self.network_received.get(),
            network_sent_bytes: self.network_sent.get(),
        }
    }

    pub(crate) fn of_wire(wire: &pb::StatsResponse) -> Self {
        Self {
            cpu: Duration::from_micros(wire.cpu_us),
            memory_resident: Bytes(wire.memory_resident_bytes),
            disk_allocated: Bytes(wire.disk_allocated_bytes),
            network_received: Bytes(wire.network_received_bytes),
            network_sent: Bytes(wire.network_sent_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> SandboxRecord {
        SandboxRecord {
            id: SandboxId::random(),
            state: SandboxState::Running,
            image: "debian".parse().unwrap(),
            template: Some("base".parse().unwrap()),
            vcpus: 2,
            memory: MiB(512),
            metadata: [("a".to_owned(), "b".to_owned())].into(),
            created: Some(at_millis(1_700_000_000_000)),
            timeout: Timeout::pause(Duration::from_secs(5)),
            expires: Some(at_millis(1_700_000_005_000)),
            token: Some(AccessToken::random()),
            hostname: Some("box".into()),
        }
    }

    #[test]
    fn records_survive_the_wire() {
        let plain = SandboxRecord {
            state: SandboxState::Paused,
            template: None,
            created: None,
            timeout: Timeout::default(),
            expires: None,
            token: None,
            hostname: None,
            ..record()
        };
        for record in [record(), plain] {
            let wire = record.into_wire();
            assert_eq!(SandboxRecord::of_wire(wire.clone()).unwrap().into_wire(), wire);
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let check = |change: fn(&mut pb::Sandbox), what| {
            let mut wire = record().into_wire();
            change(&mut wire);
            assert_eq!(SandboxRecord::of_wire(wire).unwrap_err().what, what);
        };
        check(|wire| wire.id = "../x".into(), "id");
        check(|wire| wire.image = String::new(), "image");
        check(|wire| wire.template = "a b".into(), "template");
        check(|wire| wire.state = pb::State::STATE_UNSPECIFIED.into(), "state");
        check(|wire| wire.state = buffa::EnumValue::from(99), "state");
        check(|wire| wire.access_token = "a b".into(), "access_token");
    }
}

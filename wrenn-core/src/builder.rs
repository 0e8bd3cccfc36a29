//! Asking for a new sandbox.

use std::collections::BTreeMap;
use std::time::Duration;

use wrenn_agent_api::AccessToken;
use wrenn_base::{Bytes, ImageName, MiB, SandboxId};
use wrenn_net::{Bandwidth, EgressPolicy};

use crate::assembly::Identity;
use crate::disk_limit::DiskLimit;
use crate::error::Error;
use crate::host::Host;
use crate::lifetime::{Lifetime, OnTimeout};
use crate::machine::{Entered, Machine};
use crate::network::NetworkPolicy;
use crate::sandbox::Sandbox;
use crate::spec::{SandboxSpec, host_memory, now_ms};

const DEFAULT_VCPUS: u8 = 1;
const DEFAULT_MEMORY: MiB = MiB(256);
const DEFAULT_READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A sandbox that is being described; made by [`Host::sandbox`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `create` is awaited"]
pub struct SandboxBuilder {
    host: Host,
    spec: SandboxSpec,
    /// A random one where absent.
    id: Option<SandboxId>,
}

impl SandboxBuilder {
    pub(crate) fn new(host: Host, image: ImageName) -> Self {
        let spec = SandboxSpec {
            image,
            vcpus: DEFAULT_VCPUS,
            memory: DEFAULT_MEMORY,
            disk: None,
            disk_limit: None,
            env: BTreeMap::new(),
            network: NetworkPolicy::default(),
            lifetime: Lifetime::default(),
            metadata: BTreeMap::new(),
            ready_timeout_ms: DEFAULT_READY_TIMEOUT.as_millis() as u64,
            hostname: None,
            template: None,
            created_ms: None,
        };
        Self { host, spec, id: None }
    }

    /// The sandbox's id, which no other sandbox of the host has, running or paused; a random one where not set.
    pub fn id(mut self, id: SandboxId) -> Self {
        self.id = Some(id);
        self
    }

    /// The guest's host name, a label of a DNS name; the sandbox's id where not set.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.spec.hostname = Some(name.into());
        self
    }

    /// The number of virtual CPUs, 1 to 32; 1 where not set.
    pub fn vcpus(mut self, count: u8) -> Self {
        self.spec.vcpus = count;
        self
    }

    /// The guest's memory, from 80 MiB to the host's physical memory; 256 MiB where not set.
    pub fn memory(mut self, size: MiB) -> Self {
        self.spec.memory = size;
        self
    }

    /// The size of the root disk, at least the image's, which it is where not set. The guest's file system grows into it.
    pub fn disk_size(mut self, size: Bytes) -> Self {
        self.spec.disk = Some(size);
        self
    }

    /// Bounds how fast the guest may use its root disk; no bound where not set.
    pub fn disk_limit(mut self, limit: DiskLimit) -> Self {
        self.spec.disk_limit = Some(limit);
        self
    }

    /// Sets a variable in the environment of every command; the last call for a name counts.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.env.insert(name.into(), value.into());
        self
    }

    /// Gives it something to be found by in [`Host::list`]: up to 64 entries, keys of up to 128 bytes, values of up to 4096.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.metadata.insert(key.into(), value.into());
        self
    }

    /// How long it may be idle, and what becomes of it then; for ever where not set.
    ///
    /// It is idle while no command runs that somebody waits for, no file is moved, and nothing passes through ports
    /// that were [published](crate::Sandbox::publish). It expires within about a second of its time. One that is to be
    /// paused and cannot runs on, and is tried again; see [`Host::events`].
    pub fn timeout(mut self, timeout: Duration, then: OnTimeout) -> Self {
        self.spec.lifetime = Lifetime::new(Some(timeout), then);
        self
    }

    /// What the guest may reach; where not set, the internet: neither private networks, nor the cloud's metadata, nor
    /// the host, nor other sandboxes. It is in force before the guest's first packet, and again after a resume.
    pub fn egress(mut self, policy: EgressPolicy) -> Self {
        self.spec.network.egress = policy;
        self
    }

    /// Bounds what passes between the guest and the network, each way for itself; no bound where not set.
    pub fn bandwidth(mut self, bound: Bandwidth) -> Self {
        self.spec.network.bandwidth = Some(bound);
        self
    }

    /// How long the guest may take from its start, or from a resume, until its agent answers; 60 seconds where not set.
    pub fn ready_timeout(mut self, limit: Duration) -> Self {
        self.spec.set_ready_timeout(limit);
        self
    }

    /// Boots the sandbox and returns once its agent answers.
    ///
    /// # Errors
    /// A bad request is refused before anything on the host is touched, and so is an id that is taken
    /// ([`Cause::SandboxExists`](crate::Cause::SandboxExists)). Whatever fails later is undone, and the
    /// error names it; what could not be undone stands beside it in [`Error::cleanup`].
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing: what was made is removed in the background.
    pub async fn create(self) -> Result<Sandbox, Error> {
        let Self { host: Host { inner: host }, mut spec, id } = self;
        spec.check(host_memory()?)?;
        let id = id.unwrap_or_else(SandboxId::random);
        host.check_free(std::slice::from_ref(&id))?;
        spec.created_ms = now_ms();
        let dirs = host.layout.sandbox(&id);
        let identity = Identity { id, dirs, spec, token: AccessToken::random() };
        let Entered { machine, entry } = Machine::boot(&host, identity).await?;
        Sandbox::started(host, machine, entry, None).await
    }
}

//! What sandboxes that are made of a snapshot may have of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use wrenn_base::{MiB, TemplateName};
use wrenn_net::{Bandwidth, EgressPolicy};

use crate::error::Cause;
use crate::lifetime::Lifetime;
use crate::restore::RestoreOptions;
use crate::spec::{SandboxSpec, host_memory, now_ms};
use crate::stored::Stored;

/// See above; what is absent is as the snapshot has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    pub(crate) vcpus: Option<u8>,
    pub(crate) memory: Option<MiB>,
    /// The template that they come from, if it is one.
    pub(crate) template: Option<TemplateName>,
    pub(crate) hostname: Option<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) ready_timeout: Option<Duration>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) lifetime: Option<Lifetime>,
    pub(crate) egress: Option<EgressPolicy>,
    pub(crate) bandwidth: Option<Bandwidth>,
    pub(crate) restore: RestoreOptions,
}

impl Changes {
    /// Refuses what a snapshot fixes, and what no sandbox can have.
    pub(crate) fn check(&self, stored: &Stored) -> Result<(), Cause> {
        let spec = &stored.record.spec;
        let fixed = |what, held: String, wanted: String| match held == wanted {
            true => Ok(()),
            false => Err(Cause::FixedBySnapshot { what, held, wanted }),
        };
        if let Some(wanted) = self.vcpus {
            fixed("vcpus", spec.vcpus.to_string(), wanted.to_string())?;
        }
        if let Some(wanted) = self.memory {
            fixed("memory", spec.memory.to_string(), wanted.to_string())?;
        }
        self.applied_to(stored).check(host_memory()?)
    }

    pub(crate) fn applied_to(&self, stored: &Stored) -> SandboxSpec {
        let mut spec = stored.record.spec.clone();
        spec.env.extend(self.env.iter().cloned());
        if let Some(limit) = self.ready_timeout {
            spec.set_ready_timeout(limit);
        }
        spec.created_ms = now_ms();
        if let Some(name) = &self.template {
            spec.template = Some(name.clone());
        }
        if let Some(name) = &self.hostname {
            spec.hostname = Some(name.clone());
        }
        spec.metadata.extend(self.metadata.clone());
        if let Some(lifetime) = self.lifetime {
            spec.lifetime = lifetime;
        }
        if let Some(policy) = &self.egress {
            spec.network.egress = policy.clone();
        }
        if let Some(bound) = self.bandwidth {
            spec.network.bandwidth = Some(bound);
        }
        spec
    }
}

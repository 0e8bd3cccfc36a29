//! What there is, without changing anything.

use std::time::SystemTime;

use connectrpc::ConnectError;
use wrenn_base::{Bytes, MiB, SandboxId};
use wrenn_core::{Cause, Host, SandboxInfo, TemplateInfo};

use super::machine;
use super::refusal::refusal;
use super::request::shown;
use super::sandboxes::Sandboxes;
use crate::types::{Description, OnTimeout, SandboxRecord, SandboxState, Stats, TemplateRecord, Timeout};

/// The most sandboxes of one page.
const MOST_OF_A_PAGE: usize = 1000;
/// The most bytes of labels on one page, so that no answer is larger than its reader takes.
const MOST_LABELS: usize = 4 << 20;
/// The most bytes of a console log in one answer.
const MOST_CONSOLE: u32 = 64 * 1024;

/// A sandbox as it is told of.
pub(super) fn record(host: &Host, info: SandboxInfo) -> SandboxRecord {
    let then = match info.on_timeout {
        wrenn_core::OnTimeout::Destroy => OnTimeout::Destroy,
        wrenn_core::OnTimeout::Pause => OnTimeout::Pause,
    };
    SandboxRecord {
        token: host.access_token(&info.id),
        id: info.id,
        state: state(info.state),
        image: info.image,
        template: info.template,
        vcpus: info.vcpus.into(),
        memory: info.memory,
        metadata: shown(info.metadata),
        created: info.created,
        timeout: Timeout { after: info.timeout, then },
        expires: info.expires_in.and_then(|time| SystemTime::now().checked_add(time)),
        hostname: info.hostname,
    }
}

fn state(state: wrenn_core::SandboxState) -> SandboxState {
    use wrenn_core::SandboxState as Core;
    match state {
        Core::Starting => SandboxState::Starting,
        Core::Resuming => SandboxState::Resuming,
        Core::Running => SandboxState::Running,
        Core::Pausing => SandboxState::Pausing,
        Core::Stopping => SandboxState::Stopping,
        Core::Paused => SandboxState::Paused,
        // A state that wrenn-core adds is one in which something is done with it.
        _ => SandboxState::Working,
    }
}

impl From<TemplateInfo> for TemplateRecord {
    fn from(info: TemplateInfo) -> Self {
        Self {
            name: info.name,
            image: info.image,
            vcpus: info.vcpus.into(),
            memory: info.memory,
            allocated: info.allocated,
        }
    }
}

impl Sandboxes {
    /// What the host is and has.
    pub(super) async fn describe(&self, name: String, instance: String) -> Result<Description, ConnectError> {
        let all = self.host.list().await.map_err(|e| refusal(&e))?;
        let (paused, active): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|info| info.state == wrenn_core::SandboxState::Paused);
        let images = self.host.images().await.map_err(|e| refusal(&e))?;
        let has = machine::look(self.host.data_dir()).await?;
        let memory = active.iter().fold(0u32, |sum, info| sum.saturating_add(info.memory.0));
        Ok(Description {
            host_id: self.host.id().clone(),
            name,
            version: env!("CARGO_PKG_VERSION").into(),
            instance,
            vcpus_total: has.cpus,
            vcpus_committed: active.iter().map(|info| u32::from(info.vcpus)).sum(),
            memory_total: has.memory_total,
            memory_committed: MiB(memory),
            memory_available: has.memory_available,
            disk_total: has.disk_total,
            disk_free: has.disk_free,
            images,
            draining: self.is_draining(),
            active: u32::try_from(active.len()).unwrap_or(u32::MAX),
            paused: u32::try_from(paused.len()).unwrap_or(u32::MAX),
        })
    }

    /// Those after `after`, and whether there are more.
    pub(super) async fn page(
        &self,
        after: Option<SandboxId>,
        limit: u32,
    ) -> Result<(Vec<SandboxRecord>, bool), ConnectError> {
        let all = self.host.list().await.map_err(|e| refusal(&e))?;
        let most = usize::try_from(limit)
            .ok()
            .filter(|most| *most != 0)
            .unwrap_or(MOST_OF_A_PAGE)
            .min(MOST_OF_A_PAGE);
        let mut rest =
            all.into_iter().filter(|info| after.as_ref().is_none_or(|after| info.id > *after)).peekable();
        let (mut page, mut labels) = (Vec::new(), 0);
        while page.len() < most && labels < MOST_LABELS {
            let Some(info) = rest.next() else { break };
            labels += info.metadata.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
            page.push(record(&self.host, info));
        }
        Ok((page, rest.peek().is_some()))
    }

    /// How many sandboxes have a machine.
    pub(super) async fn active(&self) -> Result<u32, ConnectError> {
        let all = self.host.list().await.map_err(|e| refusal(&e))?;
        let active = all.iter().filter(|info| info.state != wrenn_core::SandboxState::Paused).count();
        Ok(u32::try_from(active).unwrap_or(u32::MAX))
    }

    pub(super) async fn templates(&self) -> Result<Vec<TemplateRecord>, ConnectError> {
        let mut templates = Vec::new();
        for name in self.host.templates().await.map_err(|e| refusal(&e))? {
            let template = self.host.template(name.as_str()).map_err(|e| refusal(&e))?;
            match template.info().await {
                Ok(info) => templates.push(info.into()),
                // It was removed meanwhile.
                Err(error) if matches!(error.cause(), Cause::NoSuchTemplate { .. }) => {}
                Err(error) => tracing::warn!(template = %name, %error, "cannot be listed"),
            }
        }
        Ok(templates)
    }

    pub(super) async fn delete_template(&self, name: &str) -> Result<(), ConnectError> {
        let template = self.host.template(name).map_err(|e| refusal(&e))?;
        template.delete().await.map_err(|e| refusal(&e))
    }

    pub(super) async fn stats(&self, id: &SandboxId) -> Result<Stats, ConnectError> {
        let usage = self.share(id).await?.usage().await.map_err(|e| refusal(&e))?;
        Ok(Stats {
            cpu: usage.cpu,
            memory_resident: usage.memory_resident,
            disk_allocated: usage.disk_allocated,
            network_received: usage.network_received,
            network_sent: usage.network_sent,
        })
    }

    pub(super) async fn console(&self, id: &SandboxId, most: u32) -> Result<Vec<u8>, ConnectError> {
        let most = if most == 0 { MOST_CONSOLE } else { most.min(MOST_CONSOLE) };
        self.share(id).await?.console(Bytes(most.into())).await.map_err(|e| refusal(&e))
    }
}

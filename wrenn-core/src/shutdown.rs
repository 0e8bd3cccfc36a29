//! Ending a host's work in good order.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use wrenn_base::SandboxId;

use crate::error::{Cause, Error};
use crate::host::{Host, HostInner};
use crate::instance::pause_held;
use crate::lifetime::OnTimeout;
use crate::registry::Entry;
use crate::step::to_its_end;

/// How many sandboxes are ended side by side: each writes its memory to disk.
const AT_ONCE: usize = 8;

/// What is to become of the sandboxes that run when a host is shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownPolicy {
    /// They are paused to disk.
    PauseAll,
    /// They are destroyed, their snapshots with them. Those that are paused stay.
    DestroyAll,
    /// They run on, and on after the host is closed and the program has ended: who opens the host next has them by
    /// [`Host::running`]. Handles that there are can be used until then, and dropped; a timeout holds only while some
    /// process has the host open. Where an egress policy has names, these are answered only then, too.
    LeaveRunning,
}

/// A sandbox that could not be ended as the shutdown was to end it.
#[derive(Debug)]
#[non_exhaustive]
pub struct ShutdownFailure {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Why.
    pub error: Error,
}

impl Host {
    /// Pauses, destroys or leaves every sandbox that runs, several at a time, within `limit`.
    ///
    /// Whoever has a handle finds out by its next call ([`Cause::Expired`]). The host stays open, and is then to be
    /// [closed](Self::close). Sandboxes that are made meanwhile are not seen.
    ///
    /// # Errors
    /// Nothing fails as a whole: what could not be ended is returned, and runs on, as do those whose turn did not come
    /// within `limit` ([`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut)).
    ///
    /// # Cancel safety
    /// A dropped future lets what is under way come to its end, and begins nothing more.
    pub async fn shutdown(&self, policy: ShutdownPolicy, limit: Duration) -> Vec<ShutdownFailure> {
        let deadline = tokio::time::Instant::now() + limit;
        let running = self.inner.registry.entries();
        let ends = running.into_iter().map(|(_, entry)| {
            let host = Arc::clone(&self.inner);
            async move {
                let (id, runtime) = (entry.id.clone(), host.runtime.clone());
                let end = to_its_end(&runtime, async move { end(&host, &entry, policy).await });
                let too_late = |_| Err(Cause::ShutdownLimit { id: id.clone(), limit }.into());
                let ended = tokio::time::timeout_at(deadline, end).await.unwrap_or_else(too_late);
                ended.err().map(|error| ShutdownFailure { sandbox: id, error })
            }
        });
        stream::iter(ends).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
    }
}

async fn end(host: &Arc<HostInner>, entry: &Entry, policy: ShutdownPolicy) -> Result<(), Error> {
    let mut held = entry.hold().await;
    if held.is_none() {
        return Ok(());
    }
    match policy {
        ShutdownPolicy::LeaveRunning => {
            entry.park();
            Ok(())
        }
        ShutdownPolicy::PauseAll => {
            drop(pause_held(host, entry, &mut held, Some(OnTimeout::Pause)).await?);
            Ok(())
        }
        ShutdownPolicy::DestroyAll => {
            let Some(instance) = held.take() else { return Ok(()) };
            let failures = instance.destroy(host, Some(OnTimeout::Destroy)).await?;
            Error::from_cleanup(format!("destroying sandbox {}", entry.id), failures)
        }
    }
}

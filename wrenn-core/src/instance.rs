//! A machine together with what its next snapshot builds on: what pausing, capturing and destroying work with.
//!
//! Whoever has an instance has it alone; see [`registry`](crate::registry).

use std::convert::Infallible;
use std::sync::Arc;

use wrenn_base::{TemplateName, UndoFailure};
use wrenn_storage::MemoryImage;

use crate::capture;
use crate::error::Cause;
use crate::events::EventKind;
use crate::host::HostInner;
use crate::lifecycle::Step;
use crate::lifetime::OnTimeout;
use crate::machine::{Live, Machine};
use crate::metrics::{Operation, phase, whole};
use crate::paused::PausedSandbox;
use crate::registry::{Entry, Held};
use crate::running::{Capture, capture_running};
use crate::step::blocking;
use crate::stored::Stored;
use crate::template::StagedTemplate;

/// See above.
pub(crate) struct Instance {
    machine: Machine,
    /// The snapshot that it was resumed from.
    origin: Option<Origin>,
    /// Whether the monitor's log has every page written since `origin`: a failed pause, and a snapshot of the running
    /// guest, may have made it forget. Without meaning where guest memory is read instead.
    dirty_pages_known: bool,
}

/// A snapshot that a running sandbox came from. Its layers may still be read by page faults.
pub(crate) struct Origin {
    /// Which of the sandbox's own snapshots it is; 0 for another's.
    pub(crate) generation: u64,
    pub(crate) memory: MemoryImage,
}

impl Instance {
    pub(crate) fn new(machine: Machine, origin: Option<Origin>) -> Self {
        // Of a machine that an earlier process restored nobody knows what became of its monitor's log.
        let dirty_pages_known = origin.is_some() && machine.live.restored.is_some();
        Self { machine, origin, dirty_pages_known }
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.machine.live
    }

    /// Lets go of the machine, and leaves it running.
    pub(crate) fn leave(self) {
        self.machine.leave();
    }

    /// Pauses the guest to disk and takes its machine down, or gives the instance back, its guest running.
    ///
    /// `expired` is what the guest's timeout asked for, if that is the reason. To be run to its end.
    pub(crate) async fn pause(
        mut self,
        host: &Arc<HostInner>,
        expired: Option<OnTimeout>,
    ) -> Result<PausedSandbox, (Cause, Self)> {
        let generation = self.origin.as_ref().map_or(0, |origin| origin.generation) + 1;
        // Whatever merges the layers of the snapshot that this one builds on has to be done with it.
        host.compactions.stop(&self.live().identity.id).await;
        let captured = match self.base().await {
            Ok((stored, memory)) => {
                let captured = capture::capture(self.live(), stored.as_ref(), memory, generation);
                phase(Operation::Pause, "capture", captured).await
            }
            Err(cause) => Err(cause),
        };
        match captured {
            Ok(stored) => Ok(self.leave_behind(host, stored, expired).await),
            Err(cause) => {
                self.dirty_pages_known = false;
                self.drop_orphaned_layers().await;
                Err((cause, self))
            }
        }
    }

    /// What a diff of the guest is a diff of: its own latest snapshot, as it is on disk now, and the memory image that
    /// it came from. Neither, where it was booted; no memory, where what changed since is not known.
    async fn base(&self) -> Result<(Option<Stored>, Option<MemoryImage>), Cause> {
        let Some(origin) = &self.origin else { return Ok((None, None)) };
        let known = self.live().reads_memory || self.dirty_pages_known;
        if origin.generation == 0 {
            return Ok((None, known.then(|| origin.memory.clone())));
        }
        let store = self.live().identity.dirs.store.clone();
        let stored = blocking(move || Stored::open(&store)).await?;
        let memory = stored.as_ref().map(|stored| stored.memory.clone()).filter(|_| known);
        Ok((stored, memory))
    }

    /// Takes the machine down around a committed snapshot.
    async fn leave_behind(
        mut self,
        host: &Arc<HostInner>,
        stored: Stored,
        expired: Option<OnTimeout>,
    ) -> PausedSandbox {
        self.machine.keep_data();
        self.live().ends_by_timeout(expired);
        let dismantled = async { Ok::<_, Infallible>(self.machine.dismantle().await) };
        let Ok(failures) = phase(Operation::Pause, "dismantle", dismantled).await;
        for failure in failures {
            // The snapshot is whole and nothing of it depends on what is left: report it, do not fail the pause.
            tracing::warn!(sandbox = %stored.record.id, step = %failure.what, error = %failure.source, "left behind by a pause");
        }
        let paused = PausedSandbox::of(Arc::clone(host), stored);
        paused.tidy().await;
        paused
    }

    /// After a failed pause: a layer that was written for it, and is part of no image.
    async fn drop_orphaned_layers(&self) {
        let Some(origin) = &self.origin else { return };
        let identity = &self.live().identity;
        let (store, own, memory) =
            (identity.dirs.store.clone(), origin.generation > 0, origin.memory.clone());
        let result = blocking(move || {
            let kept = if own { Stored::open(&store)?.map(|stored| stored.memory) } else { Some(memory) };
            capture::drop_orphaned_layers(&store, kept.as_ref())
        });
        if let Err(e) = result.await {
            tracing::warn!(sandbox = %identity.id, error = %e, "could not remove the layers of a failed pause");
        }
    }

    /// Captures the guest, which runs on, into `staged`, and commits that as the template `name` where there is a name.
    ///
    /// To be run to its end.
    pub(crate) async fn capture(
        &mut self,
        host: &Arc<HostInner>,
        staged: StagedTemplate,
        name: Option<TemplateName>,
    ) -> Result<(Capture, Option<StagedTemplate>), Cause> {
        let live = Arc::clone(self.live());
        // The layers that the new image builds on must stay until it has links of its own to them.
        host.compactions.stop(&live.identity.id).await;
        let (own, mut memory) = self.base().await?;
        if let (None, Some(origin)) = (&memory, &self.origin) {
            memory = Some(origin.memory.clone());
        }
        self.dirty_pages_known = false;
        let capture = capture_running(host, &live, memory, staged.store()).await?;
        if let Some(own) = &own {
            host.compactions.consider(&live.identity.dirs.store, own);
        }
        let host = Arc::clone(host);
        let staged = blocking(move || match name {
            Some(name) => staged.commit(&host, &name).map(|()| None),
            None => Ok(Some(staged)),
        });
        Ok((capture, staged.await?))
    }

    /// Ends the guest and removes the sandbox with its snapshots; returns what could not be removed of the machine.
    pub(crate) async fn destroy(
        self,
        host: &Arc<HostInner>,
        expired: Option<OnTimeout>,
    ) -> Result<Vec<UndoFailure>, Cause> {
        let identity = self.live().identity.clone();
        self.live().ends_by_timeout(expired);
        whole(Operation::Destroy, async {
            let failures = self.machine.dismantle().await;
            host.compactions.stop(&identity.id).await;
            blocking(move || identity.dirs.store.remove()).await?;
            Ok(failures)
        })
        .await
    }
}

/// Pauses a machine, or leaves it where it was, running, unless its guest has ended. To be run to its end.
pub(crate) async fn pause_held(
    host: &Arc<HostInner>,
    entry: &Entry,
    held: &mut Held,
    expired: Option<OnTimeout>,
) -> Result<PausedSandbox, Cause> {
    let Some(instance) = held.take() else { return Err(Cause::SandboxBusy { id: entry.id.clone() }) };
    if let Err(cause) = host.registry.step(&entry.id, Step::Pause) {
        **held = Some(instance);
        return Err(cause);
    }
    match whole(Operation::Pause, instance.pause(host, expired)).await {
        Ok(paused) => {
            let generation = paused.snapshot().generation;
            host.registry.tell(&entry.id, EventKind::Paused { generation });
            Ok(paused)
        }
        Err((cause, instance)) => {
            let ended = instance.live().monitor.exit_report().is_some();
            if !ended && host.registry.step(&entry.id, Step::PauseFailed).is_ok() {
                **held = Some(instance);
            }
            Err(cause)
        }
    }
}

//! What became of the sandboxes of a process that was killed: those whose monitors live are gone on with.
//!
//! A monitor is no child that dies with its parent, and a guest whose memory is paged in has the [pager](wrenn_pager), which
//! outlives the program too. So a killed program costs its sandboxes nothing but the answers that were under way. When the
//! host is opened again, each [journal](crate::journal) is looked at:
//!
//! | the monitor | and | the sandbox |
//! |---|---|---|
//! | lives | | runs on, to be had by [`Host::running`] |
//! | lives | a newer snapshot than it began with is complete | is paused: the guest must not run on over its disk |
//! | lives | its memory is paged in, and the pager has died | goes back to its latest snapshot |
//! | has ended | | goes back to its latest snapshot |

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use wrenn_base::SandboxId;
use wrenn_pager::PagerClient;
use wrenn_storage::MemoryImage;

use crate::assembly::{Assembly, Identity};
use crate::capture;
use crate::error::{Cause, Error};
use crate::host::{Host, HostInner};
use crate::instance::Origin;
use crate::journal::Journal;
use crate::layout::{Layout, SandboxDirs};
use crate::machine::{Entered, Machine};
use crate::metrics::{Operation, whole};
use crate::sandbox::Sandbox;
use crate::step::{blocking, unless_missing};
use crate::stored::Stored;
use crate::sweep;

/// How many sandboxes are taken over side by side.
const AT_ONCE: usize = 8;

/// A sandbox that an earlier process had running, and that runs still.
pub(crate) struct Survivor {
    journal: Journal,
}

impl Survivor {
    pub(crate) fn id(&self) -> &SandboxId {
        &self.journal.id
    }

    /// The index of its network slot.
    pub(crate) fn slot(&self) -> u16 {
        self.journal.slot
    }
}

/// The sandboxes that can be gone on with; `pager` is the one that was found.
pub(crate) fn survivors(layout: &Layout, pager: Option<&PagerClient>) -> Vec<Survivor> {
    let paged: BTreeSet<_> = pager.and_then(|pager| pager.sandboxes().ok()).into_iter().flatten().collect();
    let ids = sweep::sandboxes_in(&layout.sandboxes());
    ids.filter_map(|id| {
        let dirs = layout.sandbox(&id);
        if !dirs.journal().exists() {
            return None;
        }
        let journal = Journal::read(&id, &dirs)?;
        let why_not = not_to_be_had(&journal, &dirs, &paged);
        if let Some(why) = why_not {
            tracing::info!(sandbox = %id, why, "a sandbox of a killed process goes back to its latest snapshot");
            return None;
        }
        Some(Survivor { journal })
    })
    .collect()
}

/// Why a sandbox cannot be gone on with, if so.
fn not_to_be_had(journal: &Journal, dirs: &SandboxDirs, paged: &BTreeSet<SandboxId>) -> Option<&'static str> {
    if !matches!(journal.monitor.open(), Ok(Some(_))) {
        return Some("its monitor has ended");
    }
    if journal.paged && !paged.contains(&journal.id) {
        return Some("its memory cannot be paged in any more");
    }
    match dirs.store.snapshots().latest() {
        Ok(latest) if latest.unwrap_or(0) == journal.origin.unwrap_or(0) => None,
        Ok(_) => Some("it was paused"),
        Err(_) => Some("its snapshots cannot be looked at"),
    }
}

/// Takes all of them over. What cannot be is ended, and goes back to its latest snapshot.
pub(crate) async fn take_over(host: &Arc<HostInner>, survivors: Vec<Survivor>) {
    let each = survivors.into_iter().map(|survivor| async move {
        let id = survivor.id().clone();
        match take_over_one(host, survivor).await {
            Ok(sandbox) => {
                tracing::info!(sandbox = %id, "goes on, though its process was killed");
                sandbox.park();
            }
            Err(error) => {
                tracing::warn!(sandbox = %id, ?error, "a sandbox of a killed process could not be taken over");
                let layout = host.layout.clone();
                sweep::report("a sandbox", blocking(move || sweep::clean_data(&layout, &id)).await);
            }
        }
    });
    stream::iter(each).buffer_unordered(AT_ONCE).collect::<()>().await;
}

async fn take_over_one(host: &Arc<HostInner>, survivor: Survivor) -> Result<Sandbox, Error> {
    let journal = survivor.journal;
    let Journal { id, spec, token, .. } = journal.clone();
    let dirs = host.layout.sandbox(&id);
    let identity = Identity { id, dirs, spec, token };
    let mut assembly = Assembly::new(Arc::clone(host), identity, Operation::TakeOver);
    let operation = assembly.operation;
    let (result, origin) = match whole(operation, assembly.take_over(&journal)).await {
        Ok((live, origin)) => (Ok(live), origin),
        Err(cause) => (Err(cause), None),
    };
    let Entered { machine, entry } = Machine::from_assembly(host, assembly, result).await?;
    Sandbox::started(Arc::clone(host), machine, entry, origin).await
}

/// What its next snapshot builds on.
pub(crate) fn origin(journal: &Journal, dirs: &SandboxDirs) -> Result<Option<Origin>, Cause> {
    let Some(generation) = journal.origin else { return Ok(None) };
    let memory = match generation {
        0 => MemoryImage::open(&dirs.store.origin(), &dirs.store.open_layers()?)?,
        _ => {
            let stored = Stored::open(&dirs.store)?;
            stored.ok_or_else(|| Cause::NoSuchSandbox { id: journal.id.clone() })?.memory
        }
    };
    Ok(Some(Origin { generation, memory }))
}

/// Removes what a pause or a snapshot that was never completed left of a sandbox that runs on.
pub(crate) fn clear(dirs: &SandboxDirs, origin: Option<&Origin>) -> Result<(), Cause> {
    let exchange = dirs.exchange();
    for entry in fs::read_dir(&exchange).map_err(|source| Cause::io("list", &exchange, source))?.flatten() {
        let path = entry.path();
        unless_missing(fs::remove_file(&path)).map_err(|source| Cause::io("remove", &path, source))?;
    }
    dirs.store.snapshots().prune(origin.map_or(0, |origin| origin.generation))?;
    capture::drop_orphaned_layers(&dirs.store, origin.map(|origin| &origin.memory))
}

impl Host {
    /// A running sandbox that nobody has a handle of: an earlier process had it running and was killed, or
    /// [left it](crate::ShutdownPolicy::LeaveRunning).
    ///
    /// The host took it over when it was opened. Until somebody asks for it, only its timeout ends it, and closing the host
    /// leaves it running. Commands that the earlier process had begun run on; ports that it had published are not.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), wrenn_core::Error> {
    /// let host = wrenn_core::Host::builder().open().await?;
    /// for sandbox in host.list().await? {
    ///     if sandbox.state == wrenn_core::SandboxState::Running {
    ///         let sandbox = host.running(&sandbox.id).await?;
    ///         println!("{}", sandbox.exec("uptime").await?.stdout_text());
    ///         sandbox.destroy().await?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// No such sandbox runs ([`NotFound`](crate::ErrorKind::NotFound)), or somebody has it
    /// ([`Busy`](crate::ErrorKind::Busy)).
    ///
    /// # Cancel safety
    /// A dropped future leaves it as it is.
    pub async fn running(&self, id: &SandboxId) -> Result<Sandbox, Error> {
        let found = self.inner.registry.entry(id);
        let (_, entry) = found.ok_or_else(|| Cause::NotRunning { id: id.clone() })?;
        Ok(Sandbox::unpark(Arc::clone(&self.inner), entry).await?)
    }
}

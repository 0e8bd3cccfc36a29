//! What a later process has to know of a running sandbox, to go on with it should this one be killed.
//!
//! A file beside the sandbox's data, there from when its guest has answered until its machine begins to be taken down. It is
//! renamed into place but not flushed: what it tells of ends with the machine that it is on. It is the first thing that an
//! undo takes away, so that nothing half taken down is ever gone on with.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use wrenn_agent_api::AccessToken;
use wrenn_base::{ProcessIdentity, SandboxId, UndoList};
use wrenn_storage::Digest;

use crate::error::Cause;
use crate::layout::SandboxDirs;
use crate::machine::Live;
use crate::spec::SandboxSpec;
use crate::step::unless_missing;

const FORMAT: u32 = 1;
/// What is read of a file at most: a spec is bounded, and so is what it travels with.
const LONGEST: u64 = 4 << 20;

/// A running sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    format: u32,
    pub(crate) id: SandboxId,
    pub(crate) spec: SandboxSpec,
    pub(crate) token: AccessToken,
    /// The image under its disk.
    pub(crate) image: Digest,
    pub(crate) monitor: ProcessIdentity,
    /// The user of a contained monitor.
    pub(crate) user: Option<u32>,
    /// The index of its network slot.
    pub(crate) slot: u16,
    pub(crate) reads_memory: bool,
    /// Which of its own snapshots it was resumed from; 0 for another's; absent where it was booted.
    pub(crate) origin: Option<u64>,
    /// Whether the pager serves its memory.
    pub(crate) paged: bool,
}

impl Journal {
    /// Reads the journal of the sandbox in `dirs`; nothing where there is none that could be used.
    pub(crate) fn read(id: &SandboxId, dirs: &SandboxDirs) -> Option<Self> {
        let path = dirs.journal();
        let length = fs::metadata(&path).ok()?.len();
        let read = || {
            let journal: Self =
                serde_json::from_slice(&fs::read(&path).ok().filter(|_| length <= LONGEST)?).ok()?;
            (journal.format == FORMAT && journal.id == *id).then_some(journal)
        };
        let journal = read();
        if journal.is_none() {
            tracing::warn!(path = %path.display(), "what a killed process wrote of a sandbox cannot be used");
        }
        journal
    }

    fn of(live: &Live, origin: Option<u64>) -> Result<Self, Cause> {
        let pid = live.monitor.pid();
        let monitor = ProcessIdentity::of(pid);
        Ok(Self {
            format: FORMAT,
            id: live.identity.id.clone(),
            spec: live.current_spec(),
            token: live.identity.token.clone(),
            image: live.image.clone(),
            monitor: monitor.map_err(|source| Cause::io("look at process", pid.to_string(), source))?,
            user: live.monitor.user(),
            slot: live.network.slot.index(),
            reads_memory: live.reads_memory,
            origin,
            paged: live.paging.is_some(),
        })
    }
}

/// The file of a running sandbox.
pub(crate) struct JournalFile {
    path: PathBuf,
    /// What it tells of the sandbox's origin, while it is to be there.
    kept: Mutex<Option<Option<u64>>>,
}

impl JournalFile {
    pub(crate) fn new(dirs: &SandboxDirs) -> Arc<Self> {
        Arc::new(Self { path: dirs.journal(), kept: Mutex::new(None) })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Option<u64>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes it; `undo` removes it.
    pub(crate) fn keep(
        self: &Arc<Self>,
        live: &Live,
        origin: Option<u64>,
        undo: &mut UndoList,
    ) -> Result<(), Cause> {
        let file = Arc::clone(self);
        undo.push("what is written of the running sandbox", move |_| {
            let mut kept = file.lock();
            *kept = None;
            Ok(unless_missing(fs::remove_file(&file.path))?)
        });
        let mut kept = self.lock();
        write(&self.path, &Journal::of(live, origin)?)?;
        *kept = Some(origin);
        Ok(())
    }

    /// Writes it anew, as the sandbox has changed. A failure is told: a later process would take it for what it was.
    pub(crate) fn refresh(&self, live: &Live) -> Result<(), Cause> {
        let kept = self.lock();
        match *kept {
            Some(origin) => write(&self.path, &Journal::of(live, origin)?),
            None => Ok(()),
        }
    }
}

fn write(path: &Path, journal: &Journal) -> Result<(), Cause> {
    let staged = path.with_extension("new");
    let json =
        serde_json::to_vec(journal).map_err(|e| Cause::io("describe the sandbox in", path, e.into()))?;
    // It has the sandbox's token.
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&staged);
    let written = file.and_then(|mut file| file.write_all(&json)).and_then(|()| fs::rename(&staged, path));
    written.map_err(|source| {
        // Half of it, on a disk that is full.
        let _ = fs::remove_file(&staged);
        Cause::io("write", path, source)
    })
}

//! Where a host keeps things: one place that knows every path.
//!
//! ```text
//! <data>/host.json                      the host's id
//! <data>/lock                           held (flock) by the process that has the host open
//! <data>/images/, <data>/guest/         the image registry and the guest's kernel and initramfs
//! <data>/sandboxes/<id>/disk.cow        root-disk changes of the running sandbox
//! <data>/sandboxes/<id>/console.log     the guest's serial console and the monitor's own messages
//! <data>/sandboxes/<id>/layers/         memory layers, immutable
//! <data>/sandboxes/<id>/snapshots/<n>/  one complete snapshot; the highest number counts
//! <run>/<host>/<id>/                    sockets of a running sandbox
//! <run>/<host>/netns/                   network namespaces
//! ```
//!
//! Every component below the two roots is a validated id or a constant: nothing a caller passes as text becomes
//! part of a path.

use std::path::{Path, PathBuf};

use wrenn_base::{HostId, SandboxId};
use wrenn_storage::{LayerDir, SnapshotStore};

use crate::error::Cause;
use crate::step::unless_missing;

/// The two roots of a host.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    data: PathBuf,
    run: PathBuf,
}

impl Layout {
    pub(crate) fn new(data: PathBuf, run_root: &Path, host: &HostId) -> Self {
        Self { data, run: run_root.join(host.as_str()) }
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.data.join("sandboxes")
    }

    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    /// Where network namespaces get their names.
    pub(crate) fn netns(&self) -> PathBuf {
        self.run.join("netns")
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> SandboxDirs {
        SandboxDirs { data: self.sandboxes().join(id.as_str()), run: self.run.join(id.as_str()) }
    }
}

/// The two directories of one sandbox: durable data, and what lives only as long as its monitor.
#[derive(Debug, Clone)]
pub(crate) struct SandboxDirs {
    data: PathBuf,
    run: PathBuf,
}

impl SandboxDirs {
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.data.join("disk.cow")
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.data.join("console.log")
    }

    /// The directory of memory layers, made if it is not there.
    pub(crate) fn open_layers(&self) -> Result<LayerDir, Cause> {
        Ok(LayerDir::open(self.data.join("layers"))?)
    }

    pub(crate) fn snapshots(&self) -> SnapshotStore {
        SnapshotStore::new(self.data.join("snapshots"))
    }

    /// Removes all durable data of the sandbox; none being there is fine.
    pub(crate) fn remove_data(&self) -> Result<(), Cause> {
        unless_missing(std::fs::remove_dir_all(&self.data))
            .map_err(|source| Cause::io("remove", &self.data, source))
    }

    pub(crate) fn api_socket(&self) -> PathBuf {
        self.run.join("api.sock")
    }

    pub(crate) fn fault_socket(&self) -> PathBuf {
        self.run.join("uffd.sock")
    }
}

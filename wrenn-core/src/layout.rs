//! Where a host keeps things: one place that knows every path.
//!
//! ```text
//! <data>/host.json                      the host's id
//! <data>/lock                           held (flock) by the process that has the host open
//! <data>/images/, <data>/guest/         the image registry and the guest's kernel and initramfs
//! <data>/pager.log                      messages of the process that serves page faults
//! <data>/sandboxes/<id>/running.json    the running sandbox, for a process that finds it running
//! <data>/sandboxes/<id>/origin.manifest the memory that it began with, if that was another's, until it is paused
//! <data>/sandboxes/<id>/disk.cow        root-disk changes of the running sandbox
//! <data>/sandboxes/<id>/monitor/         what the running sandbox's monitor writes, until it is moved
//! <data>/sandboxes/<id>/console.log     the guest's serial console and the monitor's own messages
//! <data>/sandboxes/<id>/layers/         memory layers, immutable
//! <data>/sandboxes/<id>/snapshots/<n>/  one complete snapshot; the highest number counts
//! <data>/templates/<name>/              layers/ and snapshots/1/, as above
//! <data>/branches/                      what running sandboxes are branched from, while that goes on
//! <run>/<host>/<id>/                    sockets of a running sandbox
//! <run>/<host>/pager.sock               what serves page faults
//! <run>/<host>/netns/                   network namespaces
//! ```
//!
//! Every component below the two roots is a validated id, a validated name or a constant: nothing a caller passes as
//! text becomes part of a path.

use std::path::{Component, Path, PathBuf};

use wrenn_base::{HostId, SandboxId, TemplateName};
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

    /// Where the pager listens.
    pub(crate) fn pager_socket(&self) -> PathBuf {
        self.run.join("pager.sock")
    }

    pub(crate) fn pager_log(&self) -> PathBuf {
        self.data.join("pager.log")
    }

    /// Where network namespaces get their names.
    pub(crate) fn netns(&self) -> PathBuf {
        self.run.join("netns")
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> SandboxDirs {
        let store = StoreDir(component(&self.sandboxes(), id.as_str()));
        SandboxDirs { store, run: component(&self.run, id.as_str()) }
    }

    pub(crate) fn templates(&self) -> PathBuf {
        self.data.join("templates")
    }

    pub(crate) fn template(&self, name: &TemplateName) -> StoreDir {
        StoreDir(component(&self.templates(), name.as_str()))
    }

    /// Where snapshots of running sandboxes are while they are branched.
    pub(crate) fn branches(&self) -> PathBuf {
        self.data.join("branches")
    }
}

/// `name` in `dir`. Ids and names are made so that they cannot lead anywhere else; this is where that has to hold.
fn component(dir: &Path, name: &str) -> PathBuf {
    let mut parts = Path::new(name).components();
    let plain = parts.next() == Some(Component::Normal(name.as_ref())) && parts.next().is_none();
    assert!(plain, "{name:?} is no name of a directory");
    dir.join(name)
}

/// A directory of memory layers and of the snapshots that use them.
#[derive(Debug, Clone)]
pub(crate) struct StoreDir(PathBuf);

impl StoreDir {
    /// The store in a directory that was made for it.
    pub(crate) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The directory of memory layers, made if it is not there.
    pub(crate) fn open_layers(&self) -> Result<LayerDir, Cause> {
        Ok(LayerDir::open(self.0.join("layers"))?)
    }

    pub(crate) fn snapshots(&self) -> SnapshotStore {
        SnapshotStore::new(self.0.join("snapshots"))
    }

    /// The manifest of the memory of a sandbox that was made from another's snapshot, until it has one of its own.
    pub(crate) fn origin(&self) -> PathBuf {
        self.0.join("origin.manifest")
    }

    /// Removes all of it; nothing being there is fine.
    pub(crate) fn remove(&self) -> Result<(), Cause> {
        unless_missing(std::fs::remove_dir_all(&self.0))
            .map_err(|source| Cause::io("remove", &self.0, source))
    }
}

/// The two directories of one sandbox: durable data, and what lives only as long as its monitor.
#[derive(Debug, Clone)]
pub(crate) struct SandboxDirs {
    pub(crate) store: StoreDir,
    run: PathBuf,
}

impl SandboxDirs {
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.store.path().join("disk.cow")
    }

    /// What a later process has to know of the running sandbox.
    pub(crate) fn journal(&self) -> PathBuf {
        self.store.path().join("running.json")
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.store.path().join("console.log")
    }

    /// The one directory of data that the monitor sees; it belongs to the host.
    pub(crate) fn exchange(&self) -> PathBuf {
        self.store.path().join("monitor")
    }

    pub(crate) fn api_socket(&self) -> PathBuf {
        self.run.join("api.sock")
    }

    pub(crate) fn fault_socket(&self) -> PathBuf {
        self.run.join("uffd.sock")
    }

    pub(crate) fn freeze_socket(&self) -> PathBuf {
        self.run.join("freeze.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_directory() {
        let layout = Layout::new("/data".into(), Path::new("/run"), &HostId::random());
        let name: TemplateName = "a.b-c".parse().unwrap();
        assert_eq!(layout.template(&name).path(), Path::new("/data/templates/a.b-c"));
        for text in ["..", "a/b", "a/", "./a", "/etc", ".", ""] {
            let text = text.to_owned();
            assert!(std::panic::catch_unwind(|| component(Path::new("/data"), &text)).is_err(), "{text:?}");
        }
    }
}

//! Snapshots: `/snapshot/create` and `/snapshot/load`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::is_false;

/// The body of `PUT /snapshot/create`; the machine must be paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// Whether all of guest memory is written, or what changed; absent means [`SnapshotType::Full`].
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// The file that will hold the machine's state without its memory.
    pub snapshot_path: PathBuf,
    /// The file that will hold guest memory, region after region, with holes.
    pub mem_file_path: PathBuf,
}

/// How much of guest memory a snapshot writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SnapshotType {
    /// All of it: a hole in the file reads as zero.
    #[default]
    Full,
    /// The pages dirtied since the last snapshot or load: a hole means "unchanged".
    Diff,
}

/// The body of `PUT /snapshot/load`; only a monitor that has booted nothing takes it.
///
/// ```
/// use wrenn_vmm::api::{MemBackend, MemBackendType, SnapshotLoad};
/// let load = SnapshotLoad {
///     snapshot_path: "/snapshots/a/state".into(),
///     mem_backend: Some(MemBackend {
///         backend_type: MemBackendType::Uffd,
///         backend_path: "/run/a/uffd.sock".into(),
///     }),
///     track_dirty_pages: true,
///     resume_vm: true,
///     ..SnapshotLoad::default()
/// };
/// assert!(load.network_overrides.is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    /// The file that holds the machine's state.
    pub snapshot_path: PathBuf,
    /// Where guest memory comes from; exactly one of this and `mem_file_path` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemBackend>,
    /// The memory file (deprecated in Firecracker, use `mem_backend`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_file_path: Option<PathBuf>,
    /// Whether pages that the guest writes are logged from here on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub track_dirty_pages: bool,
    /// The former name of `track_dirty_pages` (deprecated in Firecracker).
    #[serde(default, skip_serializing_if = "is_false")]
    pub enable_diff_snapshots: bool,
    /// Whether the machine runs as soon as it is loaded; else it stays paused.
    #[serde(default, skip_serializing_if = "is_false")]
    pub resume_vm: bool,
    /// New TAP devices for the snapshot's network interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
    /// A new socket for the snapshot's vsock device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's kvmclock is advanced by the time that passed since the snapshot (x86_64).
    #[serde(default, skip_serializing_if = "is_false")]
    pub clock_realtime: bool,
    /// The host pages that back guest memory; absent means [`RestoredHugePages::Snapshot`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<RestoredHugePages>,
}

/// Where a restored machine's memory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemBackend {
    /// What `backend_path` names.
    pub backend_type: MemBackendType,
    /// The memory file, or the fault server's Unix socket.
    pub backend_path: PathBuf,
}

/// What serves a restored machine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemBackendType {
    /// A file, mapped privately.
    File,
    /// A fault server, over userfaultfd.
    Uffd,
}

/// A new TAP device for one network interface of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// The interface's name in the snapshot.
    pub iface_id: String,
    /// The TAP device that it gets.
    pub host_dev_name: String,
}

/// A new host socket for a snapshot's vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// The Unix socket's path.
    pub uds_path: PathBuf,
}

/// The host pages that back a restored machine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestoredHugePages {
    /// As it was when the snapshot was taken.
    #[default]
    Snapshot,
    /// The host's default.
    None,
    /// Transparent huge pages.
    Transparent,
    /// Explicit hugetlbfs pages of 2 MiB; needs a `Uffd` backend.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

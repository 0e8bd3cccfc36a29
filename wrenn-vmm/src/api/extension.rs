//! What `wrenn-monitor` offers beside Firecracker's API, under `/wrenn`. Asked for first, and never required.
//!
//! A snapshot taken this way has no memory file. The monitor saves everything else and says where guest memory is in
//! its address space; whoever started it reads the memory from there, as a debugger would. With a `freeze_socket` a
//! copy of the process, which shares the memory copy-on-write, keeps the memory as it is, and the machine itself may
//! run on at once.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{NetworkOverride, is_false};

/// The answer of `GET /wrenn`. Firecracker answers with a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extensions {
    /// The version of the extensions: each has all that the ones before it have.
    pub version: u32,
}

impl Extensions {
    /// The version described here.
    pub const CURRENT: Self = Self { version: 1 };
}

/// The body of `PUT /wrenn/snapshot/save`; the machine must be paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateSave {
    /// The file that will hold the machine's state without its memory. It is not brought to disk.
    pub snapshot_path: PathBuf,
    /// Where a copy of the process connects that holds the memory as it is now, for as long as the connection lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_socket: Option<PathBuf>,
}

/// The answer of `PUT /wrenn/snapshot/save`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMemory {
    /// Guest memory, in the order of the guest's addresses.
    pub regions: Vec<MemoryRegion>,
}

/// One contiguous piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Where it is in the monitor's address space.
    pub host_address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Where it begins in a memory image.
    pub offset: u64,
}

/// The body of `PUT /wrenn/snapshot/load`; only a monitor that has booted nothing takes it.
///
/// Guest memory is a private mapping of a memory cache, which the fault server hands over: what the guest reads is
/// shared with every other machine on the same cache, what it writes is its own. Those pages are its changes, so none
/// are logged.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CachedLoad {
    /// The file that holds the machine's state.
    pub snapshot_path: PathBuf,
    /// The fault server's Unix socket.
    pub cache_socket: PathBuf,
    /// Whether the machine runs as soon as it is loaded; else it stays paused.
    #[serde(default, skip_serializing_if = "is_false")]
    pub resume_vm: bool,
    /// New TAP devices for the snapshot's network interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
}

//! The guest's devices: `/drives/{id}`, `/network-interfaces/{id}` and `/entropy`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The body of `PUT /drives/{drive_id}`; the id of the path and of the body must agree.
///
/// ```
/// use wrenn_vmm::api::Drive;
/// let root = Drive {
///     drive_id: "root".into(),
///     is_root_device: true,
///     is_read_only: Some(false),
///     path_on_host: Some("/run/wrenn/vm/root.disk".into()),
///     ..Drive::default()
/// };
/// assert!(root.socket.is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// The drive's name: letters, digits and `_`.
    pub drive_id: String,
    /// Whether the monitor adds `root=/dev/vda` (or the partition) to the kernel's command line.
    pub is_root_device: bool,
    /// The root partition's unique id; heard only where `is_root_device` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// The backing file or device on the host; required unless `socket` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Whether the guest may write; required with `path_on_host`, forbidden with `socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_read_only: Option<bool>,
    /// What a guest's flush does; absent means [`CacheType::Unsafe`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<CacheType>,
    /// How the monitor reads and writes; absent means [`IoEngine::Sync`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// A limit on the drive's traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// The socket of a vhost-user-block backend, in place of `path_on_host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// What a drive does with the guest's flush requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CacheType {
    /// Flush is not offered: written data reaches the host's disk when the host likes.
    #[default]
    Unsafe,
    /// Flush is offered, and means `fsync` on the host.
    Writeback,
}

/// How a drive's file is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum IoEngine {
    /// `pread` and `pwrite`.
    #[default]
    Sync,
    /// `io_uring`.
    Async,
}

/// The body of `PUT /network-interfaces/{iface_id}`; the id of the path and of the body must agree.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// The interface's name: letters, digits and `_`.
    pub iface_id: String,
    /// The TAP device on the host, in the monitor's network namespace.
    pub host_dev_name: String,
    /// The guest's address, six hexadecimal bytes with colons; absent means one of the monitor's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// The MTU announced to the guest, 68 to 65535 bytes; absent means none is announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// A limit on what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// A limit on what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// The body of `PUT /entropy`: a virtio-rng device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyDevice {
    /// A limit on how much the guest draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// Independent limits on bytes and on operations; an absent bucket does not limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// The limit whose tokens are bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// The limit whose tokens are operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// A token bucket that refills at `size` tokens per `refill_time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// The number of tokens it holds.
    pub size: u64,
    /// Tokens on top of `size` that are given once, at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// How long an empty bucket takes to fill, in milliseconds.
    pub refill_time: u64,
}

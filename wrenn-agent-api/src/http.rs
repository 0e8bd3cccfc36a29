//! The bodies of the agent's plain HTTP routes, as JSON.
//!
//! Unknown fields are ignored on both sides, so that either may be newer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The body of `POST /init`: what the host tells the agent after a boot and after each resume.
///
/// An absent field leaves things as they are. The first one must bring a token.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitRequest {
    /// The sandbox's environment: replaces the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// The token that every later call must carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// The wall clock's time, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Who runs commands and owns files where a call names nobody. Empty means `root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Where commands run that name no directory. Empty means the user's home.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// The host name (Wrenn only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Fresh random bytes for the kernel's generator, base64 (Wrenn only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<String>,
    /// Says that the machine was restored from a snapshot: every other connection is dead and gets closed
    /// (Wrenn only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed: Option<bool>,
}

/// The body of an error of a plain route.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The HTTP status again.
    pub code: u16,
    /// What is wrong, for a person.
    pub message: String,
}

/// One element of the answer to `POST /files`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileEntry {
    /// The absolute path that was written.
    pub path: String,
    /// Its last component.
    pub name: String,
    /// Always `file`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The `X-Metadata-…` headers that were stored with the file, by lower-case key.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub metadata: BTreeMap<String, String>,
}

/// The answer to `GET /metrics`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// Seconds since 1970, by the guest's clock.
    pub ts: i64,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Load since the last call (at first: since boot), 100 for all CPUs busy.
    pub cpu_used_pct: f32,
    /// Memory in bytes.
    pub mem_total: u64,
    /// Memory in use, without caches, in bytes.
    pub mem_used: u64,
    /// Page cache in bytes.
    pub mem_cache: u64,
    /// `mem_total` in MiB.
    pub mem_total_mib: u64,
    /// `mem_used` in MiB.
    pub mem_used_mib: u64,
    /// Used bytes of the root file system.
    pub disk_used: u64,
    /// All bytes of the root file system.
    pub disk_total: u64,
}

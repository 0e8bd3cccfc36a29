//! What a sandbox is asked to be, checked before anything on the host is touched.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use wrenn_base::{Bytes, ImageName, MiB, TemplateName};

use crate::disk_limit::DiskLimit;
use crate::error::Cause;
use crate::lifetime::Lifetime;
use crate::network::NetworkPolicy;

/// The smallest guest that boots the default kernel and still has room to work.
pub(crate) const MIN_MEMORY: MiB = MiB(80);
/// What is given to a sandbox to be found by travels with each of its snapshots: it is to be labels, not files.
const MOST_METADATA: usize = 64;
const LONGEST_KEY: usize = 128;
const LONGEST_VALUE: usize = 4096;
/// A label of a DNS name.
const LONGEST_HOSTNAME: usize = 63;
/// What the monitors accept.
pub(crate) const MAX_VCPUS: u8 = 32;

/// A validated request for a sandbox. It travels with the sandbox's snapshots, so it has an on-disk form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxSpec {
    pub(crate) image: ImageName,
    pub(crate) vcpus: u8,
    pub(crate) memory: MiB,
    /// Size of the root disk; the image's own where absent.
    pub(crate) disk: Option<Bytes>,
    /// How fast that may be used; absent in snapshots from before there was a limit.
    #[serde(default)]
    pub(crate) disk_limit: Option<DiskLimit>,
    pub(crate) env: BTreeMap<String, String>,
    /// What the guest may reach; the default in snapshots from before there were policies.
    #[serde(default)]
    pub(crate) network: NetworkPolicy,
    /// As of the policy.
    #[serde(default)]
    pub(crate) lifetime: Lifetime,
    #[serde(default)]
    pub(crate) metadata: BTreeMap<String, String>,
    /// How long boot, or resume, may take until the agent answers, in milliseconds.
    pub(crate) ready_timeout_ms: u64,
    /// The guest's host name; the sandbox's id where absent.
    #[serde(default)]
    pub(crate) hostname: Option<String>,
    /// The template that it was made from.
    #[serde(default)]
    pub(crate) template: Option<TemplateName>,
    /// When it was asked for, in milliseconds since 1970; absent in snapshots from before that was noted.
    #[serde(default)]
    pub(crate) created_ms: Option<u64>,
}

impl SandboxSpec {
    /// Stands for the spec of a sandbox whose snapshot cannot be read, while that is being removed.
    pub(crate) fn unreadable() -> Self {
        Self {
            image: "unreadable".parse().expect("letters make a name"),
            vcpus: 0,
            memory: MiB(0),
            disk: None,
            disk_limit: None,
            env: BTreeMap::new(),
            network: NetworkPolicy::default(),
            lifetime: Lifetime::default(),
            metadata: BTreeMap::new(),
            ready_timeout_ms: 0,
            hostname: None,
            template: None,
            created_ms: None,
        }
    }

    pub(crate) fn ready_timeout(&self) -> Duration {
        Duration::from_millis(self.ready_timeout_ms)
    }

    pub(crate) fn set_ready_timeout(&mut self, limit: Duration) {
        self.ready_timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    }

    /// Checks every number against what this host can give; `host_memory` is its physical memory.
    pub(crate) fn check(&self, host_memory: Bytes) -> Result<(), Cause> {
        self.check_size(host_memory)?;
        self.check_env()?;
        self.check_metadata()?;
        self.check_hostname()?;
        if self.disk_limit.is_some_and(DiskLimit::is_zero) {
            return refuse("disk_limit", "zero leaves the guest no way to read its disk");
        }
        if self.lifetime.timeout_ms == Some(0) {
            return refuse("timeout", "zero leaves no time to do anything");
        }
        if self.ready_timeout_ms == 0 {
            return refuse("ready_timeout", "zero leaves no time to boot");
        }
        Ok(())
    }

    fn check_size(&self, host_memory: Bytes) -> Result<(), Cause> {
        let Self { vcpus, memory, .. } = self;
        if !(1..=MAX_VCPUS).contains(vcpus) {
            return refuse("vcpus", format!("{vcpus} is outside of 1 to {MAX_VCPUS}"));
        }
        if *memory < MIN_MEMORY {
            let why = format!("{memory} is less than the {MIN_MEMORY} that a guest needs to boot");
            return refuse("memory", why);
        }
        if memory.bytes() > host_memory {
            return refuse("memory", format!("{memory} is more than the {host_memory} that this host has"));
        }
        Ok(())
    }

    fn check_env(&self) -> Result<(), Cause> {
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                let why = "is not a variable's name: it is empty or has '=' or NUL in it";
                return refuse("env", format!("{name:?} {why}"));
            }
            if value.contains('\0') {
                return refuse("env", format!("the value of {name:?} has a NUL in it"));
            }
        }
        Ok(())
    }

    fn check_hostname(&self) -> Result<(), Cause> {
        let Some(name) = &self.hostname else { return Ok(()) };
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let sound = (1..=LONGEST_HOSTNAME).contains(&name.len()) && name.bytes().all(inner);
        if !sound || name.starts_with('-') || name.ends_with('-') {
            let why = format!(
                "it is 1 to {LONGEST_HOSTNAME} letters, digits and '-', which does not begin or end it"
            );
            return refuse("hostname", why);
        }
        Ok(())
    }

    fn check_metadata(&self) -> Result<(), Cause> {
        let entries = self.metadata.len();
        if entries > MOST_METADATA {
            return refuse("metadata", format!("{entries} entries are more than {MOST_METADATA}"));
        }
        for (key, value) in &self.metadata {
            if key.is_empty() || key.len() > LONGEST_KEY {
                let why = format!("a key has 1 to {LONGEST_KEY} bytes, and one has {}", key.len());
                return refuse("metadata", why);
            }
            if value.len() > LONGEST_VALUE {
                let why =
                    format!("the value of {key:?} has {} bytes, more than {LONGEST_VALUE}", value.len());
                return refuse("metadata", why);
            }
        }
        Ok(())
    }
}

/// The time as snapshots have it.
pub(crate) fn now_ms() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

fn refuse(what: &'static str, why: impl Into<String>) -> Result<(), Cause> {
    Err(Cause::InvalidSpec { what, why: why.into() })
}

/// The host's physical memory, from `MemTotal` of `/proc/meminfo`.
pub(crate) fn host_memory() -> Result<Bytes, Cause> {
    let path = "/proc/meminfo";
    let text = std::fs::read_to_string(path).map_err(|source| Cause::io("read", path, source))?;
    parse_mem_total(&text).ok_or_else(|| {
        Cause::io(
            "read MemTotal of",
            path,
            std::io::Error::new(std::io::ErrorKind::InvalidData, "no such line"),
        )
    })
}

fn parse_mem_total(meminfo: &str) -> Option<Bytes> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            image: "debian".parse().unwrap(),
            vcpus: 1,
            memory: MiB(128),
            disk: None,
            disk_limit: None,
            env: BTreeMap::new(),
            network: NetworkPolicy::default(),
            lifetime: Lifetime::default(),
            metadata: BTreeMap::new(),
            ready_timeout_ms: 1000,
            hostname: None,
            template: None,
            created_ms: None,
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut SandboxSpec), refused: Option<&str>) {
        let mut spec = spec();
        change(&mut spec);
        match (spec.check(MiB(1024).bytes()), refused) {
            (Ok(()), None) => {}
            (Err(Cause::InvalidSpec { what, .. }), Some(expected)) => assert_eq!(what, expected),
            (result, expected) => panic!("{result:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_sound_request_passes() {
        check(|_| {}, None);
        check(|s| s.memory = MiB(1024), None);
        check(|s| s.vcpus = MAX_VCPUS, None);
    }

    #[test]
    fn each_bad_number_is_named() {
        check(|s| s.vcpus = 0, Some("vcpus"));
        let limit = DiskLimit { requests_per_second: Some(0), ..DiskLimit::default() };
        check(|s| s.disk_limit = Some(limit), Some("disk_limit"));
        check(|s| s.vcpus = MAX_VCPUS + 1, Some("vcpus"));
        check(|s| s.memory = MiB(0), Some("memory"));
        check(|s| s.memory = MiB(1025), Some("memory"));
        check(|s| s.ready_timeout_ms = 0, Some("ready_timeout"));
        check(|s| s.lifetime.timeout_ms = Some(0), Some("timeout"));
        let label =
            |key: usize, value| move |s: &mut SandboxSpec| drop(s.metadata.insert("k".repeat(key), value));
        check(label(LONGEST_KEY, "v".repeat(LONGEST_VALUE)), None);
        check(label(0, String::new()), Some("metadata"));
        check(label(LONGEST_KEY + 1, String::new()), Some("metadata"));
        check(label(1, "v".repeat(LONGEST_VALUE + 1)), Some("metadata"));
        check(
            |s| s.metadata.extend((0..=MOST_METADATA).map(|n| (n.to_string(), String::new()))),
            Some("metadata"),
        );
        for name in ["", "A=B", "A\0"] {
            check(|s| drop(s.env.insert(name.into(), String::new())), Some("env"));
        }
        check(|s| drop(s.env.insert("A".into(), "\0".into())), Some("env"));
        for good in ["a", "Box-1", &"x".repeat(LONGEST_HOSTNAME)] {
            check(|s| s.hostname = Some(good.into()), None);
        }
        for bad in ["", "-a", "a-", "a.b", "a b", "ü", "a\n", &"x".repeat(LONGEST_HOSTNAME + 1)] {
            check(|s| s.hostname = Some(bad.into()), Some("hostname"));
        }
    }

    #[test]
    fn the_hosts_memory_is_read() {
        assert_eq!(parse_mem_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(Bytes(2 << 20)));
        assert_eq!(parse_mem_total("nothing"), None);
        assert!(host_memory().unwrap() > MiB(1).bytes());
    }
}

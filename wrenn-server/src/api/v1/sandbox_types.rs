//! Sandboxes as clients send and get them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use wrenn_host::Timeout;

use crate::api::{Code, Error, whole};
use crate::app::App;
use crate::db;
use crate::sandboxes::{self, State};

/// Idle for so long, a sandbox that nothing else was asked for is removed.
const DEFAULT_TIMEOUT_SECONDS: u32 = 300;
/// 30 days.
const MOST_TIMEOUT_SECONDS: u32 = 30 * 86_400;
const MOST_VCPUS: u8 = 32;
const MEMORY_MIB: std::ops::RangeInclusive<u32> = 80..=131_072;
const MOST_ENTRIES: usize = 60;

/// What becomes of a sandbox that was idle for its timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnTimeout {
    Destroy,
    Pause,
}

/// A sandbox.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Sandbox {
    #[schema(example = "k3v9x0q2m7b1c8za")]
    id: String,
    state: State,
    /// Why it is in that state, where that is not plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What it was made of: an image, or a snapshot.
    template: String,
    /// The sandbox that it is a branch of.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    vcpus: i32,
    memory_mib: i32,
    #[schema(value_type = BTreeMap<String, String>)]
    metadata: serde_json::Value,
    /// How long it may be idle; null: for ever.
    timeout_seconds: Option<i64>,
    on_timeout: String,
    /// When it expires, if nothing happens before.
    #[serde(with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    changed_at: OffsetDateTime,
    /// What previews of its ports are below, as `PORT-` and this.
    preview_domain: String,
}

impl Sandbox {
    pub(super) fn new(app: &App, row: db::sandboxes::Sandbox) -> Self {
        let state = row.state();
        Self {
            state,
            preview_domain: format!("{}.{}", row.id, app.config.domain),
            id: row.id,
            reason: row.reason,
            template: row.template,
            parent: row.parent,
            vcpus: row.vcpus,
            memory_mib: row.memory_mib,
            metadata: row.metadata,
            timeout_seconds: row.timeout_ms.map(|millis| millis / 1000),
            on_timeout: row.on_timeout,
            expires_at: row.expires_at.filter(|_| state == State::Running),
            created_at: row.created_at,
            changed_at: row.changed_at,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SandboxList {
    pub(super) sandboxes: Vec<Sandbox>,
    /// For the next page's `cursor`; null: there is none.
    pub(super) next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSandbox {
    /// A snapshot of the team's, or an image that hosts have.
    #[schema(example = "debian")]
    template: String,
    /// 1 where not set. A snapshot has its own.
    #[schema(minimum = 1, maximum = 32)]
    #[serde(default, deserialize_with = "whole::option")]
    vcpus: Option<u8>,
    /// 256 where not set. A snapshot has its own.
    #[schema(minimum = 80, maximum = 131_072)]
    #[serde(default, deserialize_with = "whole::option")]
    memory_mib: Option<u32>,
    /// Variables in the environment of every command.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// What it is to be found by.
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// How long it may be idle, in seconds: 300 where not set; 0: for ever.
    #[schema(maximum = 2_592_000)]
    #[serde(default, deserialize_with = "whole::option")]
    timeout_seconds: Option<u32>,
    on_timeout: Option<OnTimeout>,
    egress: Option<Egress>,
    #[schema(pattern = "^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$")]
    hostname: Option<String>,
}

/// How long a sandbox may be idle, and what becomes of it then.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTimeout {
    /// 300 where not set; 0: for ever.
    #[schema(maximum = 2_592_000)]
    #[serde(default, deserialize_with = "whole::option")]
    timeout_seconds: Option<u32>,
    on_timeout: Option<OnTimeout>,
}

impl NewTimeout {
    pub(super) fn checked(&self) -> Result<Timeout, Error> {
        timeout(self.timeout_seconds, self.on_timeout)
    }
}

impl Resume {
    /// The timeout, if one is asked for.
    pub(super) fn timeout(&self) -> Result<Option<Timeout>, Error> {
        set_timeout(self.timeout_seconds, self.on_timeout)
    }
}

impl NewBranches {
    /// The timeout, if one is asked for.
    pub(super) fn timeout(&self) -> Result<Option<Timeout>, Error> {
        set_timeout(self.timeout_seconds, self.on_timeout)
    }
}

fn set_timeout(seconds: Option<u32>, then: Option<OnTimeout>) -> Result<Option<Timeout>, Error> {
    if seconds.is_none() && then.is_none() { Ok(None) } else { timeout(seconds, then).map(Some) }
}

fn timeout(seconds: Option<u32>, then: Option<OnTimeout>) -> Result<Timeout, Error> {
    let seconds = seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    if seconds > MOST_TIMEOUT_SECONDS {
        return Err(Code::InvalidRequest.because(format!("timeout_seconds: at most {MOST_TIMEOUT_SECONDS}")));
    }
    let then = match then.unwrap_or(OnTimeout::Destroy) {
        OnTimeout::Destroy => wrenn_host::OnTimeout::Destroy,
        OnTimeout::Pause => wrenn_host::OnTimeout::Pause,
    };
    Ok(Timeout { after: (seconds > 0).then(|| Duration::from_secs(seconds.into())), then })
}

/// What a guest may reach. The hosts' own addresses and other sandboxes it never reaches.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Egress {
    /// Whether it begins with the internet, without private networks; or with nothing.
    internet: bool,
    #[serde(default)]
    allow: Vec<EgressRule>,
    /// Blocks of IPv4 addresses that win over all that is allowed.
    #[serde(default)]
    deny: Vec<String>,
    /// Whether it may ask for names; where not set: if it has the internet.
    dns: Option<bool>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct EgressRule {
    /// A block of IPv4 addresses, a DNS name, or a pattern of names.
    #[schema(example = "*.example.org")]
    to: String,
    protocol: Option<Protocol>,
    /// Only this port.
    #[schema(minimum = 1, maximum = 65_535)]
    port: Option<u16>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    Tcp,
    Udp,
}

impl Egress {
    fn into_host(self) -> Result<wrenn_host::Egress, Error> {
        let rules = self.allow.len() + self.deny.len();
        if rules > 256 || self.allow.iter().map(|rule| &rule.to).chain(&self.deny).any(|to| to.len() > 300) {
            return Err(Code::InvalidRequest.because("egress: at most 256 rules, each of at most 300 bytes"));
        }
        if self.allow.iter().any(|rule| rule.port == Some(0)) {
            return Err(Code::InvalidRequest.because("egress.allow: ports are from 1 to 65535"));
        }
        let rule = |rule: EgressRule| wrenn_host::EgressRule {
            to: rule.to,
            protocol: rule.protocol.map(|protocol| match protocol {
                Protocol::Tcp => wrenn_host::Protocol::Tcp,
                Protocol::Udp => wrenn_host::Protocol::Udp,
            }),
            ports: rule.port.map(|port| (port, port)),
        };
        let allow = self.allow.into_iter().map(rule).collect();
        Ok(wrenn_host::Egress { internet: self.internet, allow, deny: self.deny, dns: self.dns })
    }
}

impl NewSandbox {
    pub(super) fn checked(self) -> Result<sandboxes::NewSandbox, Error> {
        let invalid = |message: String| Err(Code::InvalidRequest.because(message));
        if self.vcpus.is_some_and(|vcpus| !(1..=MOST_VCPUS).contains(&vcpus)) {
            return invalid(format!("vcpus: from 1 to {MOST_VCPUS}"));
        }
        if self.memory_mib.is_some_and(|memory| !MEMORY_MIB.contains(&memory)) {
            return invalid(format!("memory_mib: from {} to {}", MEMORY_MIB.start(), MEMORY_MIB.end()));
        }
        if let Some(hostname) = &self.hostname
            && !is_hostname(hostname)
        {
            return invalid(
                "hostname: 1 to 63 letters, digits and dashes, none of these at an end".to_owned(),
            );
        }
        check_env(&self.env)?;
        check_metadata(&self.metadata)?;
        Ok(sandboxes::NewSandbox {
            timeout: timeout(self.timeout_seconds, self.on_timeout)?,
            egress: self.egress.map(Egress::into_host).transpose()?,
            template: self.template,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            env: self.env,
            metadata: self.metadata,
            hostname: self.hostname,
            id_variable: None,
        })
    }
}

fn is_hostname(text: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(fine) && !text.starts_with('-') && !text.ends_with('-')
}

pub(crate) fn check_env(env: &BTreeMap<String, String>) -> Result<(), Error> {
    let total: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    let fine = |name: &String, value: &String| {
        !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
    };
    if total > 64 << 10 || env.len() > 1000 || !env.iter().all(|(name, value)| fine(name, value)) {
        return Err(
            Code::InvalidRequest.because("env: at most 64 KiB, no name empty or with `=`, and no NUL")
        );
    }
    Ok(())
}

pub(crate) fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), Error> {
    let fine = |key: &String, value: &String| {
        (1..=128).contains(&key.len()) && value.len() <= 4096 && !key.contains('\0') && !value.contains('\0')
    };
    if metadata.len() > MOST_ENTRIES || !metadata.iter().all(|(key, value)| fine(key, value)) {
        return Err(Code::InvalidRequest.because(
            "metadata: at most 60 entries, keys of 1 to 128 bytes, values of up to 4096, and no NUL",
        ));
    }
    Ok(())
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Resume {
    /// The timeout from now on, in seconds; as it was where neither this nor `on_timeout` is set.
    #[schema(maximum = 2_592_000)]
    #[serde(default, deserialize_with = "whole::option")]
    timeout_seconds: Option<u32>,
    on_timeout: Option<OnTimeout>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBranches {
    /// How many.
    #[schema(minimum = 1, maximum = 64)]
    #[serde(default = "one")]
    pub(super) count: usize,
    /// Beside what the sandbox itself has.
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, String>,
    /// In seconds; as the sandbox itself where neither this nor `on_timeout` is set.
    #[schema(maximum = 2_592_000)]
    #[serde(default, deserialize_with = "whole::option")]
    timeout_seconds: Option<u32>,
    on_timeout: Option<OnTimeout>,
}

fn one() -> usize {
    1
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Branches {
    pub(super) sandboxes: Vec<Sandbox>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Metrics {
    /// Processor time since its machine was started.
    pub(super) cpu_seconds: f64,
    pub(super) memory_resident_bytes: u64,
    pub(super) memory_mib: i32,
    pub(super) vcpus: i32,
    pub(super) disk_allocated_bytes: u64,
    pub(super) network_received_bytes: u64,
    pub(super) network_sent_bytes: u64,
}

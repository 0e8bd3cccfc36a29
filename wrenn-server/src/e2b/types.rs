//! Sandboxes as clients of E2B send and get them.
//!
//! What a client sends and this server does not know is passed over, as newer clients send more. What it knows and cannot do
//! is refused by name.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use wrenn_host::{Egress, EgressRule, OnTimeout, Timeout};

use super::ends::Lifecycle;
use super::error::{Error, ErrorBody};
use crate::api::{check_env, check_metadata};
use crate::app::App;
use crate::db::sandboxes::Sandbox as Row;
use crate::sandboxes::{self, State};

/// The version of the agent's wire that clients go by.
const ENVD_VERSION: &str = "0.6.13";
/// The name that E2B's clients ask for where their users name none.
const BASE: &str = "base";
/// 30 days.
const MOST_TIMEOUT_SECONDS: i64 = 30 * 86_400;
const MOST_RULES: usize = 256;
const EVERYTHING: &str = "0.0.0.0/0";

/// A timeout in seconds, checked.
pub(super) fn seconds(asked: i64) -> Result<Duration, Error> {
    match u64::try_from(asked) {
        Ok(fine) if asked <= MOST_TIMEOUT_SECONDS => Ok(Duration::from_secs(fine)),
        _ => Err(Error::bad_request(format!("timeout: from 0 to {MOST_TIMEOUT_SECONDS} seconds"))),
    }
}

/// A timeout for a sandbox that is to live at least for a moment.
pub(super) fn some_seconds(asked: i64) -> Result<Duration, Error> {
    seconds(asked).and_then(|timeout| {
        if timeout.is_zero() { Err(Error::bad_request("timeout: at least one second")) } else { Ok(timeout) }
    })
}

/// What a template is called here.
pub(super) fn template(app: &App, name: &str) -> String {
    if name == BASE { app.config.e2b_base.clone() } else { name.to_owned() }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewSandbox {
    #[serde(rename = "templateID")]
    template_id: String,
    pub(super) timeout: Option<i64>,
    metadata: Option<BTreeMap<String, String>>,
    env_vars: Option<BTreeMap<String, String>>,
    auto_pause: Option<bool>,
    auto_pause_memory: Option<bool>,
    auto_resume: Option<AutoResume>,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    network: Option<Network>,
    iam: Option<Value>,
    volume_mounts: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct AutoResume {
    enabled: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Network {
    allow_out: Option<Vec<String>>,
    deny_out: Option<Vec<String>>,
    allow_public_traffic: Option<bool>,
    dns_servers: Option<Value>,
    mask_request_host: Option<Value>,
    https_ports: Option<Value>,
    egress_proxy: Option<Value>,
    rules: Option<Value>,
}

/// Whether a field says nothing: it is missing, null or empty.
fn says_nothing(field: Option<&Value>) -> bool {
    match field {
        None | Some(Value::Null) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    }
}

impl Network {
    /// What the guest may reach. `None`: what it may by default.
    fn egress(self, internet: bool) -> Result<Option<Egress>, Error> {
        let strange = [
            ("network.dnsServers", &self.dns_servers),
            ("network.maskRequestHost", &self.mask_request_host),
            ("network.httpsPorts", &self.https_ports),
            ("network.egressProxy", &self.egress_proxy),
            ("network.rules", &self.rules),
        ];
        if let Some((name, _)) = strange.iter().find(|(_, field)| !says_nothing(field.as_ref())) {
            return Err(Error::unsupported(name));
        }
        if self.allow_public_traffic == Some(false) {
            return Err(Error::unsupported("network.allowPublicTraffic: false"));
        }
        let (allow, deny) = (self.allow_out.unwrap_or_default(), self.deny_out.unwrap_or_default());
        if allow.len() + deny.len() > MOST_RULES || allow.iter().chain(&deny).any(|to| to.len() > 300) {
            return Err(Error::bad_request(format!(
                "network: at most {MOST_RULES} rules, each of at most 300 bytes"
            )));
        }
        let nothing_else = !internet || deny.iter().any(|to| to == EVERYTHING);
        if nothing_else {
            let allow = allow.into_iter().map(|to| EgressRule { to, protocol: None, ports: None }).collect();
            return Ok(Some(Egress { internet: false, allow, deny: Vec::new(), dns: None }));
        }
        if deny.is_empty() {
            // All is allowed already.
            return Ok(None);
        }
        if !allow.is_empty() {
            // There what is allowed wins, here what is denied.
            return Err(Error::unsupported("network.allowOut beside a denyOut of less than 0.0.0.0/0"));
        }
        Ok(Some(Egress { internet: true, allow: Vec::new(), deny, dns: None }))
    }
}

impl NewSandbox {
    /// The sandbox that is asked for, and whether requests are to resume it.
    pub(super) fn checked(
        self,
        app: &App,
        timeout: Duration,
    ) -> Result<(sandboxes::NewSandbox, bool), Error> {
        for (name, field) in [("iam", &self.iam), ("volumeMounts", &self.volume_mounts)] {
            if !says_nothing(field.as_ref()) {
                return Err(Error::unsupported(name));
            }
        }
        let pauses = self.auto_pause.unwrap_or(false);
        if pauses && self.auto_pause_memory == Some(false) {
            return Err(Error::unsupported("autoPauseMemory: false"));
        }
        let auto_resume = self.auto_resume.is_some_and(|auto| auto.enabled);
        if auto_resume && !pauses {
            return Err(Error::bad_request(
                "autoResume: only of a sandbox that is paused at its timeout (autoPause)",
            ));
        }
        let template = template(app, &self.template_id);
        let mut env = self.env_vars.unwrap_or_default();
        check_env(&env)?;
        for (name, value) in [("E2B_SANDBOX", "true"), ("E2B_TEMPLATE_ID", &self.template_id)] {
            env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        let metadata = self.metadata.unwrap_or_default();
        check_metadata(&metadata)?;
        let egress = self.network.unwrap_or_default().egress(self.allow_internet_access.unwrap_or(true))?;
        let then = if pauses { OnTimeout::Pause } else { OnTimeout::Destroy };
        let new = sandboxes::NewSandbox {
            template,
            vcpus: None,
            memory_mib: None,
            env,
            metadata,
            timeout: Timeout { after: Some(timeout), then },
            egress,
            hostname: None,
            id_variable: Some("E2B_SANDBOX_ID"),
        };
        Ok((new, auto_resume))
    }
}

/// A sandbox as its creator and whoever connects to it get it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sandbox {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    /// Of no use to anyone, but read.
    #[serde(rename = "clientID")]
    client_id: &'static str,
    envd_version: &'static str,
    envd_access_token: String,
    domain: String,
}

impl Sandbox {
    pub(super) fn new(app: &App, row: Row) -> Self {
        Self {
            envd_access_token: app.e2b.tokens.of(&row.id),
            domain: app.config.domain.clone(),
            template_id: row.template,
            sandbox_id: row.id,
            client_id: "wrenn",
            envd_version: ENVD_VERSION,
        }
    }
}

/// A sandbox as lists have it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    envd_version: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    end_at: OffsetDateTime,
    cpu_count: i32,
    #[serde(rename = "memoryMB")]
    memory_mb: i32,
    /// The control plane does not know how large disks are: the sandbox's own metrics do.
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: i32,
    metadata: Value,
    state: &'static str,
}

/// What a sandbox is to clients that know two states; `None` where it is neither.
pub(super) fn plain_state(state: State) -> Option<&'static str> {
    match state {
        State::Running | State::Pausing => Some("running"),
        State::Paused | State::Resuming => Some("paused"),
        _ => None,
    }
}

impl Listed {
    /// `None`: it is being made or removed.
    pub(super) fn new(row: Row, lifecycle: &Lifecycle) -> Option<Self> {
        Some(Self {
            state: plain_state(row.state())?,
            end_at: lifecycle.ends_at,
            template_id: row.template,
            sandbox_id: row.id,
            client_id: "wrenn",
            envd_version: ENVD_VERSION,
            started_at: row.created_at,
            cpu_count: row.vcpus,
            memory_mb: row.memory_mib,
            disk_size_mb: 0,
            metadata: row.metadata,
        })
    }
}

/// A sandbox with all that is told of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Detail {
    #[serde(flatten)]
    listed: Listed,
    envd_access_token: String,
    domain: String,
    lifecycle: WhatThen,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WhatThen {
    auto_resume: bool,
    on_timeout: &'static str,
}

impl Detail {
    pub(super) fn new(app: &App, row: Row, lifecycle: &Lifecycle) -> Option<Self> {
        let on_timeout = if row.on_timeout == "pause" { "pause" } else { "kill" };
        Some(Self {
            envd_access_token: app.e2b.tokens.of(&row.id),
            domain: app.config.domain.clone(),
            lifecycle: WhatThen { auto_resume: lifecycle.auto_resume, on_timeout },
            listed: Listed::new(row, lifecycle)?,
        })
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Connect {
    pub(super) timeout: Option<i64>,
    pub(super) memory: Option<bool>,
    #[serde(rename = "autoPause")]
    pub(super) auto_pause: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Pause {
    pub(super) memory: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NewTimeout {
    pub(super) timeout: i64,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Refresh {
    pub(super) duration: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Fork {
    pub(super) timeout: Option<i64>,
    pub(super) count: Option<usize>,
}

/// What became of one branch.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Forked {
    Sandbox(Sandbox),
    Error(ErrorBody),
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct NewSnapshot {
    pub(super) name: Option<String>,
    pub(super) memory: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(super) struct Snapshot {
    #[serde(rename = "snapshotID")]
    pub(super) snapshot_id: String,
    pub(super) names: Vec<String>,
}

/// What a sandbox uses, at a time.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metric {
    #[serde(with = "time::serde::rfc3339")]
    pub(super) timestamp: OffsetDateTime,
    pub(super) timestamp_unix: i64,
    pub(super) cpu_count: u32,
    pub(super) cpu_used_pct: f32,
    pub(super) mem_used: u64,
    pub(super) mem_total: u64,
    pub(super) mem_cache: u64,
    pub(super) disk_used: u64,
    pub(super) disk_total: u64,
}

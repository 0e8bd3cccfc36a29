//! The instance as a whole: `/`, `/version`, `/actions`, `/vm`, `/logger`, and the error body.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::is_false;

/// The answer of `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// The program: `Firecracker` or `wrenn-monitor`.
    pub app_name: String,
    /// The id that the monitor was started with.
    pub id: String,
    /// What the machine is doing.
    pub state: InstanceState,
    /// The program's version.
    pub vmm_version: String,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstanceState {
    /// Nothing has been booted or loaded.
    #[serde(rename = "Not started")]
    NotStarted,
    /// The vCPUs run.
    Running,
    /// The vCPUs are parked.
    Paused,
}

/// The answer of `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The monitor's version.
    pub firecracker_version: String,
}

/// The body of `PUT /actions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What to do.
    pub action_type: ActionType,
}

/// What a monitor can be told to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionType {
    /// Write the metrics out now.
    FlushMetrics,
    /// Boot the configured machine.
    InstanceStart,
    /// Press Ctrl+Alt+Del in the guest.
    SendCtrlAltDel,
}

/// The body of `PATCH /vm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmStateUpdate {
    /// The state that the machine is to take.
    pub state: VmState,
}

/// The states that a running machine can be put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// The vCPUs are parked.
    Paused,
    /// The vCPUs run.
    Resumed,
}

/// The body of `PUT /logger`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// The file or named pipe that is appended to; absent means standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// The least severe level that is written; absent means [`LogLevel::Info`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Whether each line names its level.
    #[serde(default, skip_serializing_if = "is_false")]
    pub show_level: bool,
    /// Whether each line names the source line that wrote it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub show_log_origin: bool,
    /// The module whose messages alone are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// A log level; read in any mixture of cases, as Firecracker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub enum LogLevel {
    /// Nothing at all.
    Off,
    /// What went wrong.
    Error,
    /// What may go wrong. Also read as `Warn`.
    Warning,
    /// What happens.
    #[default]
    Info,
    /// How it happens.
    Debug,
    /// Everything.
    Trace,
}

/// A text that names no log level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownLogLevel(String);

impl fmt::Display for UnknownLogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown log level {:?}: it is one of Off, Error, Warning, Info, Debug and Trace", self.0)
    }
}

impl std::error::Error for UnknownLogLevel {}

impl FromStr for LogLevel {
    type Err = UnknownLogLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLogLevel> {
        const NAMES: [(&str, LogLevel); 7] = [
            ("off", LogLevel::Off),
            ("error", LogLevel::Error),
            ("warning", LogLevel::Warning),
            ("warn", LogLevel::Warning),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ];
        let named = NAMES.iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
        named.map(|(_, level)| *level).ok_or_else(|| UnknownLogLevel(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for LogLevel {
    type Error = UnknownLogLevel;

    fn try_from(text: String) -> Result<Self, UnknownLogLevel> {
        text.parse()
    }
}

/// The body of every answer that reports a failure.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ApiError {
    /// What was wrong.
    #[serde(default)]
    pub fault_message: String,
}

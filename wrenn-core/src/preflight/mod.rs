//! What this machine must have before a sandbox can run on it.
//!
//! [`devices`] is looked at before each sandbox is started, so that a host that cannot run one says so before anything
//! is created. [`Preflight`] looks at everything, changes nothing that stays, and tells of each thing whether it is
//! there, why it counts, and what to do about it.

mod checks;
pub(crate) mod devices;

use std::fmt;

/// What a check looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Subject {
    /// Hardware virtualisation, by way of `/dev/kvm`.
    Kvm,
    /// Page faults served from outside of a guest, for lazy resume.
    Userfaultfd,
    /// The device-mapper's snapshot target, and loop devices, for root disks that share their image.
    DeviceMapper,
    /// Clones of files without copying, in the data directory.
    Reflinks,
    /// TAP devices, for a guest's network.
    Tun,
    /// Network namespaces and nftables, for what a guest may reach.
    Nftables,
    /// Control groups, version 2, for limits.
    Cgroups,
    /// Free space in the data directory.
    DiskSpace,
    /// The monitor program.
    Monitor,
    /// The program that pages memory in.
    Pager,
    /// The kernel and the initramfs that guests boot.
    GuestFiles,
    /// At least one image.
    Images,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Userfaultfd => "userfaultfd",
            Self::DeviceMapper => "device-mapper",
            Self::Reflinks => "reflinks",
            Self::Tun => "TAP devices",
            Self::Nftables => "nftables",
            Self::Cgroups => "cgroups",
            Self::DiskSpace => "disk space",
            Self::Monitor => "monitor",
            Self::Pager => "pager",
            Self::GuestFiles => "guest kernel",
            Self::Images => "images",
        })
    }
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Sandboxes run without it, but slower, or with less protection.
    Lacking,
    /// No sandbox can run without it.
    Missing,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "good",
            Self::Lacking => "lacking",
            Self::Missing => "missing",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// What it is about.
    pub subject: Subject,
    /// What it came to.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; none where it is as it should be.
    pub remedy: Option<String>,
}

impl Check {
    fn good(subject: Subject, found: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Good, found: found.into(), remedy: None }
    }

    fn lacking(subject: Subject, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Lacking, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn missing(subject: Subject, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Missing, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// Everything that a host needs of its machine, looked at once; see
/// [`HostBuilder::preflight`](crate::HostBuilder::preflight).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    checks: Vec<Check>,
}

impl Preflight {
    /// All checks, those that everything depends on first.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Whether sandboxes can run: nothing is missing.
    pub fn is_ready(&self) -> bool {
        self.checks.iter().all(|check| check.verdict != Verdict::Missing)
    }

    /// The check of `subject`.
    pub fn of(&self, subject: Subject) -> Option<&Check> {
        self.checks.iter().find(|check| check.subject == subject)
    }
}

pub(crate) use checks::{Inputs, look};

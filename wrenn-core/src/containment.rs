//! What the monitors of a host are held in, and how much of the machine each may use.
//!
//! **A user for each sandbox**, not one for all: were the wall between two monitors ever to fail (a namespace, a mount, a
//! signal), they still could do nothing to each other's processes and files. The users are those from
//! [`ContainmentPolicy::first_user`] on, one for each index of a network slot: no two sandboxes of a machine have the same
//! slot, whatever host they are of, so nothing more has to be claimed.
//!
//! **What a monitor sees of the data directory** is one directory of its sandbox, `monitor/`, which stays the host's: a
//! file is made there for the monitor to write, and moved to where it belongs once it is written. What it is to read is
//! copied to the runtime directory, or shown to it as it is. Nothing that the monitor could have put in the place of
//! something else is ever followed.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};

use wrenn_base::UndoList;
use wrenn_net::Slot;
use wrenn_vmm::{CgroupTree, CgroupTreeSpec, Containment, Controller, Limits, MonitorProcess, VmmError};

use crate::error::Cause;
use crate::layout::SandboxDirs;
use crate::spec::SandboxSpec;
use crate::step::unless_missing;

/// In the range that is left alone by distributions, containers and systemd (its `UIDS-GIDS` document): 0x70000000 on.
const FIRST_USER: u32 = 0x7000_0000;
/// What a monitor and the kernel need beside guest memory, whatever its size: code, stacks, buffers, sockets.
const MEMORY_OVERHEAD: u64 = 64 << 20;
/// The part of guest memory that is needed once more: two sets of page tables, and what is kept of each page.
const MEMORY_OVERHEAD_PART: u64 = 32;
/// For the threads that are no vCPUs: the disk's and the network's work is not to be at the guest's expense.
const CPU_OVERHEAD_PERCENT: u32 = 50;
/// Threads that are no vCPUs, the kernel's for KVM among them, and the copy of the process that freezes memory.
const OTHER_TASKS: u32 = 16;

/// How the monitors of a host are contained; see [`HostBuilder::containment`](crate::HostBuilder::containment).
///
/// ```
/// use wrenn_core::{ContainmentPolicy, Controller};
/// let strict = ContainmentPolicy { required: vec![Controller::Memory], ..ContainmentPolicy::default() };
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainmentPolicy {
    /// Whether monitors are contained at all: off only to look for a fault. They then run as this process does, but for
    /// their network, their disk and their filter of system calls.
    pub enabled: bool,
    /// The first of the users, and groups, that monitors run as; each network slot has one. Nobody else may have any
    /// of them.
    pub first_user: u32,
    /// The cgroup controllers without which the host is not to open. A limit whose controller is missing is not in
    /// force otherwise, and a warning says so.
    pub required: Vec<Controller>,
}

impl Default for ContainmentPolicy {
    fn default() -> Self {
        Self { enabled: true, first_user: FIRST_USER, required: Vec::new() }
    }
}

/// What a host's monitors are contained with.
#[derive(Debug)]
pub(crate) struct Cells {
    policy: ContainmentPolicy,
    cgroups: Option<CgroupTree>,
}

impl Cells {
    /// Makes the host's cgroups, as far as the machine has such.
    pub(crate) fn open(
        policy: ContainmentPolicy,
        cgroups: CgroupTreeSpec,
        undo: &mut UndoList,
    ) -> Result<Self, Cause> {
        if !policy.enabled {
            return Ok(Self { policy, cgroups: None });
        }
        let spec = CgroupTreeSpec { required: policy.required.clone(), ..cgroups };
        let cgroups = match CgroupTree::open(spec, undo) {
            Ok(tree) => {
                if !tree.missing().is_empty() {
                    let missing: Vec<_> = tree.missing().iter().map(|it| it.name()).collect();
                    tracing::warn!(?missing, "cgroup controllers are missing: those limits are not in force");
                }
                Some(tree)
            }
            Err(error) if policy.required.is_empty() => {
                tracing::warn!(%error, "sandboxes have no limits but their machines' sizes");
                None
            }
            Err(error) => return Err(VmmError::from(error).into()),
        };
        Ok(Self { policy, cgroups })
    }

    /// Where the monitors' cgroups are.
    pub(crate) fn cgroups(&self) -> Option<&CgroupTree> {
        self.cgroups.as_ref()
    }

    /// The containment of the monitor of one sandbox, which is to read `readable`.
    pub(crate) fn of(
        &self,
        spec: &SandboxSpec,
        dirs: &SandboxDirs,
        slot: &Slot,
        readable: Vec<PathBuf>,
    ) -> Option<Containment> {
        if !self.policy.enabled {
            return None;
        }
        let mut containment = Containment::new(self.policy.first_user.saturating_add(slot.index().into()));
        containment.readable = readable;
        containment.writable = vec![dirs.exchange()];
        containment.cgroup = self.cgroup_of(spec);
        Some(containment)
    }

    /// Where the cgroup of such a sandbox's monitor is, and its limits.
    pub(crate) fn cgroup_of(&self, spec: &SandboxSpec) -> Option<(CgroupTree, Limits)> {
        self.cgroups.clone().map(|tree| (tree, limits(spec)))
    }
}

/// What the monitor of such a sandbox may use.
fn limits(spec: &SandboxSpec) -> Limits {
    let (vcpus, memory) = (u32::from(spec.vcpus), spec.memory.bytes().get());
    Limits {
        cpu_percent: Some(vcpus * 100 + CPU_OVERHEAD_PERCENT),
        memory: Some(memory + memory / MEMORY_OVERHEAD_PART + MEMORY_OVERHEAD),
        pids: Some(vcpus + OTHER_TASKS),
    }
}

/// A file that a monitor writes for the host.
#[derive(Debug)]
pub(crate) struct Outgoing(PathBuf);

impl Outgoing {
    /// Makes it, empty. What an attempt before this one left is removed.
    pub(crate) fn new(dirs: &SandboxDirs, monitor: &MonitorProcess, name: &str) -> Result<Self, Cause> {
        let path = dirs.exchange().join(name);
        let made = unless_missing(fs::remove_file(&path))
            .and_then(|()| OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path));
        made.map_err(|source| Cause::io("create", &path, source))?;
        let file = Self(path);
        monitor.give(&file.0)?;
        Ok(file)
    }

    /// What the monitor is to call it.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Takes it from the monitor to `target`, on the same file system.
    pub(crate) fn take(self, target: &Path) -> Result<(), Cause> {
        take_over(&self.0)
            .and_then(|()| fs::rename(&self.0, target))
            .map_err(|source| Cause::io("move a file of the monitor's to", target, source))
    }
}

impl Drop for Outgoing {
    /// What was not taken is half of something.
    fn drop(&mut self) {
        if let Err(e) = unless_missing(fs::remove_file(&self.0)) {
            tracing::warn!(file = %self.0.display(), error = %e, "a file of a monitor's could not be removed");
        }
    }
}

/// Makes what a monitor's user has the host's.
pub(crate) fn take_over(path: &Path) -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    lchown(path, Some(user.as_raw()), Some(group.as_raw()))
}

/// A copy of the small file `from` for the monitor to read, beside the sockets: that is no disk that could be full.
pub(crate) fn copy_in(dirs: &SandboxDirs, from: &Path, name: &str) -> Result<PathBuf, Cause> {
    let path = dirs.run().join(name);
    fs::copy(from, &path).map_err(|source| Cause::io("copy", from, source))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wrenn_base::MiB;

    use super::*;
    use crate::lifetime::Lifetime;
    use crate::network::NetworkPolicy;

    #[test]
    fn limits_grow_with_the_sandbox() {
        let mut spec = SandboxSpec {
            image: "debian".parse().unwrap(),
            vcpus: 1,
            memory: MiB(256),
            disk: None,
            disk_limit: None,
            env: BTreeMap::new(),
            network: NetworkPolicy::default(),
            lifetime: Lifetime::default(),
            metadata: BTreeMap::new(),
            ready_timeout_ms: 1,
            hostname: None,
            template: None,
            created_ms: None,
        };
        let small = limits(&spec);
        assert_eq!((small.cpu_percent, small.pids), (Some(150), Some(17)));
        assert_eq!(small.memory, Some((256 + 8 + 64) << 20));
        (spec.vcpus, spec.memory) = (32, MiB(u32::MAX));
        assert!(limits(&spec).memory > small.memory, "no size overflows");
        assert_eq!(limits(&spec).cpu_percent, Some(3250));
    }
}

//! What a killed process left on the machine under this host's id, removed before anything new is made.
//!
//! The data directory's lock is held, so nothing of the id belongs to another program, and no snapshot that is
//! complete is touched. Sandboxes that can be gone on with ([`recovery`](crate::recovery)) are left alone, with all that
//! they stand on. Of the others monitors go first: they hold their disk and their network open. What cannot be removed is
//! reported and left: it is in the way of one sandbox at most, not of the host.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use wrenn_base::{Deadline, SandboxId};
use wrenn_net::{HostNet, SlotPool};
use wrenn_storage::{RootDisks, durable};
use wrenn_vmm::CgroupTree;

use crate::capture;
use crate::error::Cause;
use crate::layout::Layout;
use crate::paging;
use crate::recovery::Survivor;
use crate::step::unless_missing;
use crate::stored::Stored;

/// How long a killed monitor may take to be gone, and then a disk to be free.
const LIMIT: Duration = Duration::from_secs(10);

/// Removes the leftovers of every sandbox of this host, and unfinished sandboxes that have no snapshot.
pub(crate) fn sweep(
    layout: &Layout,
    disks: &RootDisks,
    net: &HostNet,
    cgroups: Option<&CgroupTree>,
    survivors: &[Survivor],
) {
    let lives = |id: &SandboxId| survivors.iter().any(|survivor| survivor.id() == id);
    let slots: BTreeSet<_> = survivors.iter().map(Survivor::slot).collect();
    if let Some(cgroups) = cgroups {
        let keep = |name: &str| name == paging::CGROUP || name.parse().is_ok_and(|id| lives(&id));
        report("monitors in cgroups", cgroups.sweep(keep, Deadline::after(LIMIT)).map(drop));
    }
    let kept: Vec<_> = slots.iter().map(|&index| SlotPool::namespace_name(index)).collect();
    report("monitors", end_monitors(&layout.netns(), &kept));
    report("networks", net.sweep(&slots));
    match disks.attached() {
        Ok(sandboxes) => {
            for id in sandboxes.into_iter().filter(|id| !lives(id)) {
                report("a root disk", disks.remove(&id, Deadline::after(LIMIT)));
            }
        }
        Err(e) => report("root disks", Err(e)),
    }
    for id in sandboxes_in(layout.run()).filter(|id| !lives(id)) {
        report("a runtime directory", fs::remove_dir_all(layout.sandbox(&id).run()));
    }
    for id in sandboxes_in(&layout.sandboxes()).filter(|id| !lives(id)) {
        report("an unfinished sandbox", clean_data(layout, &id));
    }
    report("unfinished templates", clean_templates(layout));
}

pub(crate) fn report<E: std::error::Error>(what: &str, result: Result<(), E>) {
    if let Err(e) = result {
        tracing::warn!(what, error = %e, "left over by a killed process, and could not be removed");
    }
}

/// Kills every process in one of the network namespaces named in `dir`, but for those in `kept`: nothing but monitors ever
/// enters them.
fn end_monitors(dir: &Path, kept: &[String]) -> io::Result<()> {
    let others = entries(dir).filter(|name| !kept.contains(name));
    let namespaces: BTreeSet<_> = others.filter_map(|name| identity(&dir.join(name)).ok()).collect();
    if namespaces.is_empty() {
        return Ok(());
    }
    let pids = entries(Path::new("/proc")).filter_map(|name| name.parse().ok().and_then(Pid::from_raw));
    for pid in pids {
        let inside = || {
            let own = identity(Path::new(&format!("/proc/{}/ns/net", pid.as_raw_nonzero())));
            own.is_ok_and(|own| namespaces.contains(&own))
        };
        if inside() {
            // Looked at again once the process is held: its number may by now be another's.
            match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(process) if inside() => {
                    pidfd_send_signal(&process, Signal::KILL)?;
                    let limit = Timespec::try_from(LIMIT).map_err(io::Error::other)?;
                    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))?;
                    tracing::info!(pid = pid.as_raw_nonzero(), "ended a monitor whose process was killed");
                }
                Ok(_) | Err(rustix::io::Errno::SRCH) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// What tells one namespace from another: the device and number of its file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Removes a sandbox that has no snapshot to be resumed from, or else what is not part of its latest snapshot: what
/// its last machine wrote to, older snapshots, and layers that a pause or a compaction left when it was killed.
///
/// Whatever is wrong with a snapshot, it is one: it is left for the user to look at.
pub(crate) fn clean_data(layout: &Layout, id: &SandboxId) -> Result<(), Cause> {
    let dirs = layout.sandbox(id);
    match Stored::open(&dirs.store)? {
        None => dirs.store.remove(),
        Some(stored) => {
            for file in [dirs.disk(), dirs.journal()] {
                unless_missing(fs::remove_file(&file))
                    .map_err(|source| Cause::io("remove", &file, source))?;
            }
            let exchange = dirs.exchange();
            unless_missing(fs::remove_dir_all(&exchange))
                .map_err(|source| Cause::io("remove", &exchange, source))?;
            capture::prune(&dirs.store, &stored)
        }
    }
}

/// Removes templates and branches that were being made, or removed.
fn clean_templates(layout: &Layout) -> io::Result<()> {
    durable::sweep(&layout.templates())?;
    durable::sweep(&layout.branches()).map(drop)
}

pub(crate) fn sandboxes_in(dir: &Path) -> impl Iterator<Item = SandboxId> + use<> {
    entries(dir).filter_map(|name| name.parse().ok())
}

/// The names in `dir`; none where it cannot be read, as for one that is not there.
fn entries(dir: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

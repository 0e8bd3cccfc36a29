//! The checks themselves, each by itself: one that fails says nothing of the others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wrenn_base::{Bytes, HostId, in_one_line};
use wrenn_net::NetError;
use wrenn_pager::{PagerError, PagerProgram};
use wrenn_storage::{BackendChoice, CloneKind, GuestFiles, ImageRegistry, RootDisks, clone_file};
use wrenn_vmm::{MonitorProgram, VmmError};

use super::{Check, Preflight, Subject, devices};
use crate::error::Cause;

/// Less than this in the data directory is said to be too little: some sandboxes with their snapshots.
const ENOUGH_SPACE: Bytes = Bytes(2 << 30);
const MONITOR_REMEDY: &str =
    "build wrenn-monitor and put it beside the program or on PATH, or name one with WRENN_MONITOR";

const PAGER_REMEDY: &str =
    "build wrenn-pager and put it beside the program or on PATH, or name one with WRENN_PAGER";

/// What a host is to be opened with.
pub(crate) struct Inputs {
    pub(crate) data: PathBuf,
    pub(crate) monitor: Result<MonitorProgram, VmmError>,
    pub(crate) pager: Result<PagerProgram, PagerError>,
}

/// Looks at everything. Blocks for some 100 milliseconds.
pub(crate) fn look(inputs: Inputs) -> Preflight {
    let checks = vec![
        kvm(),
        userfaultfd(),
        tun(),
        nftables(),
        device_mapper(),
        cgroups(),
        monitor(inputs.monitor),
        pager(inputs.pager),
        disk_space(&inputs.data),
        reflinks(&inputs.data),
        guest_files(&inputs.data),
        images(&inputs.data),
    ];
    Preflight { checks }
}

fn kvm() -> Check {
    if let Err(error) = devices::kvm() {
        return unusable(Subject::Kvm, error);
    }
    // A paravirtual KVM has the device as well, but emulates instructions, and not all that a kernel uses.
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    match flags.split_whitespace().find(|flag| matches!(*flag, "vmx" | "svm")) {
        Some(flag) => Check::good(Subject::Kvm, format!("/dev/kvm, with {flag}")),
        None => Check::missing(
            Subject::Kvm,
            "/dev/kvm is there, but this machine's processors have neither vmx nor svm",
            "switch nested virtualisation on in the hypervisor below, or use a machine that has it",
        ),
    }
}

fn userfaultfd() -> Check {
    match devices::userfaultfd() {
        Ok(()) if Path::new("/dev/userfaultfd").exists() => {
            Check::good(Subject::Userfaultfd, "/dev/userfaultfd")
        }
        Ok(()) => Check::good(Subject::Userfaultfd, "by the system call"),
        Err(error) => unusable(Subject::Userfaultfd, error),
    }
}

fn tun() -> Check {
    match devices::tun() {
        Ok(()) => Check::good(Subject::Tun, "/dev/net/tun"),
        Err(error) => unusable(Subject::Tun, error),
    }
}

fn nftables() -> Check {
    match wrenn_net::probe() {
        Ok(()) => Check::good(Subject::Nftables, "rules can be made"),
        Err(error @ NetError::NotPermitted { .. }) => Check::missing(
            Subject::Nftables,
            in_one_line(&error),
            "run as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN",
        ),
        Err(error) => Check::missing(
            Subject::Nftables,
            in_one_line(&error),
            "the kernel needs nf_tables with nft_chain_nat, nft_masq and nft_ct (CONFIG_NF_TABLES and what is below it)",
        ),
    }
}

fn device_mapper() -> Check {
    match RootDisks::probe(&HostId::random(), BackendChoice::DeviceMapper) {
        Ok(_) => Check::good(Subject::DeviceMapper, "snapshots and loop devices"),
        Err(error) => Check::lacking(
            Subject::DeviceMapper,
            in_one_line(&error),
            "load dm_snapshot and loop, and run as root; until then each root disk is a copy of its image",
        ),
    }
}

fn cgroups() -> Check {
    let path = "/sys/fs/cgroup/cgroup.controllers";
    match fs::read_to_string(path) {
        Ok(found) => {
            let lacking: Vec<_> = ["cpu", "memory", "pids"]
                .into_iter()
                .filter(|name| !found.split_whitespace().any(|it| it == *name))
                .collect();
            match lacking.is_empty() {
                true => Check::good(Subject::Cgroups, format!("version 2: {}", found.trim())),
                false => Check::lacking(
                    Subject::Cgroups,
                    format!("version 2, but without {}", lacking.join(", ")),
                    "boot with these controllers in version 2, not in version 1",
                ),
            }
        }
        Err(error) => Check::lacking(
            Subject::Cgroups,
            format!("{path}: {error}"),
            "mount cgroup2 at /sys/fs/cgroup (systemd.unified_cgroup_hierarchy=1)",
        ),
    }
}

fn monitor(found: Result<MonitorProgram, VmmError>) -> Check {
    match found {
        Ok(program) => Check::good(Subject::Monitor, program.path().display().to_string()),
        Err(error) => Check::missing(Subject::Monitor, in_one_line(&error), MONITOR_REMEDY),
    }
}

fn pager(found: Result<PagerProgram, PagerError>) -> Check {
    match found {
        Ok(program) => Check::good(Subject::Pager, program.path().display().to_string()),
        Err(error) => Check::missing(Subject::Pager, in_one_line(&error), PAGER_REMEDY),
    }
}

fn disk_space(data: &Path) -> Check {
    let dir = existing(data);
    match rustix::fs::statvfs(dir) {
        Ok(stats) => {
            let free = Bytes(stats.f_bavail * stats.f_frsize);
            let found = format!("{} free in {}", free, dir.display());
            match free >= ENOUGH_SPACE {
                true => Check::good(Subject::DiskSpace, found),
                false => {
                    Check::lacking(Subject::DiskSpace, found, "make room, or choose another data directory")
                }
            }
        }
        Err(error) => Check::missing(
            Subject::DiskSpace,
            format!("{}: {}", dir.display(), io::Error::from(error)),
            "choose another data directory",
        ),
    }
}

fn reflinks(data: &Path) -> Check {
    let dir = existing(data);
    let remedy =
        "put the data directory on xfs or btrfs: disks are copied when a sandbox is branched or resumed";
    match try_clone(dir) {
        Ok(CloneKind::Reflink) => Check::good(Subject::Reflinks, format!("in {}", dir.display())),
        Ok(_) => Check::lacking(Subject::Reflinks, format!("none in {}", dir.display()), remedy),
        Err(error) => Check::missing(
            Subject::Reflinks,
            format!("no file can be made in {}: {error}", dir.display()),
            "choose a data directory that can be written to",
        ),
    }
}

fn try_clone(dir: &Path) -> io::Result<CloneKind> {
    let name = |part| dir.join(format!(".preflight-{}-{part}", std::process::id()));
    let (from, to) = (name("a"), name("b"));
    let result = fs::write(&from, [1; 8192]).and_then(|()| clone_file(&from, &to));
    let _ = fs::remove_file(&to);
    let _ = fs::remove_file(&from);
    result
}

fn guest_files(data: &Path) -> Check {
    match GuestFiles::open(data) {
        Ok(files) => Check::good(Subject::GuestFiles, format!("Linux {}", files.details.kernel_release)),
        Err(error) => Check::missing(Subject::GuestFiles, in_one_line(&error), "`wrenn guest build`"),
    }
}

fn images(data: &Path) -> Check {
    let remedy = "`wrenn image build debian`";
    // Opening a registry makes its directory, which a look should not.
    if !data.join("images").is_dir() {
        return Check::missing(Subject::Images, format!("none in {}", data.display()), remedy);
    }
    match ImageRegistry::open(data).and_then(|registry| registry.list()) {
        Ok(list) if list.is_empty() => {
            Check::missing(Subject::Images, format!("none in {}", data.display()), remedy)
        }
        Ok(list) => {
            match list.iter().find_map(|(name, image)| image.as_ref().err().map(|error| (name, error))) {
                Some((name, error)) => Check::lacking(
                    Subject::Images,
                    format!("{name}: {}", in_one_line(error)),
                    "make it anew: `wrenn image build NAME --force`",
                ),
                None => {
                    let names: Vec<_> = list.iter().map(|(name, _)| name.to_string()).collect();
                    Check::good(Subject::Images, names.join(", "))
                }
            }
        }
        Err(error) => Check::missing(Subject::Images, in_one_line(&error), remedy),
    }
}

/// The nearest directory that is there: where a data directory would be made.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
}

fn unusable(subject: Subject, error: Cause) -> Check {
    match error {
        Cause::Device { path, remedy, source } => {
            Check::missing(subject, format!("{path}: {source}"), remedy)
        }
        other => Check::missing(subject, in_one_line(&other), "see what was found"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// With the same for monitor and pager.
    fn look_at(data: &Path, program: &str) -> Preflight {
        let program = Some(Path::new(program));
        let (monitor, pager) = (MonitorProgram::discover(program), PagerProgram::discover(program));
        look(Inputs { data: data.to_owned(), monitor, pager })
    }

    #[test]
    fn everything_is_looked_at_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let found = look_at(dir.path(), "/bin/sh");
        assert_eq!(found.checks().len(), 12);
        for check in found.checks() {
            assert!(!check.found.is_empty(), "{check:?}");
            assert_eq!(check.remedy.is_none(), check.verdict == Verdict::Good, "{check:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(!found.is_ready(), "there are no images");
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let found = look_at(&dir.path().join("not/there/yet"), "/no/monitor");
        for (subject, why) in [
            (Subject::Monitor, "/no/monitor"),
            (Subject::Pager, "/no/monitor"),
            (Subject::GuestFiles, "guest"),
            (Subject::Images, "none in"),
        ] {
            let check = found.of(subject).unwrap();
            assert_eq!(check.verdict, Verdict::Missing, "{check:?}");
            assert!(check.found.contains(why), "{check:?}");
            assert!(check.remedy.is_some(), "{check:?}");
        }
        assert_eq!(found.of(Subject::DiskSpace).unwrap().verdict, Verdict::Good);
        assert!(!dir.path().join("not").exists());
    }
}

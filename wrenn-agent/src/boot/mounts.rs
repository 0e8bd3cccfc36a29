//! The file systems that a Linux user space expects beside its root.

use std::ffi::CStr;
use std::io;
use std::os::unix::fs::symlink;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::{During, Failure, make_directory};

/// What moves along into the new root.
pub(super) const EARLY: [&str; 3] = ["/dev", "/proc", "/sys"];

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const DATA: MountFlags = SAFE.union(MountFlags::NOEXEC);

/// Mounts what the boot itself needs, in the initramfs.
pub(super) fn early() -> Result<(), Failure> {
    attach("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755")?;
    attach("proc", "/proc", DATA, c"")?;
    attach("sysfs", "/sys", DATA, c"")
}

/// Mounts the rest, in the new root. Gives back what failed that a guest can do without.
pub(super) fn late() -> Result<Vec<Failure>, Failure> {
    attach("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, c"gid=5,mode=620,ptmxmode=666")?;
    attach("tmpfs", "/dev/shm", SAFE, c"mode=1777")?;
    attach("tmpfs", "/run", SAFE, c"mode=755")?;
    let cgroups = attach("cgroup2", "/sys/fs/cgroup", DATA, c"nsdelegate");
    // Shells use /dev/fd; devtmpfs does not make it.
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ]
    .map(|(target, link)| make_link(target, link).during(|| format!("make {link}")));
    Ok(links.into_iter().chain([cgroups]).filter_map(Result::err).collect())
}

fn attach(kind: &str, target: &str, flags: MountFlags, options: &CStr) -> Result<(), Failure> {
    let attach = || -> io::Result<()> {
        // Not to be made in /sys, but there if it is of use.
        if !target.starts_with("/sys/") {
            make_directory(target)?;
        }
        match mount(kind, target, kind, flags, options) {
            // Somebody was faster: a kernel that mounts /dev by itself.
            Err(Errno::BUSY) => Ok(()),
            result => Ok(result?),
        }
    };
    attach().during(|| format!("mount {kind} on {target}"))
}

fn make_link(target: &str, link: &str) -> io::Result<()> {
    match symlink(target, link) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

//! Control groups (version 2): what a monitor may take of the machine, and a handle on all of its processes.
//!
//! ```text
//! <cgroup2 mount>/wrenn/<host>/<sandbox>     one monitor, with its limits
//!                   |      '── made by [`CgroupTree::open`]: the controllers are switched on down to here
//!                   '── shared by all hosts on the machine
//! ```
//!
//! The tree is not below the cgroup of whoever makes it: a cgroup with processes of its own can hand no controller down.
//! So what confines the caller does not confine a sandbox by itself, and is copied: see [`cpus`].
//!
//! A controller that the machine does not offer is reported ([`CgroupTree::missing`]), and is an error only if it is
//! required. Removal kills what is left in a cgroup, and tries again until its deadline.

mod cpus;
mod error;
mod limits;
mod remove;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use wrenn_base::{Deadline, HostId, SandboxId, UndoList};

pub use self::error::CgroupError;
pub use self::limits::{Controller, Limits};
use self::remove::{kill, remove};

/// The directory of all hosts' cgroups, below the mount of the file system.
const ROOT: &str = "wrenn";
/// How long the processes of a cgroup that was left behind may take to go.
const STALE_LIMIT: Duration = Duration::from_secs(10);
/// How often a directory is made anew that another host removed at that very moment, as it was empty.
const ATTEMPTS: usize = 16;

/// What a [`CgroupTree`] is to be.
#[derive(Debug, Clone)]
pub struct CgroupTreeSpec {
    /// Whose it is: its name.
    pub host: HostId,
    /// A directory in a cgroup2 file system to make it in; `wrenn` below the first such mount where absent. It is made
    /// if it is not there, and removed when it is empty.
    pub parent: Option<PathBuf>,
    /// The controllers without which there is to be no tree.
    pub required: Vec<Controller>,
}

impl CgroupTreeSpec {
    /// The tree of `host` in its usual place, with whatever controllers there are.
    pub fn new(host: HostId) -> Self {
        Self { host, parent: None, required: Vec::new() }
    }
}

/// The cgroups of one host: monitors are put into it, each in a cgroup of its own.
#[derive(Debug, Clone)]
pub struct CgroupTree {
    dir: PathBuf,
    missing: Vec<Controller>,
}

impl CgroupTree {
    /// Makes the tree, or takes over the one that an earlier process of the same host left; `undo` removes it.
    ///
    /// # Errors
    /// There is no cgroup2 file system, it cannot be written to, or a required controller is missing. Once `undo` has
    /// run nothing is left.
    pub fn open(spec: CgroupTreeSpec, undo: &mut UndoList) -> Result<Self, CgroupError> {
        let parent = match spec.parent {
            Some(parent) => parent,
            None => mount_point()?.join(ROOT),
        };
        let dir = parent.join(spec.host.as_str());
        let (tree, shared) = (dir.clone(), parent.clone());
        undo.push("the host's cgroups", move |deadline| {
            sweep(&tree, |_| false, deadline)?;
            remove(&tree, deadline)?;
            // Another host's may be in it.
            let _ = fs::remove_dir(&shared);
            Ok(())
        });
        make_dirs(&parent, &dir)?;
        hand_down(&dir)?;
        let offered = read_words(&dir.join("cgroup.subtree_control"))?;
        let missing: Vec<_> =
            Controller::ALL.into_iter().filter(|it| !offered.contains(&it.name().to_owned())).collect();
        if let Some(controller) = spec.required.into_iter().find(|it| missing.contains(it)) {
            return Err(CgroupError::NoController { controller, dir });
        }
        Ok(Self { dir, missing })
    }

    /// The controllers that this machine does not offer: their limits are not in force.
    pub fn missing(&self) -> &[Controller] {
        &self.missing
    }

    /// The tree's directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Kills every process in the tree's cgroups and removes them, but for those whose names are to be kept: what a killed
    /// process of the host left. Returns how many there were.
    ///
    /// # Errors
    /// The first that could not be removed in time; the others are gone all the same.
    pub fn sweep(&self, keep: impl Fn(&str) -> bool, deadline: Deadline) -> Result<usize, CgroupError> {
        sweep(&self.dir, keep, deadline)
    }

    /// Moves a process into a cgroup of the tree that is called `name`, without limits but with the CPUs of the caller's. The
    /// cgroup goes with the tree.
    ///
    /// # Errors
    /// [`CgroupError`]: the process is where it was.
    pub fn hold(&self, name: &str, pid: u32) -> Result<(), CgroupError> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).map_err(CgroupError::io("create", &dir))?;
        cpus::confine(&dir)?;
        write(&dir.join("cgroup.procs"), &pid.to_string())
    }

    /// Makes the cgroup of one sandbox, with its limits; `undo` ends what is in it and removes it.
    pub(crate) fn create(
        &self,
        id: &SandboxId,
        limits: &Limits,
        undo: &mut UndoList,
    ) -> Result<Cgroup, CgroupError> {
        let dir = self.dir.join(id.as_str());
        // Of a machine of the same sandbox whose process was killed.
        remove(&dir, Deadline::after(STALE_LIMIT))?;
        let undone = dir.clone();
        undo.push(format!("the cgroup of sandbox {id}"), move |deadline| Ok(remove(&undone, deadline)?));
        fs::create_dir(&dir).map_err(CgroupError::io("create", &dir))?;
        limits.apply(&dir)?;
        cpus::confine(&dir)?;
        self.open_one(dir, limits)
    }

    /// The cgroup of a sandbox that an earlier process made, with the limits that it was given; nothing where there is none.
    /// `undo` ends what is in it and removes it.
    pub(crate) fn take_over(
        &self,
        id: &SandboxId,
        limits: &Limits,
        undo: &mut UndoList,
    ) -> Result<Option<Cgroup>, CgroupError> {
        let dir = self.dir.join(id.as_str());
        if !dir.exists() {
            return Ok(None);
        }
        let undone = dir.clone();
        undo.push(format!("the cgroup of sandbox {id}"), move |deadline| Ok(remove(&undone, deadline)?));
        self.open_one(dir, limits).map(Some)
    }

    fn open_one(&self, dir: PathBuf, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let handle = File::open(&dir).map_err(CgroupError::io("open", &dir))?;
        // Bound to this cgroup, whatever has its name later. Before Linux 5.14 there is no such file.
        let kill = OpenOptions::new().write(true).open(dir.join("cgroup.kill")).ok();
        Ok(Cgroup { dir, handle, kill, memory: limits.memory.filter(|_| self.offers(Controller::Memory)) })
    }

    fn offers(&self, controller: Controller) -> bool {
        !self.missing.contains(&controller)
    }
}

/// One monitor's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    dir: PathBuf,
    handle: File,
    kill: Option<File>,
    /// The limit of its memory, where that is in force.
    memory: Option<u64>,
}

impl Cgroup {
    /// To start a process in.
    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Sends SIGKILL to every process in it. One that is gone is fine.
    pub(crate) fn kill(&self) {
        match &self.kill {
            Some(file) => drop(rustix::io::write(file, b"1")),
            None => drop(kill(&self.dir)),
        }
    }

    /// Lets it have `more` bytes beyond its limit, until [`Self::settle_memory`].
    pub(crate) fn extend_memory(&self, more: u64) -> Result<(), CgroupError> {
        self.set_memory(|limit| limit.saturating_add(more))
    }

    /// Puts the limit in force again, once no process but the monitor has memory in it.
    ///
    /// Before that there may be more than the limit in use, and the kernel would kill for it.
    pub(crate) fn settle_memory(&self, deadline: Deadline) -> Result<(), CgroupError> {
        if self.memory.is_none() {
            return Ok(());
        }
        while self.with_memory()? > 1 {
            if deadline.passed() {
                return Err(CgroupError::Busy { dir: self.dir.clone() });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.set_memory(|limit| limit)
    }

    /// How many of its processes have memory: neither those that have ended and are not collected yet, nor the thread of
    /// the kernel's that KVM makes for each machine and puts beside its monitor.
    fn with_memory(&self) -> Result<usize, CgroupError> {
        let has_memory = |pid: &String| {
            let pages = fs::read_to_string(format!("/proc/{pid}/statm"));
            pages.is_ok_and(|pages| !pages.starts_with("0 "))
        };
        Ok(read_words(&self.dir.join("cgroup.procs"))?.iter().filter(|pid| has_memory(pid)).count())
    }

    fn set_memory(&self, limit: impl FnOnce(u64) -> u64) -> Result<(), CgroupError> {
        let Some(memory) = self.memory else { return Ok(()) };
        write(&self.dir.join("memory.max"), &limit(memory).to_string())
    }
}

/// Where a cgroup2 file system is mounted, whole.
fn mount_point() -> Result<PathBuf, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path).map_err(CgroupError::io("read", path))?;
    mounts.lines().find_map(whole_cgroup2).map(PathBuf::from).ok_or(CgroupError::NotMounted)
}

/// The mount point in a line of `mountinfo` (proc(5)), if it is one of a cgroup2 file system's root.
fn whole_cgroup2(line: &str) -> Option<&str> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    (root == "/" && file_system.starts_with("cgroup2 ")).then_some(point)
}

/// Makes both directories; the outer one may vanish as long as it is empty.
fn make_dirs(parent: &Path, dir: &Path) -> Result<(), CgroupError> {
    let mut attempt = 1;
    loop {
        fs::create_dir_all(parent).map_err(CgroupError::io("create", parent))?;
        match fs::create_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => attempt += 1,
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::io("create", dir)(e));
            }
            _ => return Ok(()),
        }
    }
}

/// Switches every controller on that there is, from the root of the file system down to the children of `dir`.
fn hand_down(dir: &Path) -> Result<(), CgroupError> {
    if !dir.join("cgroup.controllers").exists() {
        return Err(CgroupError::NotCgroup2 { dir: dir.to_owned() });
    }
    let mut levels: Vec<_> =
        dir.ancestors().take_while(|level| level.join("cgroup.controllers").exists()).collect();
    levels.reverse();
    for level in levels {
        let offered = read_words(&level.join("cgroup.controllers"))?;
        let control = level.join("cgroup.subtree_control");
        let already = read_words(&control)?;
        for name in Controller::ALL.map(Controller::name) {
            if offered.iter().any(|it| it == name) && !already.iter().any(|it| it == name) {
                // One by one: a refusal (the level has processes, for one) is seen by what is missing in the end.
                if let Err(error) = fs::write(&control, format!("+{name}")) {
                    tracing::debug!(level = %level.display(), controller = name, %error, "not handed down");
                }
            }
        }
    }
    Ok(())
}

/// Removes every cgroup in `dir` but those to be kept; none is fine.
fn sweep(dir: &Path, keep: impl Fn(&str) -> bool, deadline: Deadline) -> Result<usize, CgroupError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        result => result.map_err(CgroupError::io("list", dir))?,
    };
    let children = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let children = children.filter(|entry| !entry.file_name().to_str().is_some_and(&keep));
    let results: Vec<_> = children.map(|child| remove(&child.path(), deadline)).collect();
    let removed = results.len();
    results.into_iter().collect::<Result<(), _>>().map(|()| removed)
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(CgroupError::io("read", path))
}

fn read_words(path: &Path) -> Result<Vec<String>, CgroupError> {
    Ok(read(path)?.split_whitespace().map(str::to_owned).collect())
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(CgroupError::io("write to", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_told_by_its_type_and_its_root() {
        let whole = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(whole_cgroup2(whole), Some("/sys/fs/cgroup/unified"));
        for other in [
            "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu",
            "41 31 0:38 /a /mnt rw,relatime - cgroup2 cgroup2 rw",
            "",
        ] {
            assert_eq!(whole_cgroup2(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_cgroup_is_refused_and_not_left() {
        let dir = tempfile::tempdir().unwrap();
        let reaper = wrenn_base::Reaper::start();
        let mut undo = UndoList::new(&reaper);
        let mut spec = CgroupTreeSpec::new(HostId::random());
        spec.parent = Some(dir.path().join("groups"));
        let refused = CgroupTree::open(spec, &mut undo).unwrap_err();
        assert!(matches!(refused, CgroupError::NotCgroup2 { .. }), "{refused:?}");
        assert!(undo.run(Duration::from_secs(5)).is_empty());
        assert!(!dir.path().join("groups").exists());
    }
}

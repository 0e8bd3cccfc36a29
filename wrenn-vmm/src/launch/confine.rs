//! What a contained monitor's process does to itself: into a root of its own, then down to a user without any right.
//!
//! It runs between `clone3` and `execve`: see [`super::sys`] for what that allows.

use std::ffi::{CStr, CString};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, mkdirat, mknodat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount, mount_change, mount_remount,
    move_mount, unmount,
};
use rustix::process::{Resource, Rlimit, chdir, pivot_root, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, CpuSet, clear_ambient_capability_set, remove_capability_from_bounding_set,
    sched_setaffinity, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::root::{Entry, EntryKind};
use super::sys::{ChildSetup, Failure};
use crate::error::SetupStep;

/// Of the root, once it is complete.
const ROOT_FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
/// More capabilities than any kernel has: the sets have 64 bits.
const CAPABILITIES: u32 = 64;

/// Everything that it needs, prepared before.
pub(super) struct Confinement {
    pub(super) user: Uid,
    pub(super) group: Gid,
    /// Where the root is put together.
    pub(super) dir: CString,
    /// Its file system's options: see [`Self::root_options`].
    pub(super) options: CString,
    pub(super) entries: Vec<Entry>,
    /// Where it may run.
    pub(super) cpus: CpuSet,
    pub(super) limits: Vec<(Resource, u64)>,
}

impl Confinement {
    /// The options of a file system with room for `inodes` names and no content to speak of.
    pub(super) fn root_options(inodes: usize) -> CString {
        CString::new(format!("mode=0755,size=64k,nr_inodes={inodes}")).expect("it has no NUL")
    }

    /// Every step. Whoever comes out of this has no way back.
    pub(super) fn enter(&self, setup: &ChildSetup) -> Result<(), Failure> {
        // What is made has the mode that is asked for, until there is nothing left to make.
        let mask = rustix::process::umask(Mode::empty());
        let cover = || mount(c"wrenn", &*self.dir, c"tmpfs", ROOT_FLAGS, &*self.options);
        setup.step(SetupStep::MountRoot, cover)?;
        for entry in &self.entries {
            setup.step(entry.step, || self.make(entry))?;
        }
        setup.step(SetupStep::EnterRoot, || self.change_root())?;
        let seal = || mount_remount(c"/", MountFlags::BIND | MountFlags::RDONLY | ROOT_FLAGS, c"");
        setup.step(SetupStep::SealRoot, seal)?;
        rustix::process::umask(mask);
        setup.step(SetupStep::Processors, || sched_setaffinity(None, &self.cpus))?;
        setup.step(SetupStep::ResourceLimits, || self.limit())?;
        self.give_up_rights(setup)
    }

    fn make(&self, entry: &Entry) -> Result<(), Errno> {
        let target = &*entry.target;
        match &entry.kind {
            EntryKind::Dir => mkdirat(CWD, target, Mode::from_raw_mode(0o755)),
            EntryKind::Link { to } => symlinkat(&**to, CWD, target),
            EntryKind::Node { kind, device } => self.make_node(target, *kind, *device),
            EntryKind::Bind { tree, directory, flags } => {
                match directory {
                    true => mkdirat(CWD, target, Mode::from_raw_mode(0o755))?,
                    false => make_file(target)?,
                }
                move_mount(tree, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
                // Nothing that is mounted below it from now on is seen on the other side.
                mount_change(target, MountPropagationFlags::PRIVATE)?;
                mount_remount(target, MountFlags::BIND | *flags, c"")
            }
        }
    }

    fn make_node(&self, target: &CStr, kind: FileType, device: u64) -> Result<(), Errno> {
        mknodat(CWD, target, kind, Mode::RUSR | Mode::WUSR, device)?;
        chownat(CWD, target, Some(self.user), Some(self.group), AtFlags::empty())
    }

    /// Puts the new root in the old one's place, of which nothing is left in this namespace.
    fn change_root(&self) -> Result<(), Errno> {
        chdir(&*self.dir)?;
        // The old root comes to lie on top of the new one, at the same place: pivot_root(2).
        pivot_root(c".", c".")?;
        unmount(c".", UnmountFlags::DETACH)?;
        chdir(c"/")
    }

    fn limit(&self) -> Result<(), Errno> {
        let both = |value| Rlimit { current: Some(value), maximum: Some(value) };
        self.limits.iter().try_for_each(|(resource, value)| setrlimit(*resource, both(*value)))
    }

    fn give_up_rights(&self, setup: &ChildSetup) -> Result<(), Failure> {
        setup.step(SetupStep::NoNewPrivileges, || set_no_new_privs(true))?;
        // While there is still the right to.
        setup.step(SetupStep::DropBoundingSet, drop_bounding_set)?;
        setup.step(SetupStep::ChangeUser, || {
            set_thread_groups(&[])?;
            set_thread_res_gid(self.group, self.group, self.group)?;
            set_thread_res_uid(self.user, self.user, self.user)
        })?;
        // The change of user has emptied most of them; what can be inherited it leaves.
        setup.step(SetupStep::DropCapabilities, || {
            clear_ambient_capability_set()?;
            let none = CapabilitySet::empty();
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        })
    }
}

/// What the process could ever get again: nothing.
fn drop_bounding_set() -> Result<(), Errno> {
    for number in 0..CAPABILITIES {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            // The kernel has none of this number, nor of any above.
            Err(Errno::INVAL) if number > 0 => break,
            result => result?,
        }
    }
    Ok(())
}

/// An empty file, to mount something on.
pub(super) fn make_file(path: &CStr) -> Result<(), Errno> {
    let create = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, create, Mode::RUSR | Mode::WUSR).map(drop)
}

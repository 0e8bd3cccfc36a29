//! What a new process does between fork and exec. The only unsafe code of this crate.
//!
//! Between fork and exec of a program with threads only async-signal-safe work is allowed: no
//! allocation, no locks. So everything is prepared in [`ChildSetup`] before the fork, and the steps are plain
//! system calls on it (`rustix` makes them without libc, and takes a `&CStr` as it is).
//!
//! A step that fails sends its index through a pipe; its errno travels in the way `std` has for it.

use std::ffi::CStr;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Resource, Rlimit, setrlimit, setsid, umask};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::error::SetupStep;

/// Enough for the one file and a directory; the file is only something to mount on.
const VM_DIR_OPTIONS: &CStr = c"mode=0700,size=64k,nr_inodes=16";

/// Everything the child needs, prepared before the fork.
pub(crate) struct ChildSetup {
    /// The network namespace to enter.
    pub(crate) netns: Option<OwnedFd>,
    /// The disk to show in a mount namespace of the child's own.
    pub(crate) disk: Option<DiskSetup>,
    /// Takes the index of the step that failed.
    pub(crate) failed_step: OwnedFd,
}

pub(crate) struct DiskSetup {
    pub(crate) source: CString,
    pub(crate) dir: CString,
    pub(crate) target: CString,
}

impl ChildSetup {
    /// Has `command`'s child take every step before it becomes the program.
    pub(crate) fn install(self, command: &mut Command) {
        let run = move || self.run();
        // SAFETY: `run` neither allocates nor locks nor panics: it makes system calls on what was prepared before
        // the fork, and an `io::Error` made from an errno allocates nothing.
        unsafe { command.pre_exec(run) };
    }

    fn run(&self) -> io::Result<()> {
        self.steps().map_err(|(step, errno)| {
            // If even this write fails the caller still gets the errno, without the step.
            let _ = rustix::io::write(&self.failed_step, &[step as u8]);
            io::Error::from_raw_os_error(errno.raw_os_error())
        })
    }

    fn steps(&self) -> Result<(), (SetupStep, Errno)> {
        let at = |step| move |errno| (step, errno);
        setsid().map_err(at(SetupStep::NewSession))?;
        umask(Mode::RWXG | Mode::RWXO);
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
            .map_err(at(SetupStep::Limits))?;
        if let Some(netns) = &self.netns {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(at(SetupStep::EnterNetns))?;
        }
        if let Some(disk) = &self.disk {
            disk.show()?;
        }
        close_inherited().map_err(at(SetupStep::CloseDescriptors))
    }
}

impl DiskSetup {
    /// Makes a mount namespace in which the disk is at its fixed path.
    fn show(&self) -> Result<(), (SetupStep, Errno)> {
        let at = |step| move |errno| (step, errno);
        // SAFETY: unsharing mounts touches no file descriptors.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(at(SetupStep::NewMountNamespace))?;
        // Slave, not private: nothing mounted here is seen outside, but what the host unmounts goes away here
        // too, instead of being kept busy for as long as the sandbox lives.
        mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
            .map_err(at(SetupStep::DetachMounts))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(c"wrenn", &*self.dir, c"tmpfs", flags, VM_DIR_OPTIONS).map_err(at(SetupStep::MountVmDir))?;
        let create = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::open(&*self.target, create, Mode::RUSR | Mode::WUSR)
            .map_err(at(SetupStep::CreateDiskFile))?;
        mount_bind(&*self.source, &*self.target).map_err(at(SetupStep::BindDisk))
    }
}

/// Marks every descriptor above standard error to be closed by exec.
///
/// Marking instead of closing spares the pipe through which `std` reports a failed exec.
fn close_inherited() -> Result<(), Errno> {
    // SAFETY: a system call without memory arguments; it changes no descriptor's validity.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == 0 {
        return Ok(());
    }
    let errno = io::Error::last_os_error();
    Err(Errno::from_io_error(&errno).unwrap_or(Errno::INVAL))
}

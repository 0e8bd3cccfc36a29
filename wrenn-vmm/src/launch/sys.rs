//! The new process: how it is made, and what it does before it becomes the monitor.
//!
//! It is made by `clone3`, which puts it into its PID namespace and its cgroup from the first moment on (moving a
//! process later makes every fork on the machine wait), and gives its pidfd with it. It starts as a copy of one thread of
//! this program, so only async-signal-safe work is allowed until `execve`: no allocation, no locks, no panic. So
//! everything is prepared in [`ChildSetup`] and [`Program`] before, and the steps are plain system calls on it (`rustix`
//! makes them without libc, and takes a `&CStr` as it is).
//!
//! A step that fails sends itself and its errno through a pipe, which an `execve` that succeeds closes.

use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, pidfd_send_signal, setrlimit, setsid, umask, waitid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::confine::Confinement;
use crate::error::SetupStep;

/// Enough for the one file and a directory; the file is only something to mount on.
const VM_DIR_OPTIONS: &CStr = c"mode=0700,size=64k,nr_inodes=16";
/// What stands for `execve` where a step is told.
const EXEC: u8 = u8::MAX;

/// A step of the setup that failed, and why.
pub(super) type Failure = (SetupStep, Errno);

/// What the process becomes.
pub(super) struct Program {
    path: CString,
    _arguments: Vec<CString>,
    _environment: Vec<CString>,
    /// Pointers into the two above, each list with a null at its end.
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
}

impl Program {
    pub(super) fn new(path: CString, arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        let pointers = |texts: &[CString]| -> Vec<*const c_char> {
            texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (argv, envp) = (pointers(&arguments), pointers(&environment));
        Self { path, _arguments: arguments, _environment: environment, argv, envp }
    }

    /// Becomes the program; returns only to say why it could not.
    fn exec(&self) -> Errno {
        // SAFETY: the path and both lists end as they must, and live as long as this value does. Where the call does
        // not fail, nothing of this process is left that could look at them.
        unsafe { libc::execve(self.path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        last_errno()
    }
}

/// Everything the child needs, prepared before it is made.
pub(super) struct ChildSetup {
    /// Standard input, output and error.
    pub(super) stdio: [OwnedFd; 3],
    /// The network namespace to enter.
    pub(super) netns: Option<OwnedFd>,
    /// What else is done to it.
    pub(super) place: Place,
    /// The step that a test has fail.
    #[cfg(test)]
    pub(super) fail_at: Option<SetupStep>,
}

/// Where the monitor runs.
pub(super) enum Place {
    /// On the caller's file system, as the caller's user.
    Open,
    /// The same, but in a mount namespace of its own in which the disk is at its fixed path.
    WithDisk(DiskSetup),
    /// In a root of its own, as a user of its own.
    Confined(Box<Confinement>),
}

pub(super) struct DiskSetup {
    pub(super) source: CString,
    pub(super) dir: CString,
    pub(super) target: CString,
}

/// A process that has become the monitor. Whoever has this collects it.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

impl Spawned {
    /// Ends and collects a process that nobody is going to watch.
    pub(crate) fn abandon(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.collect();
    }

    fn collect(&self) {
        let wait = || waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        // Its status says nothing: it is known why it ended.
        let _ = rustix::io::retry_on_intr(wait);
    }
}

/// Why there is no process.
#[derive(Debug)]
pub(super) enum SpawnError {
    /// It could not be made, or could not become the program.
    Start(io::Error),
    /// It failed on its way there.
    Setup(SetupStep, io::Error),
}

/// Makes a process that takes every step of `setup` and becomes `program`; in `cgroup`, where there is one. Returns
/// once it has, and leaves no process if it has not.
pub(super) fn spawn(
    setup: &ChildSetup,
    program: &Program,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Spawned, SpawnError> {
    let start = |errno: Errno| SpawnError::Start(errno.into());
    let (failures, report) = pipe_with(PipeFlags::CLOEXEC).map_err(start)?;
    let own_pids = matches!(setup.place, Place::Confined(_));
    let Some(spawned) = clone(own_pids, cgroup).map_err(start)? else {
        let failed = match setup.run() {
            Ok(()) => (EXEC, program.exec()),
            Err((step, errno)) => (step as u8, errno),
        };
        // If even this fails, the parent takes it for a monitor that ended at once.
        let _ = rustix::io::write(&report, &message(failed));
        // SAFETY: ends the process without running anything that belongs to the parent.
        unsafe { libc::_exit(1) }
    };
    drop(report);
    let mut told = [0; 5];
    // A fork elsewhere in this process may hold the writing end until its own exec.
    match File::from(failures).read_exact(&mut told) {
        Err(_) => Ok(spawned),
        Ok(()) => {
            spawned.collect();
            Err(understood(told))
        }
    }
}

fn message((step, errno): (u8, Errno)) -> [u8; 5] {
    let [a, b, c, d] = errno.raw_os_error().to_le_bytes();
    [step, a, b, c, d]
}

fn understood([step, a, b, c, d]: [u8; 5]) -> SpawnError {
    let error = io::Error::from_raw_os_error(i32::from_le_bytes([a, b, c, d]));
    match SetupStep::ALL.get(usize::from(step)) {
        Some(step) => SpawnError::Setup(*step, error),
        None => SpawnError::Start(error),
    }
}

/// `struct clone_args` of `linux/sched.h`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Of `linux/sched.h`: signals that are handled in the parent have their default effect in the child.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Makes a copy of this process with this thread alone: `None` in the copy.
fn clone(own_pids: bool, cgroup: Option<BorrowedFd<'_>>) -> Result<Option<Spawned>, Errno> {
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if own_pids {
        args.flags |= libc::CLONE_NEWPID as u64;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork: the copy has memory of its own and goes on here, on its copy of the
    // stack. The kernel reads `args`, laid out as it has them, and writes a descriptor to `pidfd`. What the copy may do
    // is said at the top of this file.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(last_errno()),
        0 => Ok(None),
        pid => {
            let pid = Pid::from_raw(pid as libc::pid_t).ok_or(Errno::SRCH)?;
            // SAFETY: the kernel has just made it for this call, closed on exec; nobody else knows of it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Spawned { pid, pidfd }))
        }
    }
}

impl ChildSetup {
    /// Every step, in the child.
    fn run(&self) -> Result<(), Failure> {
        self.step(SetupStep::NewSession, start_afresh)?;
        self.step(SetupStep::Limits, no_core)?;
        self.step(SetupStep::Output, || self.connect_stdio())?;
        if let Some(netns) = &self.netns {
            let enter = || move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network));
            self.step(SetupStep::EnterNetns, enter)?;
        }
        match &self.place {
            Place::Open => self.step(SetupStep::WorkingDirectory, || rustix::process::chdir(c"/"))?,
            Place::WithDisk(disk) => {
                self.own_mounts(UnshareFlags::NEWNS)?;
                disk.show(self)?;
                self.step(SetupStep::WorkingDirectory, || rustix::process::chdir(c"/"))?;
            }
            Place::Confined(confinement) => {
                self.own_mounts(UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)?;
                confinement.enter(self)?;
            }
        }
        self.step(SetupStep::CloseDescriptors, close_inherited)
    }

    /// Takes one step.
    pub(super) fn step(
        &self,
        step: SetupStep,
        take: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Failure> {
        #[cfg(test)]
        if self.fail_at == Some(step) {
            return Err((step, Errno::XFULL));
        }
        take().map_err(|errno| (step, errno))
    }

    fn connect_stdio(&self) -> Result<(), Errno> {
        let [input, output, error] = &self.stdio;
        dup2_stdin(input)?;
        dup2_stdout(output)?;
        dup2_stderr(error)
    }

    /// Makes namespaces, one for mounts among them.
    fn own_mounts(&self, namespaces: UnshareFlags) -> Result<(), Failure> {
        // SAFETY: none of these namespaces is about file descriptors.
        self.step(SetupStep::NewNamespaces, || unsafe { unshare_unsafe(namespaces) })?;
        // Slave, not private: nothing mounted here is seen outside, but what the host unmounts goes away here
        // too, instead of being kept busy for as long as the sandbox lives.
        let flags = MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM;
        self.step(SetupStep::DetachMounts, || mount_change(c"/", flags))
    }
}

impl DiskSetup {
    /// Shows the disk at its fixed path.
    fn show(&self, setup: &ChildSetup) -> Result<(), Failure> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let cover = || mount(c"wrenn", &*self.dir, c"tmpfs", flags, VM_DIR_OPTIONS);
        setup.step(SetupStep::MountVmDir, cover)?;
        setup.step(SetupStep::CreateDiskFile, || super::confine::make_file(&self.target))?;
        setup.step(SetupStep::BindDisk, || mount_bind(&*self.source, &*self.target))
    }
}

/// A session, a file mode mask, and reactions to signals that are nobody else's.
fn start_afresh() -> Result<(), Errno> {
    setsid()?;
    umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    // SAFETY: no handler is installed, and `none` is written before it is read. The Rust runtime ignores SIGPIPE, and
    // this thread may block signals: both would be passed on to the monitor.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
    Ok(())
}

/// No core dumps: they would hold guest memory.
fn no_core() -> Result<(), Errno> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
}

/// Marks every descriptor above standard error to be closed by exec.
///
/// Marking instead of closing spares the pipe through which failures are told.
fn close_inherited() -> Result<(), Errno> {
    // SAFETY: a system call without memory arguments; it changes no descriptor's validity.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

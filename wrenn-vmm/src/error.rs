//! What can go wrong with a monitor.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;
use wrenn_base::{BoxError, SandboxId};

use crate::cgroup::CgroupError;
use crate::contain::ContainmentError;
use crate::exit::ExitReport;
use crate::spec::VM_DIR;

/// A failure to find, start, reach or stop a monitor, or its refusal of a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmmError {
    /// No monitor program was found.
    #[error(
        "no monitor program {wanted:?} found (looked at: {}); build one with `cargo build -p wrenn-monitor`, or \
         name one in WRENN_MONITOR", list(.searched)
    )]
    MonitorNotFound {
        /// The name or path that was looked for.
        wanted: String,
        /// Every path that was tried, in order.
        searched: Vec<PathBuf>,
    },
    /// The monitor program is there but cannot be run.
    #[error("the monitor program {path} is not an executable file; give it permission with `chmod +x`", path = .path.display())]
    MonitorNotExecutable {
        /// The file.
        path: PathBuf,
    },
    /// The API socket's path does not fit into a socket address.
    #[error("the API socket's path {path} is longer than the {limit} bytes of a socket address; use a shorter directory", path = .path.display())]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// The most bytes that fit.
        limit: usize,
    },
    /// Something that is no socket lies where the API socket should be.
    #[error("{path} is in the API socket's place and is not a socket; move it away", path = .path.display())]
    SocketPathOccupied {
        /// The path.
        path: PathBuf,
    },
    /// A file or directory that the monitor needs could not be prepared.
    #[error("could not prepare {what} {path}", path = .path.display())]
    Prepare {
        /// What it is, for example "the console log".
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The network namespace is not there or not accessible.
    #[error("the network namespace {path} cannot be opened; create the sandbox's network slot first", path = .path.display())]
    NetnsMissing {
        /// The namespace's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The sandbox's disk is not there.
    #[error("the disk {path} cannot be opened; attach the sandbox's root disk first", path = .path.display())]
    DiskMissing {
        /// The disk's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The new process failed before it became the monitor.
    #[error("the monitor's process failed while {step}{}", hint(.source))]
    Setup {
        /// What it was doing.
        step: SetupStep,
        /// Why it failed.
        source: io::Error,
    },
    /// The monitor cannot be contained as it was asked for.
    #[error(transparent)]
    Containment(#[from] ContainmentError),
    /// The monitor's cgroup could not be made or set.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The process could not be started.
    #[error("could not run the monitor program {program}", program = .program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The monitor that was to be taken over has ended.
    #[error("the monitor of sandbox {id}, process {pid}, has ended")]
    Gone {
        /// The sandbox.
        id: SandboxId,
        /// The process's number.
        pid: i32,
    },
    /// The process was started but cannot be watched; it was killed.
    #[error("could not watch the monitor's process")]
    Watch {
        /// Why.
        source: io::Error,
    },
    /// The monitor ended while something was expected of it.
    #[error("the monitor of sandbox {id} ended during {during}: {report}")]
    Exited {
        /// The sandbox.
        id: SandboxId,
        /// What was going on: a call's name, or "startup".
        during: String,
        /// How it ended, with the tail of its console.
        report: Box<ExitReport>,
    },
    /// The monitor did not open its API socket in time; it still runs.
    #[error(
        "the monitor of sandbox {id} did not answer on {socket} within {limit:?}; its console is in {console_log}",
        socket = .socket.display(), console_log = .console_log.display()
    )]
    NotReady {
        /// The sandbox.
        id: SandboxId,
        /// The API socket.
        socket: PathBuf,
        /// How long was waited.
        limit: Duration,
        /// Where the monitor's output is.
        console_log: PathBuf,
    },
    /// Nobody listens on the API socket.
    #[error("{call}: nobody listens on {socket}; is the monitor running?", socket = .socket.display())]
    NotListening {
        /// The call's name, for example "PUT /boot-source".
        call: String,
        /// The API socket.
        socket: PathBuf,
        /// Why the connection failed.
        source: BoxError,
    },
    /// The monitor did not answer in time; whether it did what was asked is not known.
    #[error("{call}: the monitor did not answer within {limit:?}; stop it, its state is not known")]
    TimedOut {
        /// The call's name.
        call: String,
        /// The limit.
        limit: Duration,
    },
    /// The monitor refused the call and said why.
    #[error("{call}: the monitor refused ({status}): {fault_message}")]
    Fault {
        /// The call's name.
        call: String,
        /// The HTTP status.
        status: StatusCode,
        /// The monitor's own words, clipped and without control characters.
        fault_message: String,
    },
    /// The monitor broke the connection, or answered what the API does not allow.
    #[error("{call}: the monitor's answer cannot be understood; is it a Firecracker-compatible one?")]
    Protocol {
        /// The call's name.
        call: String,
        /// What was wrong.
        source: BoxError,
    },
    /// A value that cannot be sent.
    #[error("{call}: {what} {value:?} cannot be sent: {rule}")]
    InvalidRequest {
        /// The call's name.
        call: String,
        /// Which value it is.
        what: &'static str,
        /// The value, clipped.
        value: String,
        /// What it should be.
        rule: &'static str,
    },
    /// A process that not even SIGKILL ended in time; it keeps its disk and namespaces busy.
    #[error(
        "the monitor of sandbox {id} (process {pid}) is still there {limit:?} after SIGKILL; it is stuck in the kernel"
    )]
    Unkillable {
        /// The sandbox.
        id: SandboxId,
        /// The process.
        pid: i32,
        /// How long was waited.
        limit: Duration,
    },
}

/// What a new process does before it becomes the monitor, in this order; not every monitor takes every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetupStep {
    /// `setsid`, so that signals to the caller's terminal or group do not reach it; its own mask of file modes.
    NewSession,
    /// No core dumps: they would hold guest memory.
    Limits,
    /// The console log becomes its output.
    Output,
    /// `setns` into the sandbox's network namespace.
    EnterNetns,
    /// `unshare` of the mount namespace; where it is contained, of those for IPC and host names too.
    NewNamespaces,
    /// Mounts made from here on stay here.
    DetachMounts,
    /// The small file system over [`VM_DIR`].
    MountVmDir,
    /// The file that the disk is bound to.
    CreateDiskFile,
    /// The file system that becomes a contained monitor's root.
    MountRoot,
    /// The root's directories and links.
    FillRoot,
    /// Its device nodes.
    MakeDevices,
    /// The program, and the files and directories that it is shown.
    BindFiles,
    /// The bind mount of the disk.
    BindDisk,
    /// `pivot_root`, and the host's file systems are gone.
    EnterRoot,
    /// The root becomes read-only.
    SealRoot,
    /// It runs where its caller may run.
    Processors,
    /// The limits of descriptors and processes.
    ResourceLimits,
    /// `no_new_privs`: no program gives it any.
    NoNewPrivileges,
    /// No capability can be had ever again.
    DropBoundingSet,
    /// No groups, and the group and user of its own.
    ChangeUser,
    /// All other sets of capabilities are emptied.
    DropCapabilities,
    /// `/`, where it is not contained.
    WorkingDirectory,
    /// Inherited descriptors are marked to be closed.
    CloseDescriptors,
}

impl SetupStep {
    /// Every step; a step travels between processes as its index here.
    pub(crate) const ALL: [Self; 23] = [
        Self::NewSession,
        Self::Limits,
        Self::Output,
        Self::EnterNetns,
        Self::NewNamespaces,
        Self::DetachMounts,
        Self::MountVmDir,
        Self::CreateDiskFile,
        Self::MountRoot,
        Self::FillRoot,
        Self::MakeDevices,
        Self::BindFiles,
        Self::BindDisk,
        Self::EnterRoot,
        Self::SealRoot,
        Self::Processors,
        Self::ResourceLimits,
        Self::NoNewPrivileges,
        Self::DropBoundingSet,
        Self::ChangeUser,
        Self::DropCapabilities,
        Self::WorkingDirectory,
        Self::CloseDescriptors,
    ];
}

impl fmt::Display for SetupStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewSession => f.write_str("starting a session of its own"),
            Self::Limits => f.write_str("switching off core dumps"),
            Self::Output => f.write_str("connecting its output to the console log"),
            Self::EnterNetns => f.write_str("entering the sandbox's network namespace"),
            Self::NewNamespaces => f.write_str("making namespaces of its own"),
            Self::DetachMounts => f.write_str("detaching its mounts from the host's"),
            Self::MountVmDir => write!(f, "mounting a file system over {VM_DIR}"),
            Self::CreateDiskFile => f.write_str("creating the disk's mount point"),
            Self::MountRoot => f.write_str("mounting a root of its own"),
            Self::FillRoot => f.write_str("making the directories of its root"),
            Self::MakeDevices => f.write_str("making its device nodes"),
            Self::BindFiles => f.write_str("showing it its files"),
            Self::BindDisk => f.write_str("binding the sandbox's disk to its fixed path"),
            Self::EnterRoot => f.write_str("changing its root"),
            Self::SealRoot => f.write_str("making its root read-only"),
            Self::Processors => f.write_str("keeping to the processors of its owner"),
            Self::ResourceLimits => f.write_str("limiting its descriptors and processes"),
            Self::NoNewPrivileges => f.write_str("renouncing new privileges"),
            Self::DropBoundingSet => f.write_str("emptying its capability bounding set"),
            Self::ChangeUser => f.write_str("becoming a user of its own"),
            Self::DropCapabilities => f.write_str("dropping its capabilities"),
            Self::WorkingDirectory => f.write_str("changing to the root directory"),
            Self::CloseDescriptors => f.write_str("closing inherited descriptors"),
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The remedy for the one cause that setting up a process commonly has.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (namespaces and mounts need root, or CAP_SYS_ADMIN)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_its_place_and_its_words() {
        for (at, step) in SetupStep::ALL.iter().enumerate() {
            assert_eq!(*step as usize, at);
            assert!(!step.to_string().is_empty());
        }
    }

    #[test]
    fn messages_name_the_thing_and_the_remedy_but_not_the_source() {
        let error = VmmError::Setup {
            step: SetupStep::EnterNetns,
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        let text = error.to_string();
        assert!(text.contains("network namespace") && text.contains("CAP_SYS_ADMIN"), "{text}");
        assert!(!text.contains("not permitted"), "{text}");
        let error = VmmError::MonitorNotFound {
            wanted: "wrenn-monitor".into(),
            searched: vec!["/a/wrenn-monitor".into(), "/b/wrenn-monitor".into()],
        };
        let text = error.to_string();
        assert!(
            text.contains("/a/wrenn-monitor, /b/wrenn-monitor") && text.contains("WRENN_MONITOR"),
            "{text}"
        );
    }
}

//! How a monitor is to be run.

use std::ffi::OsString;
use std::path::PathBuf;

use wrenn_base::SandboxId;

use crate::client::Timeouts;
use crate::contain::Containment;
use crate::program::MonitorProgram;

/// The directory that every monitor sees its own file system at; the same for all sandboxes.
pub const VM_DIR: &str = "/run/wrenn/vm";

/// Where every monitor sees its sandbox's disk, whatever the disk is called on the host.
///
/// A snapshot's state holds the path of each drive. Because this one is the same for every sandbox, a
/// snapshot can be restored by another one, with another disk.
pub const ROOT_DISK_PATH: &str = "/run/wrenn/vm/root.disk";

/// One monitor to be started.
///
/// ```
/// use wrenn_base::SandboxId;
/// use wrenn_vmm::{DiskMount, MonitorProgram, MonitorSpec};
/// # fn example(program: MonitorProgram) {
/// let id = SandboxId::random();
/// let mut spec = MonitorSpec::new(program, id, "/run/wrenn/a/api.sock", "/run/wrenn/a/console.log");
/// spec.netns = Some("/run/netns/wrenn-a".into());
/// spec.disk = Some(DiskMount { source: "/dev/mapper/wrenn-a".into() });
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MonitorSpec {
    /// What to run.
    pub program: MonitorProgram,
    /// Whose monitor it is; passed on as `--id`.
    pub id: SandboxId,
    /// The Unix socket that the monitor is to listen on; at most 107 bytes. A socket left there is removed.
    pub api_socket: PathBuf,
    /// The file that the monitor's and the guest's output is appended to; its directory must exist, and
    /// the file is left behind. It never grows far beyond 4 MiB.
    pub console_log: PathBuf,
    /// The network namespace to enter; absent means the caller's own.
    pub netns: Option<PathBuf>,
    /// The disk to show at [`ROOT_DISK_PATH`], in a mount namespace of the monitor's own; absent means the
    /// caller's mounts.
    pub disk: Option<DiskMount>,
    /// What the monitor is held in; absent means that it runs as the caller does, beside what is said above.
    ///
    /// A contained monitor is PID 1 of its PID namespace, sees nothing but what its containment names, and its disk where
    /// that is a file belongs to its user from then on. So does the API socket's directory, which must be there for
    /// it alone, until the monitor is ready.
    pub containment: Option<Containment>,
    /// Whether the monitor filters its own system calls; off only to debug it.
    pub seccomp: bool,
    /// More arguments, after those above. Relative paths in them are relative to `/`.
    pub extra_args: Vec<OsString>,
    /// How long calls to the monitor may take.
    pub timeouts: Timeouts,
}

impl MonitorSpec {
    /// A monitor in the caller's namespaces, not contained, with seccomp on and default time limits.
    pub fn new(
        program: MonitorProgram,
        id: SandboxId,
        api_socket: impl Into<PathBuf>,
        console_log: impl Into<PathBuf>,
    ) -> Self {
        Self {
            program,
            id,
            api_socket: api_socket.into(),
            console_log: console_log.into(),
            netns: None,
            disk: None,
            containment: None,
            seccomp: true,
            extra_args: Vec::new(),
            timeouts: Timeouts::default(),
        }
    }
}

/// A disk that a monitor sees at [`ROOT_DISK_PATH`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskMount {
    /// The block device or file on the host.
    pub source: PathBuf,
}

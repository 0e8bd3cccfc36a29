//! What can go wrong with control groups.

use std::io;
use std::path::{Path, PathBuf};

use super::Controller;

/// A cgroup could not be made, set or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// There is no cgroup2 file system.
    #[error("no cgroup2 file system is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup")]
    NotMounted,
    /// The directory is in no cgroup2 file system.
    #[error("{} is not in a cgroup2 file system; choose a directory in one", dir.display())]
    NotCgroup2 {
        /// The directory.
        dir: PathBuf,
    },
    /// A controller that is required is missing.
    #[error(
        "the cgroup {} has no {controller} controller; boot with it in version 2 (cgroup_no_v1=all), and see that every \
         cgroup above has it in its cgroup.subtree_control", dir.display()
    )]
    NoController {
        /// Which one.
        controller: Controller,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// The machine's cgroups would let a sandbox run where its owner may not.
    #[error("the cgroup {} may use the {what} {got}, and this process only {own}", dir.display())]
    Unconfined {
        /// The cgroup.
        dir: PathBuf,
        /// CPUs, or memory nodes.
        what: &'static str,
        /// What the cgroup may use.
        got: String,
        /// What this process may use.
        own: String,
    },
    /// A file of the kernel's does not say what it should.
    #[error("{} cannot be understood: {text:?}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it says.
        text: String,
    },
    /// Processes that not even SIGKILL ended in time.
    #[error("the cgroup {} still has processes in it", dir.display())]
    Busy {
        /// The cgroup.
        dir: PathBuf,
    },
    /// The system refused.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl CgroupError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

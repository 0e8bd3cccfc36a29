//! The one error of the public API.
//!
//! [`Error`] is what a call returns: its [`kind`](Error::kind) for programs that decide, its text and sources for
//! people who read, its [`cause`](Error::cause) for both. Undoing what a failed call had built may fail as well;
//! those failures stand beside the first error, in [`cleanup`](Error::cleanup), and never replace it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use wrenn_agent_api::AgentError;
use wrenn_base::{InvalidId, SandboxId, UndoFailure};
use wrenn_net::NetError;
use wrenn_storage::{DiskError, ImageError, MemoryError};
use wrenn_uffd::UffdError;
use wrenn_vmm::VmmError;

/// A failed call: what went wrong first, and what could not be undone after it.
pub struct Error {
    cause: Box<Cause>,
    cleanup: Vec<UndoFailure>,
}

/// What a program can decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request itself cannot be served, here or anywhere: correct it.
    InvalidInput,
    /// The image, sandbox, file or process named is not there.
    NotFound,
    /// This host lacks something: a device, a permission, a program, memory. The text has the remedy.
    HostUnfit,
    /// A stored file is truncated, altered, foreign or newer than this program.
    Corrupt,
    /// Something did not answer in time.
    TimedOut,
    /// The guest or its monitor ended.
    GuestEnded,
    /// The guest's agent refused or broke off a call.
    Agent,
    /// The call did what it was asked, but left something on the host that could not be removed.
    Cleanup,
    /// The data directory or the sandbox is in use by another process or call.
    Busy,
    /// The operating system refused; the text names what and where.
    System,
}

/// What went wrong, in full.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// A text is no valid id or name.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
    /// A number or text of the request is out of its range.
    #[error("invalid {what}: {why}")]
    InvalidSpec {
        /// The parameter.
        what: &'static str,
        /// The rule it breaks.
        why: String,
    },
    /// A device of this machine cannot be used.
    #[error("{path} cannot be used; {remedy}")]
    Device {
        /// The device.
        path: &'static str,
        /// What to do about it.
        remedy: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data directory is open in another process.
    #[error("the data directory {path} is in use by another process; close it there, or choose another directory")]
    DataDirBusy {
        /// The directory.
        path: PathBuf,
    },
    /// No sandbox of that id is stored here.
    #[error("no paused sandbox {id} is stored in this data directory")]
    NoSuchSandbox {
        /// The id.
        id: SandboxId,
    },
    /// A file of a snapshot is not what was written.
    #[error("the snapshot file {path} is unusable: {why}; restore it from a copy, or remove the sandbox")]
    BadSnapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The agent did not answer in time.
    #[error("the agent of sandbox {id} did not answer within {waited:?}; the console ends with:\n{console}")]
    AgentSilent {
        /// The sandbox.
        id: SandboxId,
        /// How long it was given.
        waited: Duration,
        /// The last lines of the guest's console.
        console: String,
    },
    /// The monitor, and the guest with it, ended.
    #[error("the guest of sandbox {id} ended ({status}); the console ends with:\n{console}")]
    GuestEnded {
        /// The sandbox.
        id: SandboxId,
        /// How it ended.
        status: String,
        /// The last lines of the guest's console.
        console: String,
    },
    /// Guest memory could not be paged in.
    #[error("the memory of sandbox {id} could not be paged in")]
    Paging {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        source: UffdError,
    },
    /// Something was left behind; see [`Error::cleanup`].
    #[error("{what}: some of its resources could not be removed")]
    Cleanup {
        /// What was being removed.
        what: String,
    },
    /// A call of the guest's agent failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The monitor could not be driven.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The fault server could not be set up.
    #[error(transparent)]
    Uffd(#[from] UffdError),
    /// The network slot could not be made.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The root disk could not be made or opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The image, kernel or initramfs is missing or unusable.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The memory image could not be written or read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The operating system refused.
    #[error("could not {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

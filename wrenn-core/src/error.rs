//! The one error of the public API.
//!
//! [`Error`] is what a call returns: its [`kind`](Error::kind) for programs that decide, its text and sources for
//! people who read, its [`cause`](Error::cause) for both. Undoing what a failed call had built may fail as well;
//! those failures stand beside the first error, in [`cleanup`](Error::cleanup), and never replace it.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wrenn_agent_api::AgentError;
use wrenn_base::{Bytes, ImageName, InvalidId, SandboxId, TemplateName, UndoFailure};
use wrenn_net::NetError;
use wrenn_pager::PagerError;
use wrenn_storage::{Digest, DiskError, ImageError, MemoryError, SnapshotError};
use wrenn_vmm::VmmError;

use crate::lifetime::OnTimeout;

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
    #[error("the data directory {} is in use by another process; close it there, or choose another directory", path.display())]
    DataDirBusy {
        /// The directory.
        path: PathBuf,
    },
    /// A sandbox, or a clone of the host, still uses the host that was to be closed.
    #[error(
        "the host is still in use by a sandbox or by a clone of its handle; it goes with the last of them"
    )]
    HostInUse,
    /// The file that holds the host's id is damaged.
    #[error("the host file {} is unusable: {why}; restore it from a copy, or begin with another data directory", path.display())]
    BadHostFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The sandbox already has a machine, or its last one is still being removed.
    #[error("sandbox {id} is running, or still being taken down")]
    SandboxBusy {
        /// The sandbox.
        id: SandboxId,
    },
    /// Nobody in the guest took a connection to a port.
    #[error("port {port} of sandbox {id} could not be reached")]
    Port {
        /// The sandbox.
        id: SandboxId,
        /// The guest's port.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },
    /// A port was to be published at an address that cannot be listened at.
    #[error("cannot listen at {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The sandbox was idle for its timeout, or its host was shut down, and has become what was asked for then.
    #[error("sandbox {id} was idle for its timeout, or its host was shut down: it is {}", match then { OnTimeout::Pause => "paused; resume it", OnTimeout::Destroy => "destroyed" })]
    Expired {
        /// The sandbox.
        id: SandboxId,
        /// What was asked for.
        then: OnTimeout,
    },
    /// A sandbox was not ended within the time that a shutdown had.
    #[error("sandbox {id} was not ended within {limit:?}, and may run on")]
    ShutdownLimit {
        /// The sandbox.
        id: SandboxId,
        /// The time.
        limit: Duration,
    },
    /// Another sandbox has the id that was asked for.
    #[error("there is a sandbox {id} already; destroy it first, or choose another id")]
    SandboxExists {
        /// The sandbox.
        id: SandboxId,
    },
    /// No sandbox of that id is stored here.
    #[error("no paused sandbox {id} is stored in this data directory")]
    NoSuchSandbox {
        /// The id.
        id: SandboxId,
    },
    /// No sandbox of that id runs here.
    #[error("no sandbox {id} is running; if it is paused, resume it")]
    NotRunning {
        /// The id.
        id: SandboxId,
    },
    /// No template of that name is stored here.
    #[error("there is no template {name} in this data directory")]
    NoSuchTemplate {
        /// The name.
        name: TemplateName,
    },
    /// A template of that name is there already.
    #[error("there is a template {name} already; remove it first, or choose another name")]
    TemplateExists {
        /// The name.
        name: TemplateName,
    },
    /// Sandboxes are being made from the template that was to be removed.
    #[error("sandboxes are being made from template {name} at this moment; remove it when they run")]
    TemplateBusy {
        /// The name.
        name: TemplateName,
    },
    /// A snapshot decides what was asked to be otherwise.
    #[error(
        "{what} is {held} in the snapshot, and cannot become {wanted}; leave it out, or boot another sandbox"
    )]
    FixedBySnapshot {
        /// The parameter.
        what: &'static str,
        /// What the snapshot has.
        held: String,
        /// What was asked for.
        wanted: String,
    },
    /// The snapshot's memory is not in one file.
    #[error(
        "the memory of sandbox {id} is in {layers} layers, and only one can be mapped; resume it with RestoreMode::Uffd, \
         or wait until it is compacted"
    )]
    NotOneLayer {
        /// The sandbox.
        id: SandboxId,
        /// How many layers there are.
        layers: usize,
    },
    /// The monitor has other memory than its guest was given.
    #[error("the monitor says that its guest has {found} of memory; it was given {expected}")]
    GuestMemorySize {
        /// What the monitor says.
        found: Bytes,
        /// What the guest was given.
        expected: Bytes,
    },
    /// A file of a snapshot is not what was written.
    #[error("the snapshot file {} is unusable: {why}; restore it from a copy, or remove the sandbox", path.display())]
    BadSnapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The image that a sandbox was made from has been replaced: its disk would be a mixture of two.
    #[error(
        "the disk of sandbox {id} belongs to another image {image} (sha256 {expected}) than is registered now \
         (sha256 {found}); register that one again"
    )]
    OtherImage {
        /// The sandbox.
        id: SandboxId,
        /// The image's name.
        image: ImageName,
        /// The digest of the image that the sandbox was made from.
        expected: Digest,
        /// The digest of the image of that name now.
        found: Digest,
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
    #[error("the guest of sandbox {id} was ended because its memory could not be paged in: {why}")]
    Paging {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        why: String,
    },
    /// Something was left behind; see [`Error::cleanup`].
    #[error("{what}: some of its resources could not be removed")]
    Cleanup {
        /// What was being removed.
        what: String,
    },
    /// A command printed more than was to be collected; it runs on, its output thrown away.
    #[error(
        "the command printed more than {limit} bytes; raise `output_limit`, or use `spawn` and read as it prints"
    )]
    OutputTooLarge {
        /// The limit for each stream, in bytes.
        limit: usize,
    },
    /// A call of the guest's agent failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The monitor could not be driven.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The guest's memory could not be read out of its monitor.
    #[error(transparent)]
    GuestMemory(#[from] wrenn_vmm::MemoryError),
    /// The process that pages memory in could not be found, started or reached, or could not open the memory.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// The network slot could not be made.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The root disk could not be made or opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The image, kernel or initramfs is missing or unusable.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The snapshot could not be written or read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The memory image could not be written or read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The operating system refused.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Cause {
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io { action, path: path.as_ref().to_owned(), source }
    }
}

impl Error {
    pub(crate) fn with_cleanup(cause: Cause, cleanup: Vec<UndoFailure>) -> Self {
        Self { cause: Box::new(cause), cleanup }
    }

    /// The error of a removal that succeeded but for `failures`; no error where there are none.
    pub(crate) fn from_cleanup(what: impl Into<String>, failures: Vec<UndoFailure>) -> Result<(), Self> {
        match failures.is_empty() {
            true => Ok(()),
            false => Err(Self::with_cleanup(Cause::Cleanup { what: what.into() }, failures)),
        }
    }

    /// What went wrong, in full.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// What could not be undone after it; usually empty.
    pub fn cleanup(&self) -> &[UndoFailure] {
        &self.cleanup
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        Self::with_cleanup(cause, Vec::new())
    }
}

impl From<InvalidId> for Error {
    fn from(refused: InvalidId) -> Self {
        Cause::from(refused).into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)?;
        match self.cleanup.len() {
            0 => Ok(()),
            left => write!(f, " ({left} of its resources could not be removed)"),
        }
    }
}

impl fmt::Debug for Error {
    /// The whole story, as `unwrap` and a `main` that returns it show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut source = StdError::source(self);
        while let Some(cause) = source {
            write!(f, "\n  because: {cause}")?;
            source = cause.source();
        }
        for failure in &self.cleanup {
            write!(f, "\n  {failure}: {}", failure.source)?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.source()
    }
}

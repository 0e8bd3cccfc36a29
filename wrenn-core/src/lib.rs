//! MicroVM sandboxes as a library: boot one, run commands in it, pause it to disk, resume it in an instant.
//!
//! A [`Host`] is a data directory opened for use. It creates [`Sandbox`]es, which run; pausing one gives a
//! [`PausedSandbox`], which is a snapshot on disk and nothing else; resuming that gives a [`Sandbox`] again, its
//! memory paged in as the guest touches it. A [`Template`] is a snapshot with a name, of which any number of sandboxes
//! are made; [`Sandbox::branch`] makes some of a running one.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let host = wrenn_core::Host::builder().data_dir("/var/lib/wrenn").open().await?;
//! let sandbox = host.sandbox("debian")?.create().await?;
//! sandbox.files().write("/root/hello.py", "print('hello from', __file__)").await?;
//! println!("{}", sandbox.exec("python3 /root/hello.py").await?.stdout_text());
//! let paused = sandbox.pause().await?;
//! let sandbox = paused.resume().await?;
//! sandbox.destroy().await?;
//! host.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Failure and cancellation
//! Every step that makes something on the machine registers its undo first. A call that fails undoes what it made
//! and returns the first error; a call whose future is dropped does the same in the background. A failed pause hands
//! the running sandbox back, a failed resume the paused one.
#![forbid(unsafe_code)]

mod assembly;
mod branch;
mod builder;
mod capture;
mod changes;
mod command;
mod compaction;
mod configure;
mod console;
mod containment;
mod disk_limit;
mod division;
mod error;
mod events;
mod expiry;
mod files;
mod host;
mod info;
mod instance;
mod journal;
mod kind;
mod layout;
mod lifecycle;
mod lifetime;
mod machine;
mod memory;
pub mod metrics;
mod network;
mod opening;
mod paging;
mod paused;
mod pipes;
mod ports;
mod preflight;
mod process;
mod recovery;
mod registry;
mod restore;
mod running;
mod sandbox;
mod shutdown;
mod spec;
mod step;
mod stored;
mod sweep;
mod template;
mod templates_in_use;
mod terminal;
mod usage;

pub use branch::BranchBuilder;
pub use builder::SandboxBuilder;
pub use command::{Command, CommandStatus, Output};
pub use compaction::CompactionPolicy;
pub use containment::ContainmentPolicy;
pub use disk_limit::DiskLimit;
pub use error::{Cause, Error, ErrorKind};
pub use events::{EventKind, Events, EventsLost, SandboxEvent};
pub use files::{FileStream, FileWatch, Files};
pub use host::Host;
pub use info::SandboxInfo;
pub use lifecycle::SandboxState;
pub use lifetime::OnTimeout;
pub use network::PublishedPort;
pub use opening::HostBuilder;
pub use paused::{PausedSandbox, ResumeError, SnapshotInfo};
pub use pipes::{ProcessReader, ProcessStdin};
pub use ports::{GuestStream, Ports};
pub use preflight::{Check, Preflight, Subject, Verdict};
pub use process::Process;
pub use restore::{Prefetch, RestoreMode, RestoreOptions, RestoreTimings};
pub use sandbox::{PauseError, Sandbox};
pub use shutdown::{ShutdownFailure, ShutdownPolicy};
pub use stored::SnapshotKind;
pub use template::{TakenSnapshot, Template, TemplateBuilder, TemplateInfo};
pub use terminal::{Pty, Terminal};
pub use usage::Usage;

pub use wrenn_agent_api::{
    AccessToken, AgentError, Channel, FileEvent, FileEventKind, FileInfo, FileKind, GuestPath, ProcessEvent,
    ProcessInfo, Selector, Signal, TerminalSize, Upload, WatchOptions,
};
pub use wrenn_base::{Bytes, HostId, ImageName, InvalidId, MiB, SandboxId, TemplateName, UndoFailure};
pub use wrenn_net::{
    AllowRule, Bandwidth, BandwidthError, Cidr, EgressError, EgressPolicy, NamePattern, Protocol,
};
pub use wrenn_pager::{FaultStats, PagerError, PagerProgram};
pub use wrenn_storage::{BackendChoice as DiskBackend, ImageUsage};
pub use wrenn_vmm::{Controller, ExitCause, ExitReport, ExitStatus, MonitorProgram};

/// Images, kernels and the files they are made of: what tools that build images need.
pub mod image {
    pub use wrenn_storage::{
        Collision, Digest, GuestDetails, GuestFiles, Image, ImageDetails, ImageError, ImageRegistry,
        KernelFormat, StagedGuest, StagedImage, durable,
    };
}

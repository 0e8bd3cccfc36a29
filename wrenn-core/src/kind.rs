//! Which kind each cause is: the one table that programs decide by.

use std::io;

use wrenn_agent_api::AgentError;
use wrenn_net::NetError;
use wrenn_pager::PagerError;
use wrenn_storage::{DiskError, ImageError, MemoryError, SnapshotError};
use wrenn_vmm::{CgroupError, VmmError};

use crate::error::{Cause, Error, ErrorKind};

impl Error {
    /// What a program can decide by.
    pub fn kind(&self) -> ErrorKind {
        self.cause().kind()
    }
}

impl Cause {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidId(_)
            | Self::InvalidSpec { .. }
            | Self::OutputTooLarge { .. }
            | Self::FixedBySnapshot { .. }
            | Self::NotOneLayer { .. } => ErrorKind::InvalidInput,
            Self::Device { .. } => ErrorKind::HostUnfit,
            Self::DataDirBusy { .. }
            | Self::HostInUse
            | Self::SandboxBusy { .. }
            | Self::SandboxExists { .. }
            | Self::TemplateBusy { .. }
            | Self::TemplateExists { .. } => ErrorKind::Busy,
            Self::NoSuchSandbox { .. } | Self::NotRunning { .. } | Self::NoSuchTemplate { .. } => {
                ErrorKind::NotFound
            }
            Self::BadHostFile { .. } | Self::BadSnapshot { .. } | Self::OtherImage { .. } => {
                ErrorKind::Corrupt
            }
            Self::AgentSilent { .. } | Self::ShutdownLimit { .. } => ErrorKind::TimedOut,
            Self::Port { source, .. } if source.kind() == io::ErrorKind::TimedOut => ErrorKind::TimedOut,
            Self::Port { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                ErrorKind::NotFound
            }
            Self::GuestEnded { .. } | Self::Paging { .. } | Self::Expired { .. } => ErrorKind::GuestEnded,
            Self::Cleanup { .. } => ErrorKind::Cleanup,
            Self::Agent(e) => agent(e),
            Self::Vmm(e) => vmm(e),
            Self::Net(e) => net(e),
            Self::Disk(e) => disk(e),
            Self::Image(e) => image(e),
            Self::Snapshot(e) => snapshot(e),
            Self::Memory(e) => memory(e),
            Self::GuestMemory(wrenn_vmm::MemoryError::Gone) => ErrorKind::GuestEnded,
            Self::Pager(PagerError::Program(_)) => ErrorKind::HostUnfit,
            Self::Pager(_)
            | Self::Io { .. }
            | Self::Port { .. }
            | Self::Listen { .. }
            | Self::GuestMemory(_)
            | Self::GuestMemorySize { .. } => ErrorKind::System,
        }
    }

    /// Whether a guest that has just ended would explain this error better.
    pub(crate) fn may_be_the_guests_end(&self) -> bool {
        match self {
            Self::Agent(e) => e.is_unreachable(),
            Self::Port { .. } => true,
            Self::Vmm(e) => matches!(
                e,
                VmmError::NotListening { .. } | VmmError::Protocol { .. } | VmmError::Exited { .. }
            ),
            Self::GuestMemory(wrenn_vmm::MemoryError::Gone) => true,
            _ => false,
        }
    }
}

fn agent(error: &AgentError) -> ErrorKind {
    match error {
        AgentError::Timeout { .. } | AgentError::CommandTimeout => ErrorKind::TimedOut,
        AgentError::NotFound { .. } => ErrorKind::NotFound,
        AgentError::InvalidArgument { .. } => ErrorKind::InvalidInput,
        _ => ErrorKind::Agent,
    }
}

fn vmm(error: &VmmError) -> ErrorKind {
    match error {
        VmmError::MonitorNotFound { .. } | VmmError::MonitorNotExecutable { .. } => ErrorKind::HostUnfit,
        VmmError::Containment(_)
        | VmmError::Cgroup(
            CgroupError::NotMounted | CgroupError::NoController { .. } | CgroupError::Unconfined { .. },
        ) => ErrorKind::HostUnfit,
        VmmError::SocketPathTooLong { .. } => ErrorKind::InvalidInput,
        VmmError::NotReady { .. } | VmmError::TimedOut { .. } => ErrorKind::TimedOut,
        VmmError::Exited { .. } => ErrorKind::GuestEnded,
        _ => ErrorKind::System,
    }
}

fn net(error: &NetError) -> ErrorKind {
    match error {
        NetError::NotPermitted { .. }
        | NetError::NoTun { .. }
        | NetError::PoolClash { .. }
        | NetError::NoFreeIndex { .. } => ErrorKind::HostUnfit,
        NetError::SlotGone { .. } => ErrorKind::GuestEnded,
        _ => ErrorKind::System,
    }
}

fn disk(error: &DiskError) -> ErrorKind {
    match error {
        DiskError::NoDeviceMapper { .. } => ErrorKind::HostUnfit,
        DiskError::BadSize { .. } | DiskError::TooSmall { .. } => ErrorKind::InvalidInput,
        DiskError::NotWholeBlocks { .. } | DiskError::WrongLength { .. } | DiskError::Damaged { .. } => {
            ErrorKind::Corrupt
        }
        _ => ErrorKind::System,
    }
}

fn image(error: &ImageError) -> ErrorKind {
    match error {
        ImageError::NotFound { .. } | ImageError::NoGuest { .. } => ErrorKind::NotFound,
        ImageError::Io { .. } => ErrorKind::System,
        ImageError::AlreadyRegistered { .. } => ErrorKind::Busy,
        _ => ErrorKind::Corrupt,
    }
}

fn snapshot(error: &SnapshotError) -> ErrorKind {
    match error {
        SnapshotError::Unusable { .. } | SnapshotError::Newer { .. } => ErrorKind::Corrupt,
        _ => ErrorKind::System,
    }
}

fn memory(error: &MemoryError) -> ErrorKind {
    match error {
        MemoryError::Io { .. } => ErrorKind::System,
        MemoryError::CoarseHoles { .. }
        | MemoryError::OtherFileSystem { .. }
        | MemoryError::DirectoriesApart { .. } => ErrorKind::HostUnfit,
        MemoryError::Cancelled
        | MemoryError::BrokenWriter
        | MemoryError::PartPages { .. }
        | MemoryError::PageOrder { .. } => ErrorKind::System,
        _ => ErrorKind::Corrupt,
    }
}

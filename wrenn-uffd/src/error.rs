//! Why a fault server could not start, or could not go on.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use wrenn_base::{BoxError, Bytes};

/// A fault server could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UffdError {
    /// The server's socket could not be made.
    #[error("could not listen on {}: the directory has to exist, the path be free and of at most 107 bytes",
            path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The operating system refused something that has no name of its own.
    #[error("could not {action}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The monitor did not connect and introduce itself in time.
    #[error("no monitor {} within {deadline:?}: see its log",
            if *.connected { "sent its memory regions" } else { "connected" })]
    Deadline {
        /// How long the server waited.
        deadline: Duration,
        /// Whether anybody connected at all.
        connected: bool,
    },
    /// What connected does not speak the protocol, or is not to be served.
    #[error("the process that connected to {} cannot be served", path.display())]
    Handshake {
        /// The socket's path.
        path: PathBuf,
        /// What it did.
        source: HandshakeError,
    },
    /// The source could not give a page. The process cannot go on.
    #[error("the page at {offset:#x} of the image could not be read")]
    Source {
        /// Where in the image the read began.
        offset: u64,
        /// The source's error.
        source: BoxError,
    },
    /// The source, or the server, panicked. The process cannot go on.
    #[error("the fault server panicked: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// Something happened to the memory that this server does not serve. The process cannot go on.
    #[error("the process's memory saw {event}, which a fault server cannot follow")]
    Unsupported {
        /// What happened.
        event: &'static str,
    },
    /// A fault outside the regions that were handed over. The process cannot go on.
    #[error("a fault at {address:#x}, which is in no region that was handed over")]
    Stray {
        /// The address that was touched.
        address: u64,
    },
    /// The kernel refused to fill a page. The process cannot go on.
    #[error("the kernel refused to fill the page at {address:#x} of the process")]
    Fill {
        /// The page's address in the process.
        address: u64,
        /// Why it failed: out of memory, or an address that is not registered.
        source: io::Error,
    },
    /// The kernel refused to put a page into a [`PageCache`](crate::PageCache). The process cannot go on.
    #[error("the kernel refused to put the page at {offset:#x} of the image into its cache")]
    Cache {
        /// Where in the image the page is.
        offset: u64,
        /// Why it failed: out of memory, most likely.
        source: io::Error,
    },
    /// A process on a cache gave pages back (`MADV_DONTNEED`, a balloon). It cannot go on: what it would read
    /// there is the image's old content, straight from the cache, where it must find zeros.
    #[error(
        "the process gave back memory at {address:#x}, where its page cache would bring old content back"
    )]
    Removed {
        /// Where the pages begin that it gave back.
        address: u64,
    },
    /// Somebody put pages into a cache who was not to: its content is not the image's. No process goes on, or
    /// begins, with this cache.
    #[error(
        "the image's page cache holds pages that were not put there by its servers, at {offset:#x} or after"
    )]
    Tainted {
        /// Where in the image such pages may begin.
        offset: u64,
    },
}

impl UffdError {
    /// For `map_err`: an I/O error with what was being done.
    pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { action, source: source.into() }
    }
}

/// What a peer did wrong when it introduced itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// It closed the connection before its message was complete.
    #[error("it hung up after {received} bytes")]
    Closed {
        /// How much came.
        received: usize,
    },
    /// Its message is too long.
    #[error("its message is longer than {limit} bytes")]
    TooLong {
        /// The longest message that is read.
        limit: usize,
    },
    /// Its message is not a list of regions.
    #[error("its message is not a list of memory regions")]
    Text(#[source] serde_json::Error),
    /// It sent another number of file descriptors than one.
    #[error("it sent {found} file descriptors instead of one")]
    Descriptors {
        /// How many came; more than that may have been cut off.
        found: usize,
    },
    /// The descriptor is not a userfaultfd.
    #[error("the file descriptor it sent is {found}, not a userfaultfd")]
    NotUserfaultfd {
        /// What it is, as the kernel describes it.
        found: String,
    },
    /// The userfaultfd cannot be used.
    #[error("its userfaultfd cannot be read: it has to be set up by UFFDIO_API first")]
    Unusable(#[source] io::Error),
    /// The userfaultfd does not tell of memory that is given back, without which a cache cannot be shown.
    #[error(
        "its userfaultfd does not announce removed memory (UFFD_FEATURE_EVENT_REMOVE), as a page cache needs"
    )]
    Removals,
    /// It listed no region, or too many.
    #[error("it listed {found} memory regions; 1 to {limit} are served")]
    RegionCount {
        /// How many it listed.
        found: usize,
        /// How many are served.
        limit: usize,
    },
    /// A region that cannot be.
    #[error("its memory region {index} {reason}")]
    Region {
        /// The region's position in the list.
        index: usize,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// The regions are not of the image's size.
    #[error("its memory regions have {regions} together, the image has {image}")]
    Size {
        /// The regions' sizes together.
        regions: Bytes,
        /// The size of the image to be served.
        image: Bytes,
    },
    /// The process cannot be watched, so its end would go unnoticed.
    #[error(
        "its process cannot be watched: Linux 5.3 or later is needed, and a process in this PID namespace or below"
    )]
    Unwatchable(#[source] io::Error),
}

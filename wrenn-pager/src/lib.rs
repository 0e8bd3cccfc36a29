//! The pager: one process per host that serves the page faults of its restored sandboxes.
//!
//! A sandbox whose memory is paged in lazily stands still without its fault server. Were that a thread of the program
//! that uses the library, every such sandbox would hang, and have to be ended, when the program is killed or replaced. So it
//! is a process of its own, started when a host restores its first sandbox:
//!
//! ```text
//!   program ── PagerClient ── <run>/<host>/pager.sock ──> wrenn-pager ── one fault server per sandbox ──> monitors
//!      └─ killed: the pager goes on, until the last of its sandboxes has ended ─────┘
//!   the next program on the same data directory finds it at its socket
//! ```
//!
//! - **Who it trusts.** The socket is root's alone and lies where no monitor sees it. What monitors and files say is checked
//!   by `wrenn-uffd` and `wrenn-storage`.
//! - **When it ends.** As soon as no program keeps it (a connection that is held open) and no process is served any more. It
//!   leaves nothing: its socket's name is its program's.
//! - **When it dies.** The kernel then answers no fault, so the program ends the sandboxes that it served, and says why; the
//!   next restore starts another.
//! - A sandbox whose memory cannot be read is ended by the pager itself, whether there is a program or not.
//!
//! Requests are one JSON document on one line, each on a connection of its own, and so are answers.
#![forbid(unsafe_code)]

#[cfg(feature = "server")]
mod caches;
mod client;
#[cfg(feature = "server")]
mod engine;
mod error;
mod program;
mod protocol;
#[cfg(feature = "server")]
mod serve;
#[cfg(feature = "server")]
mod session;
#[cfg(feature = "server")]
mod source;

pub use client::{PagerClient, PagerSpec};
pub use error::PagerError;
pub use program::PagerProgram;
pub use protocol::{ImageFiles, PagingOptions, PagingStatus, Prefetch};
#[cfg(feature = "server")]
pub use serve::run;
pub use wrenn_uffd::FaultStats;

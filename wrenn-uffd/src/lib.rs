//! A page-fault server: gives a process its memory page by page, when it is touched, from any [`PageSource`].
//!
//! A virtual machine monitor that restores a snapshot maps its guest's memory empty, registers it with a
//! userfaultfd, and hands that to a [`FaultServer`] over a Unix socket: one JSON array of regions with the
//! descriptor in `SCM_RIGHTS`, which is Firecracker's protocol. From then on one thread answers the guest's
//! faults. Any other process can do the same; `examples/plain_process.rs` serves its own memory.
//!
//! What a page is filled with:
//! - the source's content, the first time, together with its neighbours in an aligned run
//!   ([`FaultServerOptions::run_pages`]): the page that was touched goes first and wakes who waits for it;
//! - by `UFFDIO_ZEROPAGE` where the source says zero: a zero page is never copied;
//! - zero, whenever the page had content before or was given away (`MADV_DONTNEED`, a balloon) and is touched
//!   again. A page that its owner discarded never comes back with old content.
//!
//! Failure paths:
//! - Nobody connects in time, or what connects does not keep to the protocol: the server ends with an error.
//! - The source fails, panics, or something happens to the memory that cannot be served (a fork, a move): the
//!   VM cannot go on, and waiting for ever would hide that. The server records the error, calls
//!   [`FaultServerOptions::on_failure`], which is to kill the VM, and keeps the userfaultfd open until the VM
//!   is gone: closing it earlier could let the VM run on with zeros.
//! - The process exits, at whatever moment: the server notices by its pidfd, or by `ESRCH`, and ends in good
//!   order.
//!
//! Everything that the peer sends is checked before use. The peer can only ask for its own memory to be
//! filled.
#![deny(unsafe_code)]

mod accept;
mod bitmap;
mod cache;
mod error;
mod fill;
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod options;
mod prefetch;
mod regions;
mod serve;
mod server;
mod service;
mod shared;
mod source;
mod stats;
#[allow(unsafe_code)]
mod sys;
mod worker;

pub use cache::{Backing, PageCache};
pub use error::{HandshakeError, UffdError};
pub use options::{FailureCallback, FaultServerOptions};
pub use prefetch::{PageRun, Prefetch};
pub use server::{End, FaultServer, Outcome};
pub use source::{PageSource, Run, RunKind};
pub use stats::{FaultStats, LATENCY_BUCKETS};

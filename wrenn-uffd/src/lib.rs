//! A page-fault server: gives a process its memory page by page, when it is touched, from any [`PageSource`].
//!
//! A virtual machine monitor that restores a snapshot maps its guest's memory empty, registers it with a
//! userfaultfd, and hands that to a [`FaultServer`] over a Unix socket: one JSON array of regions with the
//! descriptor in `SCM_RIGHTS`, which is Firecracker's protocol. From then on the server's threads answer the
//! guest's faults. Any other process can do the same; `examples/plain_process` serves its own memory.
//!
//! What a page is filled with:
//! - the source's content, the first time, together with its neighbours in an aligned run
//!   ([`FaultServerOptions::run_pages`]), as far as the source has them at hand ([`PageSource::lookup`]);
//! - by `UFFDIO_ZEROPAGE` where the source says zero, up to 512 pages at once: a zero page is never copied;
//! - zero, whenever the page had content before or was given away (`MADV_DONTNEED`, a balloon) and is touched
//!   again. A page that its owner discarded never comes back with old content.
//!
//! Ahead of faults, and between them, it fills what [`FaultServerOptions::prefetch`] asks for;
//! [`FaultServer::recording`] tells what an earlier process touched.
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
//!
//! # Many processes on one image
//!
//! Given a [`PageCache`] instead of a source, servers share each page that was read once: the second process
//! on an image takes no fault for what the first has touched. The protocol then has one message more, and the
//! process has to do its part:
//!
//! 1. It connects. The server at once sends one message, in one `sendmsg`: the JSON object
//!    `{"cache_size":N}`, without a line's end, and with its first byte exactly one descriptor in
//!    `SCM_RIGHTS`. `N` is the size of the image in bytes. The descriptor is a memfd of that size, open for
//!    reading only and sealed. Members that are not known are to be ignored. A server without a cache sends
//!    nothing, so a process has to be told beforehand which of the two it meets.
//! 2. It maps the memfd, `MAP_PRIVATE` with `PROT_READ | PROT_WRITE`, for each of its regions at the region's
//!    `offset` into the image. Together the regions show every byte of the image once. Pages are of 4 KiB.
//! 3. Before anything touches these mappings, it registers them, whole, `UFFDIO_REGISTER_MODE_MISSING` and
//!    nothing else, with a userfaultfd of its own, which was set up by `UFFDIO_API` with at least
//!    `UFFD_FEATURE_EVENT_REMOVE` (checked by the server: [`HandshakeError::Removals`]). Where the kernel
//!    itself touches guest memory (KVM, vhost) the userfaultfd must not be `UFFD_USER_MODE_ONLY`.
//! 4. On the same connection it sends Firecracker's message: the regions, and the userfaultfd.
//!
//! From then on, and as long as the process lives:
//! - What is in the cache is read without an event. What is written becomes a page of the process's own, by
//!   the kernel, and is exactly what `/proc/PID/pagemap` shows as not of a file; pages that the server zeroed
//!   show as the zero page (`PAGE_IS_PFNZERO`), not as written.
//! - The process never gives memory back (`MADV_DONTNEED`, a balloon that inflates). On a mapping of the cache
//!   that brings the image's old content back, without a fault to answer: it would be silent corruption. So
//!   it is fatal, [`UffdError::Removed`]. It reads on until it is killed, so kill it at once.
//! - It maps or touches the memfd nowhere else, does not move the mappings (`mremap`), and does not let them
//!   be inherited (`MADV_DONTFORK`). A page that is touched where no userfaultfd watches becomes a page of
//!   zeros in the cache of all. The server looks for such pages whenever a process connects, and meets them
//!   when it fills their place: [`UffdError::Tainted`]. Between the two, another process may have read zeros:
//!   processes that do not trust each other with their image must not share a cache.
//! - A server is stopped after its process is gone. Else the process's next touch is the above.
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
mod warm;
mod worker;

pub use cache::{Backing, PageCache};
pub use error::{HandshakeError, UffdError};
pub use options::{FailureCallback, FaultServerOptions};
pub use prefetch::{PageRun, Prefetch};
pub use server::{End, FaultServer, Outcome};
pub use source::{PageSource, Run, RunKind};
pub use stats::{FaultStats, LATENCY_BUCKETS};

//! What a caller may choose.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::UffdError;
use crate::prefetch::Prefetch;

/// More threads than any source has use for.
pub(crate) const MAX_THREADS: usize = 64;

/// What is called when a server cannot go on: see [`FaultServerOptions::on_failure`].
pub type FailureCallback = Box<dyn FnOnce(Arc<UffdError>) + Send>;

/// How a [`FaultServer`](crate::FaultServer) works.
///
/// ```
/// use wrenn_uffd::FaultServerOptions;
/// let options = FaultServerOptions { run_pages: 64, ..FaultServerOptions::default() };
/// ```
pub struct FaultServerOptions {
    /// How long the monitor may take to connect and to send its regions, from the server's start on. Default
    /// 10 s.
    pub accept_deadline: Duration,
    /// How many pages of 4 KiB are filled around one that is touched, in a run aligned to its own size.
    ///
    /// 1 fills single pages. It is rounded down to a power of two, at least 1 and at most 512. Default 32: where
    /// all memory is touched within a tenth of what 64 give, at half the time that the first page waits.
    pub run_pages: u32,
    /// How many threads serve the process, at most 64. Default 1.
    ///
    /// More are of use where the source waits, for a network or a decompressor: pages are put in place one
    /// after the other all the same.
    pub threads: usize,
    /// Whether to keep what [`recording`](crate::FaultServer::recording) tells, at most 262,144 runs of it.
    /// Costs nothing that can be measured. Default no.
    pub record: bool,
    /// What is filled without being asked, as soon as the process is connected. Default nothing.
    ///
    /// It is done in pieces of at most 512 pages, by one thread at a time; between two pieces the faults that
    /// came meanwhile are answered. It ends for good at the first error of the source, which is not an error
    /// of the server before somebody touches the page.
    pub prefetch: Prefetch,
    /// How many bytes of content are prefetched at most; zero pages do not count. Default `u64::MAX`: no
    /// limit.
    pub prefetch_limit: u64,
    /// Called once, on one of the server's threads, after the server failed and
    /// [`outcome`](crate::FaultServer::outcome) tells so: kill the process that was served, which otherwise
    /// waits for ever. Not called after a regular end.
    pub on_failure: Option<FailureCallback>,
    /// Whether the process that was served is sent SIGKILL after the server failed, once
    /// [`outcome`](crate::FaultServer::outcome) tells so; as [`Self::on_failure`] for who has no other hold on the process. By
    /// its pidfd, so that it never reaches another. Default no.
    pub kill_on_failure: bool,
    /// The name of the server's threads, of which the kernel keeps 15 bytes. Default `wrenn-uffd`.
    pub thread_name: String,
}

impl FaultServerOptions {
    /// The bytes of an aligned run.
    pub(crate) fn run_bytes(&self) -> u64 {
        let pages = self.run_pages.clamp(1, 512);
        (1 << pages.ilog2()) * crate::source::PAGE_SIZE
    }
}

impl Default for FaultServerOptions {
    fn default() -> Self {
        Self {
            accept_deadline: Duration::from_secs(10),
            run_pages: 32,
            threads: 1,
            record: false,
            prefetch: Prefetch::None,
            prefetch_limit: u64::MAX,
            on_failure: None,
            kill_on_failure: false,
            thread_name: "wrenn-uffd".to_owned(),
        }
    }
}

impl fmt::Debug for FaultServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultServerOptions")
            .field("accept_deadline", &self.accept_deadline)
            .field("run_pages", &self.run_pages)
            .field("threads", &self.threads)
            .field("record", &self.record)
            .field("prefetch", &self.prefetch)
            .field("prefetch_limit", &self.prefetch_limit)
            .field("on_failure", &self.on_failure.is_some())
            .field("kill_on_failure", &self.kill_on_failure)
            .field("thread_name", &self.thread_name)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_powers_of_two_within_bounds() {
        for (pages, bytes) in
            [(0, 4096), (1, 4096), (2, 8192), (15, 8 << 12), (16, 16 << 12), (9999, 512 << 12)]
        {
            let options = FaultServerOptions { run_pages: pages, ..FaultServerOptions::default() };
            assert_eq!(options.run_bytes(), bytes);
        }
    }
}

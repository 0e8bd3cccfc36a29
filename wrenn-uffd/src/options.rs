//! What a caller may choose.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::UffdError;

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
    /// 1 fills single pages. It is rounded down to a power of two, at least 1 and at most 512. Default 16.
    pub run_pages: u32,
    /// Called once, on the server's thread, after the server failed and
    /// [`outcome`](crate::FaultServer::outcome) tells so: kill the process that was served, which otherwise
    /// waits for ever. Not called after a regular end.
    pub on_failure: Option<FailureCallback>,
    /// The name of the server's thread, of which the kernel keeps 15 bytes. Default `wrenn-uffd`.
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
            run_pages: 16,
            on_failure: None,
            thread_name: "wrenn-uffd".to_owned(),
        }
    }
}

impl fmt::Debug for FaultServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultServerOptions")
            .field("accept_deadline", &self.accept_deadline)
            .field("run_pages", &self.run_pages)
            .field("on_failure", &self.on_failure.is_some())
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

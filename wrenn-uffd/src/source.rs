//! Where pages come from.

use wrenn_base::BoxError;

/// The unit of [`Run::len`] and of [`FaultServerOptions::run_pages`](crate::FaultServerOptions::run_pages).
pub(crate) const PAGE_SIZE: u64 = 4096;

/// What a run of pages is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// Every byte is zero.
    Zero,
    /// There is content to be read.
    Data,
}

/// A run of pages of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// What the pages are made of.
    pub kind: RunKind,
    /// The run's length in bytes: a multiple of 4096, at least one page.
    pub len: u64,
}

/// An image of memory that can be read at any place.
///
/// Calls come from the server's threads. They may block, for which the faulting thread then waits.
#[allow(clippy::len_without_is_empty, reason = "a process without memory has no faults")]
pub trait PageSource: Send + Sync + 'static {
    /// The size of the image in bytes: that of the memory to be served.
    fn len(&self) -> u64;

    /// What the image holds from `offset` on, at most `max` bytes of it: one run, the longest that is cheap
    /// to tell.
    ///
    /// `offset` and `max` are multiples of 4096, and `offset + max` lies within the image. A fault never has
    /// more read than the run that its page is in, so a run should be what is read at one price: a piece of one
    /// layer, one compressed frame.
    fn lookup(&self, offset: u64, max: u64) -> Run;

    /// Fills `buf` with the image's content from `offset` on, whatever runs it crosses.
    ///
    /// # Errors
    /// Any: it is the end of the process that is served. See [`UffdError::Source`](crate::UffdError::Source).
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError>;

    /// The `len` bytes of content from `offset` on, if they lie in memory anyway and stay there: it spares a
    /// copy, about a tenth of what a page costs. Called before [`read`](Self::read), which is then left out.
    fn resident(&self, _offset: u64, _len: usize) -> Option<&[u8]> {
        None
    }
}

//! How a guest's memory comes back.

/// Where a restored guest's memory comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreMode {
    /// A fault server brings each page when the guest first touches it, whatever the snapshot's chain of layers. With
    /// `wrenn-monitor`, sandboxes that come from one snapshot share the pages that they only read.
    #[default]
    Uffd,
    /// The kernel maps the one file that holds all of the memory, which all sandboxes of the snapshot share. Only for a
    /// snapshot whose memory is in one layer: a full one, or one that was compacted.
    File,
}

/// What a resume pages in without being asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prefetch {
    /// The pages that an earlier resume of the snapshot needed until its first command was answered, in that order;
    /// nothing where that is not known yet.
    #[default]
    WorkingSet,
    /// Nothing.
    None,
    /// Everything.
    All,
}

/// How a sandbox is resumed, or made from a template.
///
/// ```
/// use wrenn_core::{Prefetch, RestoreOptions};
/// let cold = RestoreOptions { prefetch: Prefetch::None, ..RestoreOptions::default() };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Where memory comes from.
    pub mode: RestoreMode,
    /// What is paged in ahead. Without effect for [`RestoreMode::File`], where the kernel reads ahead.
    pub prefetch: Prefetch,
    /// How many bytes are paged in ahead at most; 256 MiB by default.
    pub prefetch_limit: u64,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { mode: RestoreMode::default(), prefetch: Prefetch::default(), prefetch_limit: 256 << 20 }
    }
}

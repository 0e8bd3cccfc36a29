//! Why a layer is not unpacked.

use std::io;

/// A layer could not be unpacked; the root holds a part of it.
#[derive(Debug, thiserror::Error)]
#[error("layer {layer} cannot be unpacked, because of its entry {entry:?}")]
pub(crate) struct LayerError {
    /// The layer, by its digest or by its name in an archive.
    pub(crate) layer: String,
    /// The entry that was being unpacked, or the one before, where its header cannot be read.
    pub(crate) entry: String,
    pub(crate) source: EntryError,
}

/// Why an entry of a layer is not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum EntryError {
    #[error("it {0}")]
    Refused(&'static str),
    #[error("{what} come to more than {limit}")]
    TooLarge { what: &'static str, limit: u64 },
    #[error("the archive cannot be read on")]
    Archive(#[source] io::Error),
    #[error("cannot {action}")]
    Io { action: &'static str, source: io::Error },
}

impl EntryError {
    /// A closure for `map_err`: the operating system refused to do `action`.
    pub(super) fn io<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { action, source: source.into() }
    }
}

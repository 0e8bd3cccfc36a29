//! Why an image is not imported.

use std::io;
use std::path::{Path, PathBuf};

use crate::build::layers::LayerError;

/// An image could not be imported. Nothing was registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ImportError {
    #[error("{} is no image: {reason}", path.display())]
    NotAnImage { path: PathBuf, reason: String },
    #[error("{} has several images; name one of them behind it, as in PATH:NAME: {names}", path.display())]
    Ambiguous { path: PathBuf, names: String },
    #[error("{} has no image {name}; it has: {names}", path.display())]
    NoSuchImage { path: PathBuf, name: String, names: String },
    #[error("{what} is refused: {reason}")]
    Refused { what: String, reason: &'static str },
    #[error("{what} is not the document that it should be")]
    Document { what: String, source: serde_json::Error },
    #[error("{what} is not what was promised: its SHA-256 is {found}, not {expected}")]
    Digest { what: String, expected: String, found: String },
    #[error("{what} is not what was promised: it has {found} bytes, not {expected}")]
    Size { what: String, expected: u64, found: u64 },
    #[error("the image has {listed} layers, but its configuration describes {configured}")]
    LayerCount { listed: usize, configured: usize },
    #[error("layer {layer} cannot be read")]
    Layer { layer: String, source: io::Error },
    #[error(transparent)]
    Unpack(#[from] LayerError),
    #[error("{url} wants a user and a password, or others: give --username and --password-file")]
    Unauthorized { url: String },
    #[error("{url} answered {status}: {said}")]
    Answer { url: String, status: u16, said: String },
    #[error("cannot ask {url}")]
    Http { url: String, source: Box<ureq::Error> },
    #[error("{url} stopped sending")]
    Interrupted { url: String, source: io::Error },
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl ImportError {
    /// A closure for `map_err`: an error happened when `path` was to be `action`ed.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.as_ref().to_owned(), source }
    }

    /// A closure for `map_err`: a question to a server failed.
    pub(super) fn http(url: &str) -> impl FnOnce(ureq::Error) -> Self {
        move |source| Self::Http { url: url.to_owned(), source: Box::new(source) }
    }
}

//! What can go wrong while something is built.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use wrenn_core::image::ImageError;

use super::ImportError;

/// Something could not be built. Nothing was registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BuildError {
    #[error("{tool} is not installed: `apt-get install {package}`")]
    MissingTool { tool: &'static str, package: &'static str },
    #[error("{tool} failed ({status}); its last words were:\n  {said}")]
    ToolFailed { tool: &'static str, status: ExitStatus, said: String },
    #[error("{what} needs root")]
    NotRoot { what: &'static str },
    #[error(
        "apt knows no package {package}: run `apt-get update`, or name the package's file with --kernel-deb"
    )]
    UnknownPackage { package: String },
    #[error("an image {name} cannot be made from nothing: say from what with --from, or build `debian`")]
    NoRecipe { name: String },
    #[error("{} is neither a directory nor a tar archive (plain, gzip or zstd)", path.display())]
    NotASource { path: PathBuf },
    #[error("{} is not a usable archive", path.display())]
    Archive { path: PathBuf, source: io::Error },
    #[error("{} is refused: its entry {entry:?} {reason}", path.display())]
    HostileArchive { path: PathBuf, entry: String, reason: &'static str },
    #[error("{} holds no kernel that can be used: {reason}", path.display())]
    NoKernel { path: PathBuf, reason: String },
    #[error("the kernel in {} has no module {module}, which guests need", path.display())]
    NoModule { path: PathBuf, module: String },
    #[error("{} is not a kernel module", path.display())]
    BadModule { path: PathBuf, source: object::Error },
    #[error(
        "no agent was found (looked for {looked}): build it with \
         `RUSTFLAGS='-C target-feature=+crt-static' cargo build -p wrenn-agent --target x86_64-unknown-linux-gnu`, \
         or name it with --agent"
    )]
    NoAgent { looked: String },
    #[error("{} cannot be the agent: {reason}", path.display())]
    BadAgent { path: PathBuf, reason: &'static str },
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("no image of a registry: {why}")]
    NotAReference { why: String },
    #[error("{} holds no password", path.display())]
    NoPassword { path: PathBuf },
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl BuildError {
    /// A closure for `map_err`: an error happened when `path` was to be `action`ed.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { action, path: path.as_ref().to_owned(), source: source.into() }
    }
}

//! What can go wrong with a pager.

use std::io;
use std::path::PathBuf;

use wrenn_base::ProgramError;

/// A failure to find, start or reach a pager, or its refusal of a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PagerError {
    /// There is no pager program to run.
    #[error(
        "the pager cannot be run; build it with `cargo build -p wrenn-pager`, or name one in WRENN_PAGER"
    )]
    Program(#[from] ProgramError),
    /// It could not be started.
    #[error("could not {action} {}", path.display())]
    Start {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be reached any more: it has ended, or does not answer.
    #[error("the pager at {} does not answer", socket.display())]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It could not do what it was asked to.
    #[error("the pager could not {action}: {why}")]
    Refused {
        /// What it was asked to do.
        action: &'static str,
        /// Why not.
        why: String,
    },
}

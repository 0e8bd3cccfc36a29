//! `wrenn completions` and `wrenn man`

use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::Cli;

/// Prints a shell's completion script.
pub(crate) fn completions(shell: Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "wrenn", &mut io::stdout());
}

/// Writes one page for the command and one for each of its parts.
///
/// # Errors
/// The directory is missing or cannot be written.
pub(crate) fn write_pages(dir: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command(), dir)
}

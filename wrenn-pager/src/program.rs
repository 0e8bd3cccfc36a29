//! Which pager to run, and where to find it.

use std::ffi::OsString;
use std::path::Path;

use wrenn_base::Program;

use crate::error::PagerError;

/// The environment variable that names the pager program.
const CHOICE_VARIABLE: &str = "WRENN_PAGER";
/// The program that comes with this library.
const BUILT_IN: &str = "wrenn-pager";

/// The program of the pager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagerProgram(pub(crate) Program);

impl PagerProgram {
    /// Finds the pager: `explicit`, else the one that the environment variable `WRENN_PAGER` names, else `wrenn-pager`,
    /// beside the running executable, in the directory above it, or on `PATH`.
    ///
    /// # Errors
    /// [`PagerError::Program`].
    pub fn discover(explicit: Option<&Path>) -> Result<Self, PagerError> {
        Ok(Self(Program::discover(explicit, CHOICE_VARIABLE, BUILT_IN)?))
    }

    /// The running executable itself, as a single-binary program uses it: it is started again with `marker` as its
    /// `argv[0]`, and must then call [`run`](crate::run) instead of its own `main`.
    pub fn reexec(marker: impl Into<OsString>) -> Self {
        Self(Program::reexec(marker))
    }

    /// The program's file.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

//! Which monitor program to run, and where to find it.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use wrenn_base::{Program, ProgramError};

use crate::error::VmmError;

/// The environment variable that names the monitor program.
const CHOICE_VARIABLE: &str = "WRENN_MONITOR";
/// The program that comes with this library.
const BUILT_IN: &str = "wrenn-monitor";

/// A program that answers the Firecracker REST API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorProgram(Program);

impl MonitorProgram {
    /// Finds the monitor: `explicit`, else the one that the environment variable `WRENN_MONITOR` names, else the
    /// built-in `wrenn-monitor`, beside the running executable, in the directory above it, or on `PATH`.
    ///
    /// A bare name without a slash, such as `firecracker`, is looked up on `PATH`.
    ///
    /// # Errors
    /// [`VmmError::MonitorNotFound`] with every path that was tried, and [`VmmError::MonitorNotExecutable`].
    ///
    /// ```
    /// use std::path::Path;
    /// use wrenn_vmm::{MonitorProgram, VmmError};
    /// let shell = MonitorProgram::discover(Some(Path::new("/bin/sh")))?;
    /// assert_eq!(shell.path(), Path::new("/bin/sh"));
    /// let missing = MonitorProgram::discover(Some(Path::new("/no/monitor")));
    /// assert!(matches!(missing, Err(VmmError::MonitorNotFound { .. })));
    /// # Ok::<(), VmmError>(())
    /// ```
    pub fn discover(explicit: Option<&Path>) -> Result<Self, VmmError> {
        match Program::discover(explicit, CHOICE_VARIABLE, BUILT_IN) {
            Ok(program) => Ok(Self(program)),
            Err(ProgramError::NotFound { wanted, searched }) => {
                Err(VmmError::MonitorNotFound { wanted, searched })
            }
            Err(ProgramError::NotExecutable { path }) => Err(VmmError::MonitorNotExecutable { path }),
            Err(other) => unreachable!("another way not to find a program: {other}"),
        }
    }

    /// The running executable itself, as a single-binary program uses it: it is started again with `marker` as
    /// its `argv[0]`, and must then run the monitor instead of its own `main`.
    ///
    /// It works even after the file was replaced or deleted, because the kernel still holds it.
    pub fn reexec(marker: impl Into<OsString>) -> Self {
        Self(Program::reexec(marker))
    }

    /// The program's file.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn argv0(&self) -> Option<&OsStr> {
        self.0.argv0()
    }
}

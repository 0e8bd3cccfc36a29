//! What every Wrenn crate shares: ids, units, the undo list, how programs are found, and the points at which tests
//! inject faults.
//!
//! Nothing here does I/O of its own, but for looking for programs; the one thread this crate starts is the [`Reaper`], which runs
//! undo lists for callers who must not block.
#![forbid(unsafe_code)]

mod error_line;
pub mod fault;
mod id;
mod process;
mod program;
mod reaper;
mod undo;
mod units;

pub use error_line::in_one_line;
pub use id::{HostId, ImageName, InvalidId, SandboxId, TemplateName};
pub use process::{ProcessIdentity, stat_field};
pub use program::{Program, ProgramError};
pub use reaper::Reaper;
pub use undo::{BoxError, Deadline, StepId, UndoFailure, UndoList};
pub use units::{Bytes, MiB};

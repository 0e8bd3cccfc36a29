//! MicroVM sandboxes as a library: boot one, run commands, pause it to disk, resume it in an instant.
pub use wrenn_core::*;

//! A sandbox's files.

use std::sync::Arc;

use bytes::Bytes;
use wrenn_agent_api::{FileStream, GuestPath, Upload};

use crate::error::Error;
use crate::machine::Live;

/// The files of a sandbox; made by [`Sandbox::files`](crate::Sandbox::files).
///
/// Relative paths begin at the home directory of root, or of the user that a [`GuestPath`] names.
///
/// ```no_run
/// # async fn example(sandbox: wrenn_core::Sandbox) -> Result<(), wrenn_core::Error> {
/// sandbox.files().write("/work/input.txt", "seven lines").await?;
/// let bytes = sandbox.files().read("/etc/hostname", 4096).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Files {
    live: Arc<Live>,
}

impl Files {
    pub(crate) fn new(live: Arc<Live>) -> Self {
        Self { live }
    }

    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// It is not there, is no plain file, or is larger.
    pub async fn read(&self, path: impl Into<GuestPath>, limit: usize) -> Result<Bytes, Error> {
        let agent = &self.live.agent;
        self.live.ask(async { agent.read_file(path).await?.collect(limit).await }).await
    }

    /// Opens a file for reading piece by piece, whatever its size.
    ///
    /// # Errors
    /// It is not there or is no plain file.
    pub async fn open(&self, path: impl Into<GuestPath>) -> Result<FileStream, Error> {
        self.live.ask(self.live.agent.read_file(path)).await
    }

    /// Writes a file: bytes at hand, or an [`Upload`] stream of any length. Missing directories are made.
    ///
    /// The file changes at once when all has arrived; after an error it is as it was.
    ///
    /// # Errors
    /// The guest's disk is full, the path leads to a directory or through a file, or the stream failed.
    pub async fn write(&self, path: impl Into<GuestPath>, contents: impl Into<Upload>) -> Result<(), Error> {
        let agent = &self.live.agent;
        self.live.ask(async { agent.write_file(path, contents).await.map(drop) }).await
    }
}

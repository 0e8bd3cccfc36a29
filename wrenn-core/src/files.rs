//! A sandbox's files.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use wrenn_agent_api::{GuestPath, Upload};

use crate::error::{Cause, Error};
use crate::lifetime::Activity;
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
        let activity = self.live.activity();
        let stream = self.live.ask(self.live.agent.read_file(path)).await?;
        Ok(FileStream { stream, _activity: activity })
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

/// The contents of a guest's file, piece by piece: a [`Stream`]. As long as it is kept, its sandbox is not idle.
///
/// A reader that takes its time slows nothing but the reading.
pub struct FileStream {
    stream: wrenn_agent_api::FileStream,
    _activity: Activity,
}

impl FileStream {
    /// The file's length in bytes, where the guest knows it (it does not for files of `/proc`).
    pub fn len(&self) -> Option<u64> {
        self.stream.len()
    }

    /// Whether the file is known to be empty.
    pub fn is_empty(&self) -> bool {
        self.stream.is_empty()
    }

    /// The rest of the contents in one piece, if they are no more than `limit` bytes.
    ///
    /// # Errors
    /// They are more, or the guest ended.
    pub async fn collect(self, limit: usize) -> Result<Bytes, Error> {
        Ok(self.stream.collect(limit).await.map_err(Cause::from)?)
    }
}

impl Stream for FileStream {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(context).map(|next| next.map(|piece| Ok(piece.map_err(Cause::from)?)))
    }
}

impl std::fmt::Debug for FileStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileStream").field("len", &self.len()).finish_non_exhaustive()
    }
}

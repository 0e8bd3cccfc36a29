//! A sandbox's files.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use wrenn_agent_api::{FileEvent, FileInfo, GuestPath, Upload, WatchOptions, WatchStream};

use crate::error::{Cause, Error, ErrorKind};
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

    /// Opens a part of a file: from byte `first`, at most `len` bytes if that is said.
    ///
    /// # Errors
    /// As [`open`](Self::open), and where the file has no such part; files of `/proc` have none at all.
    pub async fn open_part(
        &self,
        path: impl Into<GuestPath>,
        first: u64,
        len: Option<u64>,
    ) -> Result<FileStream, Error> {
        let activity = self.live.activity();
        let stream = self.live.ask(self.live.agent.read_file_part(path, first, len)).await?;
        Ok(FileStream { stream, _activity: activity })
    }

    /// Whether there is something at a path; a link that leads nowhere is something.
    ///
    /// # Errors
    /// The guest cannot be reached.
    pub async fn exists(&self, path: impl Into<GuestPath>) -> Result<bool, Error> {
        match self.stat(path).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Describes what is at a path. Of a link it tells what that leads to, and where.
    ///
    /// # Errors
    /// It is not there.
    pub async fn stat(&self, path: impl Into<GuestPath>) -> Result<FileInfo, Error> {
        self.live.ask(self.live.agent.stat(path)).await
    }

    /// Lists a directory, by name, links not followed.
    ///
    /// # Errors
    /// It is not there, is no directory, or has more than 50,000 entries.
    pub async fn list(&self, path: impl Into<GuestPath>) -> Result<Vec<FileInfo>, Error> {
        self.list_deep(path, 1).await
    }

    /// Lists a directory and what is below it, `depth` levels deep: each directory before what is in it.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub async fn list_deep(&self, path: impl Into<GuestPath>, depth: u32) -> Result<Vec<FileInfo>, Error> {
        self.live.ask(self.live.agent.list_dir(path, depth)).await
    }

    /// Makes a directory, and those above it that are missing, with mode 0755.
    ///
    /// # Errors
    /// It is there already, or the path leads through something else.
    pub async fn mkdir(&self, path: impl Into<GuestPath>) -> Result<FileInfo, Error> {
        self.live.ask(self.live.agent.make_dir(path)).await
    }

    /// Renames a file or a directory within one file system of the guest, also over an existing file; makes missing
    /// directories above the destination.
    ///
    /// # Errors
    /// It is not there, or the destination is on another file system.
    pub async fn rename(
        &self,
        source: impl Into<GuestPath>,
        destination: impl Into<String>,
    ) -> Result<FileInfo, Error> {
        self.live.ask(self.live.agent.rename(source, destination)).await
    }

    /// Removes a file, a link, or a directory with all that is in it. What is not there is no error.
    ///
    /// # Errors
    /// It is the root directory, or the guest refuses; a part may be gone then.
    pub async fn remove(&self, path: impl Into<GuestPath>) -> Result<(), Error> {
        self.live.ask(self.live.agent.remove(path)).await
    }

    /// Watches a directory, and, if `options` say so, all below it. Once this returns, what happens there comes.
    ///
    /// # Errors
    /// It is not there, is no directory, or has more below than can be watched.
    pub async fn watch(&self, path: impl Into<GuestPath>, options: WatchOptions) -> Result<FileWatch, Error> {
        let events = self.live.ask(self.live.agent.watch(path, options)).await?;
        Ok(FileWatch { live: Arc::clone(&self.live), events })
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
    /// The length of the file, or of the part, in bytes, where the guest knows it (it does not for files of `/proc`).
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

/// What happens in a guest's directory; from [`Files::watch`]. Dropping it ends the watching.
///
/// A watch alone does not keep its sandbox from being idle. Events that nobody draws wait in the guest, in bounded
/// queues; where these overflow the watch says so and ends.
pub struct FileWatch {
    live: Arc<Live>,
    events: WatchStream,
}

impl FileWatch {
    /// The next event; it may be long in coming. After an error there are no more.
    ///
    /// # Errors
    /// Events came faster than they were drawn, so that what is there has to be looked at anew; the guest ended or was
    /// paused; or the connection broke.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Result<Option<FileEvent>, Error> {
        let next = async { self.events.next().await.map_err(Cause::from) };
        Ok(self.live.while_alive(next).await?)
    }
}

impl std::fmt::Debug for FileWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWatch").finish_non_exhaustive()
    }
}

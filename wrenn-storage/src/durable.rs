//! Files and directories that appear under their name whole and on disk, or not at all.
//!
//! Everything that outlives a process is made the same way: written under a staging name beside its target,
//! fsynced, renamed over the target, and then the directory is fsynced.
//!
//! Failure paths:
//! - An error or a dropped [`StagedFile`] / [`StagedDir`] removes what was staged; the target is as before.
//! - A crash before the rename leaves the target as before and a staging name, which [`sweep`] removes.
//!   A staging name that is still being written carries an flock, which dies with its process, so a sweep
//!   never takes a living writer's work away.
//! - A crash after the rename leaves the new target, whole. When the rename itself becomes durable is only
//!   known once `commit` has returned.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use wrenn_base::fault;

/// What every staging name begins with; nothing else in a directory that is swept may.
pub const STAGING_PREFIX: &str = ".staged-";

/// How often a staging name is tried anew when a sweep or an equal name gets in the way.
const ATTEMPTS: usize = 16;

/// A file being written under a staging name beside its target.
///
/// Dropping it without [`commit`](Self::commit) removes it.
#[derive(Debug)]
pub struct StagedFile {
    file: File,
    staged: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl StagedFile {
    /// Creates an empty file (mode 0600, open for reading and writing) that is to become `target`.
    ///
    /// # Errors
    /// The target's directory is missing, full or not writable. Nothing is left behind.
    pub fn create(target: &Path) -> io::Result<Self> {
        let (file, staged) = stage(target, |path| {
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
        })?;
        let this = Self { file, staged, target: target.to_owned(), committed: false };
        fault::point("storage.file.staged")?;
        Ok(this)
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where the file is until it is committed.
    pub fn path(&self) -> &Path {
        &self.staged
    }

    /// Makes the content durable and gives the file its name, replacing a file that had it.
    ///
    /// Returns the file, still open.
    ///
    /// # Errors
    /// Before the rename: the target is as before and the staged file is gone. An error from the last step,
    /// the directory's fsync, leaves the new target in place, but it may not survive a power loss.
    pub fn commit(mut self) -> io::Result<File> {
        // What can fail for want of a descriptor comes before what cannot be taken back.
        let file = self.file.try_clone()?;
        sync(&file)?;
        fault::point("storage.file.rename")?;
        fs::rename(&self.staged, &self.target)?;
        self.committed = true;
        fault::point("storage.file.renamed")?;
        sync_parent(&self.target)?;
        Ok(file)
    }

    /// Makes the content durable and gives the file its name, which must be free.
    ///
    /// Returns the file, still open.
    ///
    /// # Errors
    /// `AlreadyExists` where the target is there; it is untouched, whatever it is. After any error nothing has the name
    /// and the staged file is gone, unless the file system refuses even to take the name back: then the target is
    /// there, whole, and may not survive a power loss.
    pub fn commit_new(mut self) -> io::Result<File> {
        let file = self.file.try_clone()?;
        sync(&file)?;
        fault::point("storage.file.rename")?;
        rename_to_free(&self.staged, &self.target)?;
        self.committed = true;
        if let Err(e) = fault::point("storage.file.renamed").and_then(|()| sync_parent(&self.target)) {
            // It may not last, so it must not be taken for done.
            self.committed = fs::rename(&self.target, &self.staged).is_err();
            return Err(e);
        }
        // The lock went with the staging name; the next user of the file may want one.
        let _ = flock(&file, FlockOperation::Unlock);
        Ok(file)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.staged);
        }
    }
}

/// A directory being filled under a staging name beside its target.
///
/// Dropping it without [`commit`](Self::commit) removes it with everything in it.
#[derive(Debug)]
pub struct StagedDir {
    dir: File,
    staged: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl StagedDir {
    /// Creates an empty directory (mode 0700) that is to become `target`.
    ///
    /// # Errors
    /// The target's parent is missing, full or not writable. Nothing is left behind.
    pub fn create(target: &Path) -> io::Result<Self> {
        let (dir, staged) = stage(target, |path| {
            fs::DirBuilder::new().mode(0o700).create(path)?;
            File::open(path)
        })?;
        let this = Self { dir, staged, target: target.to_owned(), committed: false };
        fault::point("storage.dir.staged")?;
        Ok(this)
    }

    /// Where the directory is until it is committed: fill it here.
    pub fn path(&self) -> &Path {
        &self.staged
    }

    /// Makes everything in the directory durable and gives it its name, which must be free.
    ///
    /// # Errors
    /// `AlreadyExists` where the target is there; it is untouched, whatever it is. After any error nothing has the name
    /// and the staged directory is gone, unless the file system refuses even to take the name back: then the target is
    /// there, whole, and may not survive a power loss.
    pub fn commit(mut self) -> io::Result<()> {
        sync_tree(&self.staged)?;
        fault::point("storage.dir.rename")?;
        rename_to_free(&self.staged, &self.target)?;
        self.committed = true;
        if let Err(e) = fault::point("storage.dir.renamed").and_then(|()| sync_parent(&self.target)) {
            // It may not last, so it must not be taken for done: the caller goes on as if it had never been.
            self.committed = fs::rename(&self.target, &self.staged).is_err();
            return Err(e);
        }
        // The lock lived on this descriptor; the name is free of staging from here on.
        let _ = flock(&self.dir, FlockOperation::Unlock);
        Ok(())
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.staged);
        }
    }
}

/// Writes `content` to `target`, replacing it durably and atomically.
///
/// # Errors
/// As [`StagedFile::create`] and [`StagedFile::commit`].
pub fn write(target: &Path, content: &[u8]) -> io::Result<()> {
    let staged = StagedFile::create(target)?;
    fault::point("storage.file.write")?;
    staged.file().write_all(content)?;
    fault::point("storage.file.written")?;
    staged.commit().map(drop)
}

/// Gives a file that is already written a new name on the same file system, durably.
///
/// The file's content is fsynced first, then it is renamed (replacing `to`), then both directories are
/// fsynced.
///
/// # Errors
/// Up to the rename `from` stays where it was. An error after it leaves the file at `to`.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    sync(&File::open(from)?)?;
    fault::point("storage.rename")?;
    fs::rename(from, to)?;
    fault::point("storage.renamed")?;
    sync_parent(to)?;
    if from.parent() != to.parent() { sync_parent(from) } else { Ok(()) }
}

/// Gives a file a second name on the same file system. [`sync_dir`] makes it durable.
///
/// # Errors
/// `AlreadyExists` where the name is taken, whatever by; `CrossesDevices`.
pub fn hard_link(from: &Path, to: &Path) -> io::Result<()> {
    fault::point("storage.link")?;
    fs::hard_link(from, to)?;
    fault::point("storage.linked")
}

/// Removes a file durably; one that is not there is fine.
///
/// # Errors
/// The file could not be removed or its directory not synced.
pub fn remove(path: &Path) -> io::Result<()> {
    fault::point("storage.remove")?;
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_parent(path),
    }
}

/// Makes the names in a directory durable.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    sync(&File::open(dir)?)
}

fn sync(entry: &File) -> io::Result<()> {
    fault::point("storage.sync")?;
    entry.sync_all()?;
    fault::point("storage.synced")
}

/// Makes the name of `path` durable in the directory that holds it.
///
/// # Errors
/// As [`sync_dir`].
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_dir(parent(path))
}

/// Removes what crashed writers left staged in `dir` and returns how many names that were.
///
/// Names whose writer still lives are left alone.
///
/// # Errors
/// The directory cannot be read, or a leftover not be removed.
pub fn sweep(dir: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(STAGING_PREFIX.as_bytes()) {
            continue;
        }
        let Some(leftover) = unless_gone(open_without_following(&entry.path()))? else { continue };
        match flock(&leftover, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => continue,
            result => result?,
        }
        let result = if leftover.metadata()?.is_dir() {
            fs::remove_dir_all(entry.path())
        } else {
            fs::remove_file(entry.path())
        };
        removed += usize::from(unless_gone(result)?.is_some());
    }
    Ok(removed)
}

fn open_without_following(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Makes a locked staging entry beside `target` with `create`.
fn stage(target: &Path, create: impl Fn(&Path) -> io::Result<File>) -> io::Result<(File, PathBuf)> {
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    fault::point("storage.stage")?;
    for _ in 0..ATTEMPTS {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let mut staged = std::ffi::OsString::from(STAGING_PREFIX);
        staged.push(format!("{:016x}-", u64::from_le_bytes(random)));
        staged.push(name);
        let staged = parent(target).join(staged);
        let file = match create(&staged) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            result => result?,
        };
        if let Err(e) = flock(&file, FlockOperation::LockExclusive) {
            let _ = fs::remove_file(&staged).or_else(|_| fs::remove_dir(&staged));
            return Err(e.into());
        }
        // A sweep may have taken the entry between its creation and the lock: it is then unlinked.
        if unless_gone(fs::symlink_metadata(&staged))?.is_some_and(|found| same_file(&found, &file)) {
            return Ok((file, staged));
        }
    }
    Err(io::Error::other("no free staging name"))
}

/// Renames to a name that must be free.
fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system has NOREPLACE: there, whoever takes the name between these two steps loses it.
        Err(Errno::INVAL) if fs::symlink_metadata(to).is_err() => fs::rename(from, to),
        result => Ok(result?),
    }
}

fn same_file(found: &fs::Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (found.dev(), found.ino()))
}

/// Fsyncs every file and directory below `dir`, and `dir` itself.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            sync(&File::open(entry.path())?)?;
        }
    }
    sync_dir(dir)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests;

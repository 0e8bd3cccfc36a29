//! A disk becomes a plain file: an image of its own.
//!
//! Both backends say where the disk's bytes are, stretch by stretch. Here holes are passed over, what is left is read
//! once, and blocks of zeros are not written.
//!
//! Failure paths: the file is staged until it is whole and durable. An error, a cancellation and a panic remove it; a
//! crash leaves a staging name, which [`sweep`](crate::durable::sweep) removes.

use std::fmt;
use std::fs;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use wrenn_base::{Bytes, fault};

use super::clone::next_data;
use super::cow::Source;
use super::{BLOCK, DiskError};
use crate::durable::StagedFile;
use crate::memory::{is_zero, page_runs};

/// How much is read at once.
const PIECE: u64 = 1 << 20;

/// What [`RootDisks::flatten`](super::RootDisks::flatten) made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flattened {
    /// The new file's size, which is the disk's.
    pub size: Bytes,
    /// What the new file takes of its file system: it is sparse.
    pub allocated: Bytes,
}

/// A file that a disk is being written to.
pub(super) struct Flattening<'a> {
    staged: StagedFile,
    target: &'a Path,
    size: u64,
    pace: &'a mut dyn FnMut(Bytes) -> ControlFlow<()>,
    buf: Vec<u8>,
}

impl fmt::Debug for Flattening<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flattening").field("target", &self.target).finish_non_exhaustive()
    }
}

impl<'a> Flattening<'a> {
    /// Begins a file of `size` bytes, all of them holes, that is to become `target`.
    pub(super) fn begin(
        target: &'a Path,
        size: u64,
        pace: &'a mut dyn FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<Self, DiskError> {
        // Told before the work, not after it.
        if fs::symlink_metadata(target).is_ok() {
            return Err(DiskError::io("make", target)(io::ErrorKind::AlreadyExists.into()));
        }
        let staged = StagedFile::create(target).map_err(DiskError::io("stage", target))?;
        staged.file().set_len(size).map_err(DiskError::io("write", target))?;
        Ok(Self { staged, target, size, pace, buf: vec![0; PIECE as usize] })
    }

    /// Takes the bytes `disk` of the disk, whole blocks, from `source`, where they begin at byte `at`.
    pub(super) fn take(&mut self, source: &Source, disk: Range<u64>, at: u64) -> Result<(), DiskError> {
        debug_assert!(disk.start.is_multiple_of(BLOCK) && disk.end.is_multiple_of(BLOCK));
        let end = at + disk.end.saturating_sub(disk.start);
        let mut next = at;
        while next < end {
            let data = next_data(&source.file, next, end).map_err(DiskError::io("read", &source.path))?;
            let Some((start, stop)) = data else { break };
            // File systems have holes of units of their own; whole blocks are looked at here.
            let (mut from, stop) = (start - start % BLOCK, stop.next_multiple_of(BLOCK).min(end));
            while from < stop {
                let len = PIECE.min(stop - from);
                self.take_piece(source, from, disk.start + (from - at), len as usize)?;
                from += len;
            }
            next = stop;
        }
        Ok(())
    }

    fn take_piece(&mut self, source: &Source, from: u64, to: u64, len: usize) -> Result<(), DiskError> {
        let piece = &mut self.buf[..len];
        fault::point("storage.flatten.piece").map_err(DiskError::io("write", self.target))?;
        source.file.read_exact_at(piece, from).map_err(DiskError::io("read", &source.path))?;
        for (zero, run) in page_runs(len, |block| is_zero(&piece[block])) {
            if !zero {
                let at = to + run.start as u64;
                self.staged
                    .file()
                    .write_all_at(&piece[run], at)
                    .map_err(DiskError::io("write", self.target))?;
            }
        }
        match (self.pace)(Bytes(len as u64)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(DiskError::Cancelled),
        }
    }

    /// Makes the file durable and gives it its name.
    pub(super) fn finish(self) -> Result<Flattened, DiskError> {
        let target = self.target;
        let file = self.staged.commit_new().map_err(DiskError::io("make", target))?;
        // It is there and durable: that its size on disk cannot be asked for is no failure of the whole.
        let allocated = file.metadata().map_or(self.size, |meta| meta.blocks() * 512);
        Ok(Flattened { size: Bytes(self.size), allocated: Bytes(allocated) })
    }
}

#[cfg(test)]
mod tests;

//! Copying files the cheapest way there is.
//!
//! A reflink (FICLONE) where the file system can; otherwise data is copied and holes stay holes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::path::Path;

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

/// How a file was cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloneKind {
    /// Both files share their blocks until one is written.
    Reflink,
    /// The data was copied; holes stayed holes.
    SparseCopy,
}

/// Clones the file `src` to the new file `dst`, durably: a reflink where the file system can, else a sparse copy.
///
/// `dst` must not exist. A crash can leave part of it: stage it and rename where that matters.
///
/// # Errors
/// `AlreadyExists` where `dst` is there (it is untouched); after any other error `dst` is gone again.
pub fn clone_file(src: &Path, dst: &Path) -> io::Result<CloneKind> {
    let from = File::open(src)?;
    let to = OpenOptions::new().write(true).create_new(true).open(dst)?;
    let result = clone_into(&from, &to).and_then(|kind| {
        to.sync_all()?;
        crate::durable::sync_parent(dst)?;
        Ok(kind)
    });
    if result.is_err() {
        let _ = fs::remove_file(dst);
    }
    result
}

/// Clones `from` into the empty file `to`, without making it durable.
pub(super) fn clone_into(from: &File, to: &File) -> io::Result<CloneKind> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(CloneKind::Reflink),
        // Not this file system; not across file systems; not these files. The copy says if anything is really wrong.
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::PERM) => {
            copy_sparsely(from, to).map(|()| CloneKind::SparseCopy)
        }
        Err(e) => Err(e.into()),
    }
}

fn copy_sparsely(from: &File, to: &File) -> io::Result<()> {
    let len = from.metadata()?.len();
    // The length first: what is never written stays a hole.
    to.set_len(len)?;
    let mut end = 0;
    while let Some((start, stop)) = next_data(from, end, len)? {
        let mut source = from;
        source.seek(io::SeekFrom::Start(start))?;
        let mut target = to;
        target.seek(io::SeekFrom::Start(start))?;
        // The standard library copies between files within the kernel (copy_file_range) where it can.
        let copied = io::copy(&mut source.take(stop - start), &mut target)?;
        if copied != stop - start {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file shrank while it was copied"));
        }
        end = stop;
    }
    Ok(())
}

/// The next run of data at or after `offset` and before `len`, as start and end.
pub(super) fn next_data(file: &File, offset: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match seek(file, SeekFrom::Data(offset)) {
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows no holes: everything is data.
        Err(Errno::INVAL) => return Ok((offset < len).then_some((offset, len))),
        start => start?,
    };
    if start >= len {
        return Ok(None);
    }
    let stop = seek(file, SeekFrom::Hole(start))?.min(len);
    Ok((stop > start).then_some((start, stop)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_sparse_copy_equals_its_source_and_keeps_its_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
        let file = File::create(&src).unwrap();
        file.set_len(64 << 20).unwrap();
        for (offset, byte) in [(0, 1), (1 << 20, 2), ((32 << 20) + 4096, 3), ((64 << 20) - 4096, 4)] {
            file.write_all_at(&[byte; 4096], offset).unwrap();
        }
        let to = File::create(&dst).unwrap();
        copy_sparsely(&File::open(&src).unwrap(), &to).unwrap();
        assert!(fs::read(&src).unwrap() == fs::read(&dst).unwrap());
        let taken = to.metadata().unwrap().blocks() * 512;
        assert!(taken <= 1 << 20, "{taken} bytes are taken");
    }

    #[test]
    fn odd_shapes_are_copied_whole() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content, tail) in [("empty", 0, 0), ("only-hole", 0, 12345), ("no-hole", 12345, 0)] {
            let (src, dst) = (dir.path().join(name), dir.path().join(format!("{name}-copy")));
            fs::write(&src, vec![7; content]).unwrap();
            OpenOptions::new().write(true).open(&src).unwrap().set_len((content + tail) as u64).unwrap();
            clone_file(&src, &dst).unwrap();
            assert!(fs::read(&src).unwrap() == fs::read(&dst).unwrap(), "{name}");
        }
    }

    #[test]
    fn a_clone_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
        fs::write(&src, "new").unwrap();
        fs::write(&dst, "old").unwrap();
        assert_eq!(clone_file(&src, &dst).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&dst).unwrap(), b"old");
        assert!(clone_file(&dir.path().join("none"), &dir.path().join("new")).is_err());
        assert!(!dir.path().join("new").exists());
    }
}

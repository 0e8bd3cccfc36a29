//! Opening the files that requests name: regular files only, and never waiting for the other end of a pipe.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file that was named could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("{path:?} could not be opened")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path:?} is no regular file")]
    NotRegular { path: PathBuf },
}

/// Opens `path` to be read.
pub(crate) fn open_to_read(path: &Path) -> Result<(File, Metadata), FileError> {
    open(path, OpenOptions::new().read(true))
}

/// Opens `path` to be written, keeping what it holds; makes it if it is not there.
pub(crate) fn open_to_write(path: &Path) -> Result<(File, Metadata), FileError> {
    open(path, OpenOptions::new().write(true).create(true).truncate(false))
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<(File, Metadata), FileError> {
    let failed = |source| FileError::Open { path: path.to_owned(), source };
    let file = options.custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular { path: path.to_owned() });
    }
    Ok((file, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_a_pipe_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(matches!(open_to_read(&fifo), Err(FileError::NotRegular { .. })));
        assert!(matches!(open_to_write(&fifo), Err(FileError::Open { .. })));
        assert!(matches!(open_to_read(dir.path()), Err(FileError::NotRegular { .. })));
        assert!(matches!(open_to_read(&dir.path().join("absent")), Err(FileError::Open { .. })));
        assert!(open_to_write(&dir.path().join("made")).is_ok());
    }
}

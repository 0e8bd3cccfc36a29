//! A place to write to that never holds its writer up.
//!
//! The console and the log are written by vCPU threads and by the main loop, at the guest's pace. Where the
//! reader of a pipe or terminal does not keep up, bytes are lost; the machine goes on.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A file, pipe or terminal, written without waiting.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    /// Whether a write could wait for a reader: not with regular files.
    may_wait: bool,
}

impl Output {
    /// Writes go to `file`.
    pub(crate) fn new(file: File) -> Self {
        let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        Self { file, may_wait: !regular }
    }

    /// Writes go to the process's standard output.
    ///
    /// # Errors
    /// If it is closed, or no file descriptors are left.
    pub(crate) fn stdout() -> io::Result<Self> {
        Ok(Self::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }

    /// Writes go to the process's standard error.
    ///
    /// # Errors
    /// If it is closed, or no file descriptors are left.
    pub(crate) fn stderr() -> io::Result<Self> {
        Ok(Self::new(File::from(io::stderr().as_fd().try_clone_to_owned()?)))
    }

    /// Whether a write of up to 4 KiB (`PIPE_BUF`) would go through at once.
    fn ready(&self) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.may_wait && !self.ready() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_full_pipe_loses_bytes_and_never_waits() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut output = Output::new(File::from(std::os::fd::OwnedFd::from(writer)));
        let mut written = 0;
        let refused = loop {
            match output.write(b"x") {
                Ok(len) => written += len,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        // Room again as soon as somebody reads.
        let mut bytes = vec![0; written];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(output.write(b"y").unwrap(), 1);
    }

    #[test]
    fn a_file_takes_everything() {
        let file = tempfile::tempfile().unwrap();
        let mut output = Output::new(file.try_clone().unwrap());
        output.write_all(&[7; 100_000]).unwrap();
        output.flush().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100_000);
    }
}

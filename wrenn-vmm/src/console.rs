//! The file that takes a monitor's output, and with it the guest's serial console.
//!
//! A guest can print without end, so the file is bounded: whoever watches the monitor calls
//! [`Console::trim`] now and then, which keeps the newest part. The monitor writes to it directly, so its
//! output survives the death of this process.
//!
//! Invariant: the file is opened for appending, by the monitor's descriptor too; a write after a trim lands
//! at the new end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::text::sanitise;

/// How much of the console an exit report carries, in bytes.
pub(crate) const TAIL: u64 = 4 << 10;
/// The file is trimmed once it is longer than this, in bytes.
const LIMIT: u64 = 4 << 20;
/// What a trim keeps, in bytes.
const KEPT: u64 = 64 << 10;
const CUT_MARK: &[u8] = b"[older output was dropped]\n";

#[derive(Debug)]
pub(crate) struct Console {
    file: File,
}

impl Console {
    /// Opens the log for appending, and creates it, readable by its owner alone, where there is none.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { file })
    }

    /// Another descriptor of the file, to become a process's output.
    pub(crate) fn writer(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The newest output, fit to be shown; says so where it cannot be read.
    pub(crate) fn tail(&self) -> String {
        match self.newest(TAIL) {
            Ok(bytes) => sanitise(&String::from_utf8_lossy(&bytes)),
            Err(error) => format!("[the console log cannot be read: {error}]"),
        }
    }

    /// Drops all but the newest output once the file has become long.
    ///
    /// What the monitor writes at that very moment may be lost or land above the mark.
    pub(crate) fn trim(&self) -> io::Result<()> {
        if self.file.metadata()?.len() <= LIMIT {
            return Ok(());
        }
        let newest = self.newest(KEPT)?;
        self.file.set_len(0)?;
        let mut file = &self.file;
        file.write_all(CUT_MARK)?;
        file.write_all(&newest)
    }

    fn newest(&self, limit: u64) -> io::Result<Vec<u8>> {
        let mut file = &self.file;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded_and_fit_to_be_shown() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::open(&dir.path().join("console")).unwrap();
        assert_eq!(console.tail(), "");
        let mut writer = console.writer().unwrap();
        writer.write_all(&[b'x'; 2 * TAIL as usize]).unwrap();
        writer.write_all(b"\x1b[2Jpanic\xff: end\r\n").unwrap();
        let tail = console.tail();
        assert!(tail.ends_with("[2Jpanic\u{fffd}: end\n"), "{}", &tail[tail.len() - 40..]);
        assert!(tail.starts_with("xxx"));
        assert!(tail.len() <= TAIL as usize + 2);
    }

    #[test]
    fn a_long_log_keeps_its_newest_part_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let console = Console::open(&path).unwrap();
        let mut writer = console.writer().unwrap();
        writer.write_all(&vec![b'a'; LIMIT as usize]).unwrap();
        console.trim().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), LIMIT, "a log at the limit is left alone");
        writer.write_all(b"newest").unwrap();
        console.trim().unwrap();
        writer.write_all(b" and after").unwrap();
        let text = std::fs::read(&path).unwrap();
        assert_eq!(text.len() as u64, KEPT + CUT_MARK.len() as u64 + 10);
        assert!(text.starts_with(CUT_MARK) && text.ends_with(b"newest and after"));
    }
}

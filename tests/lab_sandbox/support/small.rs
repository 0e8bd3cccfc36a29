//! A small file system in memory, which a test can fill.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// See above.
pub(crate) struct Small {
    scratch: tempfile::TempDir,
}

impl Small {
    pub(crate) fn new(size: wrenn::MiB) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let options = format!("size={}m,huge=never", size.0);
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(scratch.path()));
        Self { scratch }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Fills it, but for `room` bytes, until the answer is dropped.
    pub(crate) fn fill(&self, room: u64) -> Ballast {
        Ballast::of(self.dir(), room)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.dir()).status().unwrap().success();
        assert!(unmounted || std::thread::panicking(), "something holds on to it");
    }
}

/// What fills a file system.
pub(crate) struct Ballast(PathBuf);

impl Ballast {
    /// Fills the file system of `dir`, but for `room` bytes.
    pub(crate) fn of(dir: &Path, room: u64) -> Self {
        let path = dir.join("ballast");
        let free = rustix::fs::statvfs(dir).unwrap();
        let free = free.f_bavail * free.f_frsize;
        let file = fs::File::create(&path).unwrap();
        rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::empty(),
            0,
            free.saturating_sub(room).max(1),
        )
        .unwrap();
        Self(path)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

//! File systems of their own for tests, and a printed reason where there can be none.

#![allow(clippy::disallowed_methods, reason = "tests make file systems with mkfs and mount")]

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

/// A file system of its own, unmounted when dropped.
pub(crate) struct Mount {
    pub(crate) dir: PathBuf,
    _scratch: tempfile::TempDir,
}

impl Mount {
    /// Mounts a file system that `mkfs` makes in a file, or says why it cannot.
    pub(crate) fn image(mkfs: &[&str], size: u64) -> Result<Self, String> {
        let scratch = tempfile::tempdir().map_err(|e| e.to_string())?;
        let (file, dir) = (scratch.path().join("image"), scratch.path().join("mount"));
        File::create(&file).and_then(|file| file.set_len(size)).map_err(|e| e.to_string())?;
        std::fs::create_dir(&dir).map_err(|e| e.to_string())?;
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&file))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&dir))?;
        Ok(Self { dir, _scratch: scratch })
    }

    pub(crate) fn tmpfs(options: &str) -> Result<Self, String> {
        let scratch = tempfile::tempdir().map_err(|e| e.to_string())?;
        let dir = scratch.path().join("mount");
        std::fs::create_dir(&dir).map_err(|e| e.to_string())?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(&dir))?;
        Ok(Self { dir, _scratch: scratch })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(e) = run(Command::new("umount").arg(&self.dir)) {
            eprintln!("{e}");
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(e) => Err(format!("{program} cannot be run: {e}")),
    }
}

/// The mount, or a printed reason to skip.
pub(crate) fn or_skip(mount: Result<Mount, String>) -> Option<Mount> {
    mount.inspect_err(|why| eprintln!("SKIP: {why}")).ok()
}

//! Running the `wrenn` command on a data directory of the test's own.
#![allow(clippy::disallowed_methods, reason = "tests run programs")]
#![allow(dead_code, reason = "each test program uses its own part")]

pub(crate) mod oci;
pub(crate) mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use wrenn_core::ImageName;
use wrenn_core::image::{Image, ImageError, ImageRegistry};

pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A path outside of the data directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn"));
        command.arg("--data").arg(self.data()).args(args).env_remove("WRENN_AGENT").stdin(Stdio::null());
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(proxy).env_remove(proxy.to_lowercase());
        }
        command
    }

    pub(crate) fn wrenn(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it, expects success and returns what it said on either stream.
    pub(crate) fn succeeds(&self, args: &[&str]) -> String {
        let output = self.wrenn(args);
        let said = said(&output);
        assert!(output.status.success(), "{args:?}: {said}");
        said
    }

    /// Runs it, expects an orderly failure that leaves nothing, and returns what it said.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let output = self.wrenn(args);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        assert_eq!(self.staged(), Vec::<String>::new(), "{said}");
        said
    }

    pub(crate) fn image(&self, name: &str) -> Result<Image, ImageError> {
        ImageRegistry::open(&self.data())?.get(&name.parse::<ImageName>().unwrap())
    }

    /// What is staged at this moment, without sweeping it.
    pub(crate) fn staged(&self) -> Vec<String> {
        let mut found = Vec::new();
        for dir in ["", "images", "cache", "cache/blobs/sha256"] {
            let Ok(entries) = fs::read_dir(self.data().join(dir)) else { continue };
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            found.extend(names.filter(|name| name.starts_with(".staged")));
        }
        found
    }
}

pub(crate) fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// What a request of debugfs, the file-system debugger of e2fsprogs, answers for an image.
pub(crate) fn debugfs(rootfs: &Path, request: &str) -> String {
    let output = Command::new("/usr/sbin/debugfs").args(["-R", request]).arg(rootfs).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the checker of e2fsprogs finds the file system whole.
pub(crate) fn is_whole(rootfs: &Path) -> bool {
    Command::new("/usr/sbin/e2fsck").args(["-f", "-n"]).arg(rootfs).output().unwrap().status.success()
}

pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", said(&output));
}

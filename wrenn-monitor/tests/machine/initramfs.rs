//! An initial RAM disk with nothing but the test guest: a `newc` cpio archive (the kernel's
//! `driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The archive, with the guest's program as `/init` and the libraries that it takes.
pub(crate) fn build() -> Vec<u8> {
    with_init(env!("CARGO_BIN_EXE_wrenn-lab-guest"))
}

/// The archive with another program.
pub(crate) fn with_init(program: &str) -> Vec<u8> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "lib", "lib64"] {
        archive.add(dir, DIRECTORY, (0, 0), &[]);
    }
    archive.add("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
    archive.add("init", PROGRAM, (0, 0), &read(Path::new(program)));
    for library in libraries() {
        let name = library.file_name().unwrap().to_str().unwrap();
        let dir = if name.starts_with("ld-") { "lib64" } else { "lib" };
        archive.add(&format!("{dir}/{name}"), PROGRAM, (0, 0), &read(&library));
    }
    archive.finish()
}

/// The shared libraries of this very process, which are those of every Rust program of its target.
fn libraries() -> BTreeSet<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    paths.filter(|path| path.contains(".so")).map(PathBuf::from).collect()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries, // inode
            mode,
            0, // owner
            0, // group
            1, // links
            0, // modification time
            content.len() as u32,
            0, // device of the archive's file system
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0, // checksum
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

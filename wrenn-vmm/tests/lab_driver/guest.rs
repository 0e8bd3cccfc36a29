//! A guest for the driver's tests: the registered kernel and an initial RAM disk with one tiny program.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sys::guest_code;

/// Where the program is loaded in the guest.
const BASE: u64 = 0x40_0000;
/// An ELF file's header and one program header (System V ABI, chapters 4 and 5; 64-bit).
const HEADERS: u64 = 64 + 56;

/// The registered kernel, and an initial RAM disk written into `dir`. None, saying so, where no kernel is registered.
pub(crate) fn files(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    let data = std::env::var_os("WRENN_TEST_DATA")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.wrenn/data"));
    let kernel = data.join("guest/vmlinux");
    if !kernel.exists() {
        eprintln!("SKIP: no guest kernel at {}; make one with `wrenn guest build`", kernel.display());
        return None;
    }
    let registered =
        fs::read(data.join("guest/initramfs.cpio")).expect("an initramfs lies beside the kernel");
    let mut ramdisk = Vec::new();
    add(&mut ramdisk, "init", 0o100_755, &program());
    // In the order they need each other.
    for (index, driver) in ["pvpanic.ko", "pvpanic_mmio.ko"].iter().enumerate() {
        // A module's file may have '-' where its name has '_'.
        let is_it =
            |name: &str| name.rsplit('/').next().is_some_and(|file| file.replace('-', "_") == *driver);
        let found = entries(&registered).find(|(name, _)| is_it(name));
        if let Some((_, content)) = found {
            add(&mut ramdisk, &format!("{index}.ko"), 0o100_644, content);
        }
    }
    add(&mut ramdisk, "TRAILER!!!", 0, &[]);
    let path = dir.join("initramfs.cpio");
    fs::write(&path, ramdisk).unwrap();
    Some((kernel, path))
}

/// The program as an ELF executable.
fn program() -> Vec<u8> {
    let code = guest_code();
    let size = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    elf.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2u16, 62].map(u16::to_le_bytes).concat()); // an executable, for x86-64
    elf.extend(1u32.to_le_bytes());
    elf.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).concat()); // entry, program headers, no sections
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat()); // sizes and counts of headers
    elf.extend([1u32, 5].map(u32::to_le_bytes).concat()); // to be loaded, readable and executable
    elf.extend([0, BASE, BASE, size, size, 0x1000].map(u64::to_le_bytes).concat());
    elf.extend(code);
    elf
}

/// Adds one file to an archive in cpio's "newc" format (the kernel's `initramfs-buffer-format.rst`).
fn add(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let name_size = name.len() as u32 + 1;
    let fields = [1, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name_size, 0];
    archive.extend(b"070701");
    archive.extend(fields.map(|field: u32| format!("{field:08x}")).concat().into_bytes());
    archive.extend(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// The files of a "newc" archive.
fn entries(archive: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    let field = |at: usize, index: usize| {
        let digits = archive.get(at + 6 + 8 * index..at + 14 + 8 * index)?;
        usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        let (size, name_size) = (field(at, 6)?, field(at, 11)?);
        let name = std::str::from_utf8(archive.get(at + 110..at + 110 + name_size - 1)?).ok()?;
        let data = (at + 110 + name_size).next_multiple_of(4);
        let content = archive.get(data..data + size)?;
        at = (data + size).next_multiple_of(4);
        Some((name, content))
    })
}

#[test]
fn the_archive_reads_back() {
    let mut archive = Vec::new();
    add(&mut archive, "init", 0o755, b"12345");
    add(&mut archive, "a/b", 0o644, b"");
    add(&mut archive, "TRAILER!!!", 0, &[]);
    let read: Vec<_> = entries(&archive).collect();
    assert_eq!(read, [("init", &b"12345"[..]), ("a/b", b""), ("TRAILER!!!", b"")]);
}

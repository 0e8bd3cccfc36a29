//! Telling a kernel from what is none.
//!
//! Formats: the ELF-64 object file header; the setup header of the Linux/x86 boot protocol
//! (the kernel's Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::ImageError;

/// How much of a file is looked at: the boot protocol's magic number lies in its first 1 KiB.
const HEAD: usize = 1024;

/// The form of a kernel image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelFormat {
    /// An uncompressed ELF `vmlinux`: boots without decompressing.
    Elf,
    /// A `bzImage`, which decompresses itself at every boot.
    BzImage,
}

impl KernelFormat {
    /// Recognises the kernel at `path`.
    ///
    /// Only the headers are looked at: an ELF can still turn out not to be a kernel when it is loaded.
    ///
    /// # Errors
    /// [`ImageError::Io`] where the file cannot be read, [`ImageError::NotAKernel`] where it is something else.
    pub fn of(path: &Path) -> Result<Self, ImageError> {
        let mut head = Vec::with_capacity(HEAD);
        File::open(path)
            .and_then(|file| file.take(HEAD as u64).read_to_end(&mut head))
            .map_err(ImageError::io("read", path))?;
        Self::of_head(&head).map_err(|found| ImageError::NotAKernel { path: path.to_owned(), found })
    }

    /// Recognises a kernel by its first bytes; the error says what they look like instead.
    fn of_head(head: &[u8]) -> Result<Self, &'static str> {
        if head.starts_with(b"\x7fELF") {
            return match (head.get(4..6), head.get(18..20)) {
                (Some([2, 1]), Some([62, 0])) => Ok(Self::Elf),
                (Some(_), Some(_)) => Err("an ELF file for another kind of machine"),
                _ => Err("a truncated ELF file"),
            };
        }
        if head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && head.get(0x202..0x206) == Some(b"HdrS") {
            return Ok(Self::BzImage);
        }
        Err(match head {
            [] => "an empty file",
            [0x1f, 0x8b, ..] => "a gzip file",
            [0xfd, b'7', b'z', b'X', b'Z', ..] => "an xz file",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd file",
            _ => "an unknown file",
        })
    }
}

/// Whether `path` can be opened as a regular file, for messages that come before any use.
pub(super) fn regular_file_len(path: &Path) -> io::Result<u64> {
    let meta = std::fs::symlink_metadata(path)?;
    if meta.is_file() { Ok(meta.len()) } else { Err(io::Error::other("it is not a regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(class: u8, machine: u8) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..4].copy_from_slice(b"\x7fELF");
        head[4] = class;
        head[5] = 1;
        head[18] = machine;
        head
    }

    #[test]
    fn kernels_are_recognised_and_others_described() {
        let mut bz = vec![0; HEAD];
        bz[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bz[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(KernelFormat::of_head(&elf(2, 62)), Ok(KernelFormat::Elf));
        assert_eq!(KernelFormat::of_head(&bz), Ok(KernelFormat::BzImage));
        for (head, found) in [
            (elf(1, 3), "an ELF file for another kind of machine"),
            (elf(2, 183), "an ELF file for another kind of machine"),
            (b"\x7fELF\x02".to_vec(), "a truncated ELF file"),
            (Vec::new(), "an empty file"),
            (b"\x1f\x8b\x08".to_vec(), "a gzip file"),
            (b"#!/bin/sh\n".to_vec(), "an unknown file"),
            (bz[..0x204].to_vec(), "an unknown file"),
        ] {
            assert_eq!(KernelFormat::of_head(&head), Err(found));
        }
    }
}

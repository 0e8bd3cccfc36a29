//! Just enough of ext4 to know one when we see it.
//!
//! Layout: the kernel's Documentation/filesystems/ext4/super.rst.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The superblock begins after 1024 bytes, its magic number 0x38 bytes into it.
const MAGIC_OFFSET: u64 = 1024 + 0x38;
const MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();

/// Whether the file begins with an ext superblock.
///
/// # Errors
/// The file cannot be read.
pub(super) fn is_ext4(file: &File) -> io::Result<bool> {
    let mut magic = [0; 2];
    match file.read_exact_at(&mut magic, MAGIC_OFFSET) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| magic == MAGIC),
    }
}

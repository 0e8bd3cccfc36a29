//! From a directory tree to an ext4 file system.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use wrenn_core::{Bytes, MiB};

use super::BuildError;
use crate::progress::Step;
use crate::tool::Tool;

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Room for a journal, which keeps a disk consistent that is cut off in mid-write: the smallest that mke2fs makes.
const JOURNAL: u64 = 4 * MIB;

/// How large the file system is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RootSize {
    /// What the content takes, and so much room for the guest's own files.
    Free(MiB),
    /// Exactly that.
    Exact(MiB),
}

/// Makes the file system `rootfs` with the content of `tree`. It is sparse: free space takes none.
///
/// # Errors
/// [`BuildError::ToolFailed`], for example where the content does not fit.
pub(crate) fn make_ext4(tree: &Path, rootfs: &Path, size: RootSize) -> Result<Bytes, BuildError> {
    let step = Step::begin("writing the file system");
    let usage = Usage::of(tree)?;
    let size = match size {
        RootSize::Exact(size) => size.bytes().get(),
        RootSize::Free(free) => usage.size_with(free.bytes().get()),
    };
    Tool::find("mke2fs", "e2fsprogs")?
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J", "size=4"])
        // Everything is initialised now, into holes: otherwise the guest's kernel would do it, into every sandbox's own
        // changes.
        .args(["-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard"])
        .args(["-N", &usage.inodes_for(size).to_string()])
        .args(["-L", "wrenn-root"])
        .arg("-d")
        .arg(tree)
        .arg(rootfs)
        .arg(format!("{}k", size / 1024))
        .run(&step)?;
    let taken = fs::metadata(rootfs).map_err(BuildError::io("read", rootfs))?.blocks() * 512;
    step.done(&format!("{}, of which {} are taken", Bytes(size), Bytes(taken)));
    Ok(Bytes(size))
}

/// What a tree needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    /// Bytes in whole blocks, directories and long symbolic links included.
    bytes: u64,
    files: u64,
}

impl Usage {
    fn of(tree: &Path) -> Result<Self, BuildError> {
        let mut usage = Self::default();
        let mut open = vec![tree.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).map_err(BuildError::io("read", &dir))? {
                let entry = entry.map_err(BuildError::io("read", &dir))?;
                let meta = entry.metadata().map_err(BuildError::io("read", entry.path()))?;
                usage.files += 1;
                if meta.is_dir() {
                    open.push(entry.path());
                    usage.bytes += BLOCK.max(meta.len());
                } else if meta.is_file() || meta.is_symlink() {
                    // What a sparse file does not take, its image does not take either, nor need it be there.
                    usage.bytes += meta.len().min(meta.blocks() * 512 + BLOCK).next_multiple_of(BLOCK);
                }
            }
        }
        Ok(usage)
    }

    /// The size of a file system with the content and `free` bytes of room.
    fn size_with(self, free: u64) -> u64 {
        let content = self.bytes + free;
        // Inode tables take 1/64 at most (256 bytes for every 16 KiB), group descriptors and bitmaps far less.
        let overhead = content / 32 + self.files * 512 + JOURNAL + 4 * MIB;
        (content + overhead).next_multiple_of(4 * MIB)
    }

    /// So many inodes that a guest can make files until the space is used up, or half as many again as there are.
    fn inodes_for(self, size: u64) -> u64 {
        (size / (16 << 10)).max(self.files + self.files / 2 + 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_counts_blocks_and_everything_that_needs_an_inode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        fs::write(path.join("one"), vec![1; 4097]).unwrap();
        fs::create_dir(path.join("sub")).unwrap();
        std::os::unix::fs::symlink("one", path.join("sub/link")).unwrap();
        let sparse = fs::File::create(path.join("sub/sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let usage = Usage::of(path).unwrap();
        assert_eq!(usage.files, 4);
        assert!(usage.bytes >= 8192 + BLOCK && usage.bytes < MIB, "{usage:?}");
    }

    #[test]
    fn sizes_are_whole_blocks_and_leave_the_room_asked_for() {
        for (bytes, files) in [(0, 0), (100 * MIB, 3500), (3 << 30, 400_000)] {
            let usage = Usage { bytes, files };
            let size = usage.size_with(256 * MIB);
            assert_eq!(size % BLOCK, 0);
            let inodes = usage.inodes_for(size);
            assert!(inodes > files);
            assert!(size - inodes * 256 - JOURNAL >= bytes + 256 * MIB, "{usage:?}");
        }
    }
}

//! The root disk: found, mounted, grown, entered.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};

use super::mounts::EARLY;
use super::{During, Failure, make_directory, wait_for};
use crate::sys;

/// Where the new root is mounted before it becomes the root.
const SYSROOT: &str = "/sysroot";

/// A file system this much smaller than its disk is grown; less is rounding.
const WORTH_GROWING: u64 = 1 << 20;

/// What of an ext4 superblock matters here.
#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    block_size: u64,
    blocks: u64,
}

/// Makes the file system on `device` the root, and forgets the initramfs.
pub(super) fn enter(device: &Path) -> Result<(), Failure> {
    wait_for(device)?;
    let name = device.display();
    let (superblock, size) = inspect(device).during(|| format!("use {name} as the root disk"))?;
    make_directory(SYSROOT).during(|| format!("make {SYSROOT}"))?;
    // Access times would make pages dirty, and snapshots larger, for nothing.
    mount(device, SYSROOT, "ext4", MountFlags::NOATIME, c"").during(|| format!("mount {name}"))?;
    grow(&superblock, size).during(|| {
        format!(
            "grow the file system on {name} from {} to {size} bytes",
            superblock.blocks * superblock.block_size
        )
    })?;
    for directory in EARLY {
        let target = format!("{SYSROOT}{directory}");
        make_directory(&target).during(|| format!("make {directory} in the root file system"))?;
        mount_move(directory, target.as_str()).during(|| format!("move {directory} to the new root"))?;
    }
    empty_initramfs();
    switch().during(|| "switch to the new root".into())
}

/// Reads the superblock and the device's size in bytes.
fn inspect(device: &Path) -> io::Result<(Superblock, u64)> {
    let mut file = File::open(device)?;
    // See Documentation/filesystems/ext4/super.rst of the kernel: at byte 1024, 1024 bytes long.
    let mut bytes = [0; 1024];
    file.seek(SeekFrom::Start(1024))?;
    file.read_exact(&mut bytes)?;
    let superblock =
        Superblock::parse(&bytes).ok_or_else(|| io::Error::other("it holds no ext4 file system"))?;
    Ok((superblock, file.seek(SeekFrom::End(0))?))
}

impl Superblock {
    fn parse(bytes: &[u8; 1024]) -> Option<Self> {
        const MAGIC: u16 = 0xef53;
        const INCOMPAT_64BIT: u32 = 0x80;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let log_block_size = u32_at(0x18);
        if u16_at(0x38) != MAGIC || log_block_size > 6 {
            return None;
        }
        let high = if u32_at(0x60) & INCOMPAT_64BIT != 0 { u64::from(u32_at(0x150)) } else { 0 };
        Some(Self { block_size: 1024 << log_block_size, blocks: high << 32 | u64::from(u32_at(0x04)) })
    }
}

fn grow(superblock: &Superblock, size: u64) -> io::Result<()> {
    let now = superblock.blocks.saturating_mul(superblock.block_size);
    if size < now.saturating_add(WORTH_GROWING) {
        return Ok(());
    }
    sys::resize_ext4(File::open(SYSROOT)?, size / superblock.block_size)
}

/// Frees the memory of the initramfs's files; the running agent's own stays while it runs.
///
/// What can't be removed only wastes memory.
fn empty_initramfs() {
    if let Ok(root) = fs::metadata("/") {
        remove_within(Path::new("/"), root.dev());
    }
}

/// Removes everything below `directory` on the same file system.
fn remove_within(directory: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            remove_within(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

fn switch() -> io::Result<()> {
    chdir(SYSROOT)?;
    mount_move(".", "/")?;
    chroot(".")?;
    Ok(chdir("/")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_of_real_file_systems_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        for (size, options, block_size) in
            [(64u64 << 20, &["-b", "4096"][..], 4096), (8 << 20, &["-b", "1024", "-O", "^64bit"], 1024)]
        {
            File::create(&path).unwrap().set_len(size).unwrap();
            #[allow(clippy::disallowed_methods)] // a test makes its file system
            let made = std::process::Command::new("mkfs.ext4").arg("-qF").args(options).arg(&path).status();
            match made {
                Ok(status) => assert!(status.success()),
                Err(e) => {
                    eprintln!("SKIP: no mkfs.ext4: {e}");
                    return;
                }
            }
            let (superblock, length) = inspect(&path).unwrap();
            assert_eq!(superblock, Superblock { block_size, blocks: size / block_size });
            assert_eq!(length, size);
        }
    }

    #[test]
    fn other_things_are_no_root_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, vec![0; 4096]).unwrap();
        assert!(inspect(&path).unwrap_err().to_string().contains("no ext4"));
        fs::write(&path, b"short").unwrap();
        assert!(inspect(&path).is_err());
    }

    #[test]
    fn removal_goes_deep() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/f"), b"x").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let device = fs::metadata(dir.path()).unwrap().dev();
        remove_within(dir.path(), device + 1);
        assert!(dir.path().join("a/b/f").exists(), "another device's files stay");
        remove_within(dir.path(), device);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Path::new("/etc/passwd").exists());
    }
}

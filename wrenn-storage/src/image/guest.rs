//! The guest's kernel and initramfs: `<data>/guest`.
//!
//! One pair serves every sandbox of a data directory. Making it anew replaces it in one step; sandboxes that boot
//! meanwhile have opened either the old files or the new ones.

use std::fs;
use std::path::{Path, PathBuf};

use super::ImageError;
use super::kernel::KernelFormat;
use super::manifest::{self, Digest, FileRecord, GUEST_FORMAT, GuestManifest};
use super::registry::{Collision, publish, seal, set_read_only};
use crate::durable::{self, StagedDir};

const MANIFEST: &str = "guest.json";
const KERNEL: &str = "vmlinux";
const INITRAMFS: &str = "initramfs.cpio";

/// The kernel and the initramfs that sandboxes boot.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GuestFiles {
    /// The kernel: an uncompressed ELF, or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs: kernel modules and the agent as `/init`.
    pub initramfs: PathBuf,
    /// Where they came from.
    pub details: GuestDetails,
}

/// Where the guest files came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDetails {
    /// The kernel's release, as `uname -r` prints it in the guest.
    pub kernel_release: String,
    /// The digest of the agent in the initramfs: another one means that the initramfs is stale.
    pub agent: Digest,
    /// For people: what they were made from.
    pub source: String,
}

/// Guest files in the making; dropping them removes them.
#[derive(Debug)]
pub struct StagedGuest {
    dir: StagedDir,
    target: PathBuf,
}

impl StagedGuest {
    /// Begins a pair of guest files under `data`, and sweeps what interrupted builds left there.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn create(data: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(data).map_err(ImageError::io("create", data))?;
        durable::sweep(data).map_err(ImageError::io("sweep", data))?;
        let target = data.join("guest");
        let dir = StagedDir::create(&target).map_err(ImageError::io("stage", &target))?;
        Ok(Self { dir, target })
    }

    /// Where the kernel is to be written.
    pub fn kernel(&self) -> PathBuf {
        self.dir.path().join(KERNEL)
    }

    /// Where the initramfs is to be written.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.path().join(INITRAMFS)
    }

    /// The directory that an abrupt end leaves behind, to be removed by whoever can.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Checks the pair, makes it durable and puts it in the place of the one before, in one step.
    ///
    /// # Errors
    /// [`ImageError::NotAKernel`] or [`ImageError::Io`]; what was registered before stays.
    pub fn register(self, details: GuestDetails) -> Result<GuestFiles, ImageError> {
        let (kernel, initramfs) = (self.kernel(), self.initramfs());
        KernelFormat::of(&kernel)?;
        let manifest = GuestManifest {
            format: GUEST_FORMAT,
            kernel: FileRecord::of(&kernel, &mut |_| ())?,
            kernel_release: details.kernel_release,
            initramfs: FileRecord::of(&initramfs, &mut |_| ())?,
            agent_sha256: details.agent,
            created: manifest::unix_now(),
            source: details.source,
        };
        seal(&self.dir.path().join(MANIFEST), &manifest)?;
        set_read_only(&kernel)?;
        set_read_only(&initramfs)?;
        publish(self.dir, &self.target, Collision::Replace)
            .map_err(ImageError::io("register", &self.target))?;
        GuestFiles::open_dir(&self.target)
    }
}

impl GuestFiles {
    /// The guest files registered under `data`.
    ///
    /// Checks that both are there and of the registered size, and that the kernel is one.
    ///
    /// # Errors
    /// [`ImageError::NoGuest`], or one that names the file which is damaged.
    pub fn open(data: &Path) -> Result<Self, ImageError> {
        Self::open_dir(&data.join("guest"))
    }

    fn open_dir(dir: &Path) -> Result<Self, ImageError> {
        let Some(manifest) = manifest::read::<GuestManifest>(&dir.join(MANIFEST), GUEST_FORMAT)? else {
            return Err(ImageError::NoGuest { dir: dir.to_owned() });
        };
        let (kernel, initramfs) = (dir.join(KERNEL), dir.join(INITRAMFS));
        manifest.kernel.check_size(&kernel)?;
        manifest.initramfs.check_size(&initramfs)?;
        KernelFormat::of(&kernel)?;
        Ok(Self {
            kernel,
            initramfs,
            details: GuestDetails {
                kernel_release: manifest.kernel_release,
                agent: manifest.agent_sha256,
                source: manifest.source,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details() -> GuestDetails {
        GuestDetails {
            kernel_release: "6.1.0-x".into(),
            agent: Digest::of(&b"agent"[..], &mut |_| ()).unwrap(),
            source: "a test".into(),
        }
    }

    fn kernel() -> Vec<u8> {
        let mut elf = vec![0; 4096];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        elf
    }

    fn staged(data: &Path, kernel: &[u8], initramfs: &[u8]) -> StagedGuest {
        let staged = StagedGuest::create(data).unwrap();
        fs::write(staged.kernel(), kernel).unwrap();
        fs::write(staged.initramfs(), initramfs).unwrap();
        staged
    }

    #[test]
    fn guest_files_are_registered_replaced_and_checked() {
        let data = tempfile::tempdir().unwrap();
        assert!(matches!(GuestFiles::open(data.path()), Err(ImageError::NoGuest { .. })));
        for initramfs in [&b"one"[..], b"second"] {
            let guest = staged(data.path(), &kernel(), initramfs).register(details()).unwrap();
            assert_eq!(guest.details, details());
            assert_eq!(fs::read(&guest.initramfs).unwrap(), initramfs);
        }
        let names: Vec<_> = fs::read_dir(data.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["guest"], "nothing staged is left");

        let guest = GuestFiles::open(data.path()).unwrap();
        fs::remove_file(&guest.initramfs).unwrap();
        fs::write(&guest.initramfs, "half").unwrap();
        let damaged = GuestFiles::open(data.path()).unwrap_err();
        assert!(
            matches!(&damaged, ImageError::SizeMismatch { path, expected: 6, found: 4 } if *path == guest.initramfs)
        );
    }

    #[test]
    fn what_is_no_kernel_is_refused_and_the_old_pair_stays() {
        let data = tempfile::tempdir().unwrap();
        staged(data.path(), &kernel(), b"old").register(details()).unwrap();
        let refused = staged(data.path(), b"#!/bin/sh\n", b"new").register(details()).unwrap_err();
        assert!(matches!(refused, ImageError::NotAKernel { .. }));
        let guest = GuestFiles::open(data.path()).unwrap();
        assert_eq!(fs::read(guest.initramfs).unwrap(), b"old");
    }
}

//! What a guest is made of: root images and the guest's kernel and initramfs.
//!
//! ```text
//! <data>/images/<name>/image.json     what the image is (types of its own, versioned)
//! <data>/images/<name>/rootfs.ext4    the root file system, read-only
//! <data>/guest/guest.json             what the guest files are
//! <data>/guest/vmlinux                the kernel, an uncompressed ELF or a bzImage
//! <data>/guest/initramfs.cpio         kernel modules and the agent
//! ```
//!
//! Invariants:
//! - A name in `images/` is a whole image: it is filled under a staging name, made durable and renamed.
//! - A registered image never changes. Copy-on-write disks are differences against its exact bytes, so whoever
//!   keeps such a difference keeps the image's [`Digest`] with it.
//! - What is read back is checked against the file system, and an error names the file and the remedy.

mod error;
mod ext4;
mod guest;
mod kernel;
mod manifest;
mod registry;

pub use error::ImageError;
pub use guest::{GuestDetails, GuestFiles, StagedGuest};
pub use kernel::KernelFormat;
pub use manifest::Digest;
pub use registry::{Collision, Image, ImageDetails, ImageList, ImageRegistry, StagedImage};

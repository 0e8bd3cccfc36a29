//! Making images and guest files.

mod agent;
mod archive;
mod debian;
mod error;
mod initramfs;
mod kernel;
mod layers;
mod modules;
mod oci;
mod payload;
mod rootfs;
mod sources;

pub(crate) use agent::Agent;
pub(crate) use archive::unpack;
pub(crate) use debian::bootstrap;
pub(crate) use error::BuildError;
pub(crate) use initramfs::write_initramfs;
pub(crate) use kernel::KernelPackage;
pub(crate) use oci::{Access, ImageSource, ImportError, import};
pub(crate) use rootfs::{RootSize, make_ext4};

/// An error unless this program runs as root.
///
/// # Errors
/// [`BuildError::NotRoot`].
pub(crate) fn require_root(what: &'static str) -> Result<(), BuildError> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(BuildError::NotRoot { what }) }
}

//! What makes two images the same one.

use std::fmt;

use sha2::{Digest, Sha256};

use super::manifest::Manifest;

/// The identity of what an image holds and where: a key for whatever is kept per image in memory.
///
/// Images are equal in it that have the same guest size, layers and extents, wherever their manifests and
/// layer directories are. Equal content in other layers is another identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageIdentity([u8; 32]);

impl ImageIdentity {
    pub(super) fn of(manifest: &Manifest) -> Self {
        Self(Sha256::digest(manifest.encode()).into())
    }
}

impl fmt::Display for ImageIdentity {
    /// As 64 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageIdentity({self})")
    }
}

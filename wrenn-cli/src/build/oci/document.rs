//! Indexes, manifests and configurations: JSON from strangers.

use oci_spec::image::{Arch, Descriptor, DigestAlgorithm, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use wrenn_core::image::Digest;

use super::ImportError;

/// No document is longer: registries refuse to keep longer ones.
pub(super) const LONGEST: u64 = 4 << 20;

/// What a digest in a manifest can lead to.
#[derive(Debug)]
pub(super) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

impl Document {
    /// Parses an index or a manifest, in the OCI's or Docker's form. What it is is told by its content alone: one that
    /// could be either would be another image to each reader.
    ///
    /// # Errors
    /// [`ImportError::Document`] or [`ImportError::Refused`].
    pub(super) fn parse(what: &str, text: &[u8]) -> Result<Self, ImportError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            schema_version: u32,
            manifests: Option<IgnoredAny>,
            layers: Option<IgnoredAny>,
        }

        let shape: Shape = parse(what, text)?;
        match (shape.schema_version, shape.manifests, shape.layers) {
            (2, Some(_), None) => parse(what, text).map(Box::new).map(Self::Index),
            (2, None, Some(_)) => parse(what, text).map(Box::new).map(Self::Manifest),
            (2, ..) => Err(refused(what, "it is neither an index nor a manifest")),
            _ => Err(refused(what, "its schema is not version 2")),
        }
    }
}

/// Parses a document of a known kind.
///
/// # Errors
/// [`ImportError::Document`].
pub(super) fn parse<T: DeserializeOwned>(what: &str, text: &[u8]) -> Result<T, ImportError> {
    serde_json::from_slice(text).map_err(|source| ImportError::Document { what: what.to_owned(), source })
}

/// Parses a configuration, which must be one for this kind of machine.
///
/// # Errors
/// [`ImportError::Document`] or [`ImportError::Refused`].
pub(super) fn configuration(what: &str, text: &[u8]) -> Result<ImageConfiguration, ImportError> {
    let config: ImageConfiguration = parse(what, text)?;
    if *config.os() == Os::Linux && *config.architecture() == Arch::Amd64 {
        return Ok(config);
    }
    Err(refused(what, "it is not for linux/amd64"))
}

/// The part of an index that is for this kind of machine. An only one need not say so: its configuration will.
///
/// # Errors
/// [`ImportError::Refused`] where there is none.
pub(super) fn for_this_machine<'a>(what: &str, index: &'a ImageIndex) -> Result<&'a Descriptor, ImportError> {
    let fits = |descriptor: &&Descriptor| {
        let platform = descriptor.platform().as_ref();
        platform
            .is_some_and(|platform| *platform.os() == Os::Linux && *platform.architecture() == Arch::Amd64)
    };
    match &index.manifests()[..] {
        [only] if only.platform().is_none() => Ok(only),
        several => several.iter().find(fits).ok_or_else(|| refused(what, "it has nothing for linux/amd64")),
    }
}

/// A digest that can be verified.
///
/// # Errors
/// [`ImportError::Refused`] for other algorithms than SHA-256 and for what is no digest.
pub(super) fn digest_of(text: &str) -> Result<Digest, ImportError> {
    let digest = text.strip_prefix("sha256:").and_then(|hex| Digest::try_from(hex.to_owned()).ok());
    digest.ok_or_else(|| refused(&text.chars().take(200).collect::<String>(), "it is no SHA-256 digest"))
}

/// The digest that a descriptor has.
///
/// # Errors
/// As [`digest_of`].
pub(super) fn descriptor_digest(descriptor: &Descriptor) -> Result<Digest, ImportError> {
    if *descriptor.digest().algorithm() != DigestAlgorithm::Sha256 {
        return Err(refused(descriptor.digest().as_ref(), "it is no SHA-256 digest"));
    }
    digest_of(descriptor.digest().as_ref())
}

/// Compares a size with the one that was promised.
///
/// # Errors
/// [`ImportError::Size`].
pub(super) fn check_size(what: &str, expected: u64, found: u64) -> Result<(), ImportError> {
    if expected == found {
        return Ok(());
    }
    Err(ImportError::Size { what: what.to_owned(), expected, found })
}

pub(super) fn refused(what: &str, reason: &'static str) -> ImportError {
    ImportError::Refused { what: what.to_owned(), reason }
}

//! Pulling from registries, by the OCI distribution API.
//!
//! What is asked for by digest is compared with it. Layers go to a cache that is addressed by their digests, so that images
//! which share layers, or an import that failed half way, need not fetch them again. Everything in the cache can be removed
//! at any time.
//!
//! The connection is encrypted, and so is any that an answer redirects to. Registries on this machine's loopback
//! interface are asked without encryption, and others only where [`Access::plain_http`] says so.

mod cache;
mod client;

use std::path::Path;

use oci_spec::distribution::Reference;
use oci_spec::image::{Descriptor, ImageManifest};

use super::document::{self, Document};
use super::{Image, ImportError, Layer, MOST_LAYERS, blob};
use cache::Cache;
use client::Client;

/// How a registry may be asked.
#[derive(Clone, Default)]
pub(crate) struct Access {
    /// A user and a password; anonymous without.
    pub(crate) credentials: Option<(String, String)>,
    /// Whether passwords and images may go over the network without encryption.
    pub(crate) plain_http: bool,
}

impl std::fmt::Debug for Access {
    /// Keeps the password out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.credentials.as_ref().map(|(user, _)| user);
        f.debug_struct("Access").field("user", &user).field("plain_http", &self.plain_http).finish()
    }
}

/// Finds the image and fetches its layers, of `limit` bytes together, to `cache` unless they are there.
///
/// # Errors
/// [`ImportError`]; the cache keeps the blobs that were fetched whole.
pub(super) fn pull(
    reference: &Reference,
    access: &Access,
    cache: &Path,
    limit: u64,
) -> Result<Image, ImportError> {
    let mut client = Client::new(reference, access);
    let cache = Cache::open(cache)?;
    let (digest, manifest) = find(&mut client, reference)?;
    let config = manifest.config();
    let config = client.document("blobs", config.digest().as_ref(), Some(config))?;
    let config = document::configuration(manifest.config().digest().as_ref(), &config)?;
    let descriptors = manifest.layers();
    let sizes = descriptors.iter().map(Descriptor::size).try_fold(0, u64::checked_add);
    if descriptors.len() > MOST_LAYERS || sizes.is_none_or(|bytes| bytes > limit) {
        return Err(document::refused(&reference.whole(), "it is too large for an image"));
    }
    let mut layers = Vec::new();
    for (number, descriptor) in descriptors.iter().enumerate() {
        let digest = document::descriptor_digest(descriptor)?;
        let what = format!("fetching layer {} of {}", number + 1, descriptors.len());
        let content = cache.fetch(&what, &mut client, descriptor.size(), &digest)?;
        layers.push(Layer { name: descriptor.digest().to_string(), content, digest: Some(digest) });
    }
    Ok(Image { source: format!("docker://{} ({digest})", reference.whole()), config, layers })
}

/// The manifest for this kind of machine, with its digest.
fn find(client: &mut Client, reference: &Reference) -> Result<(String, ImageManifest), ImportError> {
    let name = reference.digest().or(reference.tag()).unwrap_or("latest");
    let text = client.document("manifests", name, None)?;
    if let Some(digest) = reference.digest() {
        blob::check(&reference.whole(), &text, &document::digest_of(digest)?)?;
    }
    match Document::parse(&reference.whole(), &text)? {
        Document::Manifest(manifest) => Ok((blob::digest(&text), *manifest)),
        Document::Index(index) => {
            let descriptor = document::for_this_machine(&reference.whole(), &index)?;
            let digest = descriptor.digest().as_ref();
            match Document::parse(digest, &client.document("manifests", digest, Some(descriptor))?)? {
                Document::Manifest(manifest) => Ok((digest.to_owned(), *manifest)),
                Document::Index(_) => Err(document::refused(digest, "it is an index in an index")),
            }
        }
    }
}

//! Images that other tools made: from `docker save` archives, OCI image layouts and registries.
//!
//! ```text
//! docker-archive:PATH[:REPOSITORY:TAG]    docker.rs    manifest.json in a tar archive
//! oci:PATH[:TAG]                          layout.rs    index.json in a directory or a tar archive
//! docker://REGISTRY/REPOSITORY[:TAG]      registry.rs  the distribution API
//!                          \
//!                           Image: a configuration and packed layers, each a part of a file
//!                                   |                    |
//!                           ImageDetails (config.rs)     a root directory (`super::layers`)
//! ```
//!
//! All of it is distrusted: documents are bounded, blobs are compared with the size and the digest that their descriptors
//! have, and layers, unpacked, with the digests in the configuration. What a registry sends is compared before anything
//! reads it; files are compared as they are read, and nothing is registered unless all of them were as promised.

mod archive;
mod blob;
mod config;
mod docker;
mod document;
mod error;
mod layout;
mod reference;
mod registry;

use std::io::{self, Read};
use std::path::Path;

use oci_spec::image::ImageConfiguration;
use wrenn_core::Bytes;
use wrenn_core::image::{Digest, ImageDetails};

use super::layers::{Limits, Unpacker};
use crate::progress::Step;
use archive::Files;
use blob::{Part, Verified};

pub(crate) use error::ImportError;
pub(crate) use reference::ImageSource;
pub(crate) use registry::Access;

/// No image has more layers: container runtimes stop at 127.
const MOST_LAYERS: usize = 512;

/// An image as its source has it, found but not unpacked.
#[derive(Debug)]
struct Image {
    /// For people: where exactly it came from.
    source: String,
    config: ImageConfiguration,
    layers: Vec<Layer>,
}

/// A layer, packed.
#[derive(Debug)]
struct Layer {
    /// For people: its digest, or its name in an archive.
    name: String,
    content: Part,
    /// The digest of the packed layer, where there is one.
    digest: Option<Digest>,
}

/// Unpacks the image at `source` into the empty directory `root`, and returns what it says about itself.
///
/// `cache` is a directory for what registries send, and `scratch` one for what is needed meanwhile.
///
/// # Errors
/// [`ImportError`]; `root` then holds a part of the image.
pub(crate) fn import(
    source: &ImageSource,
    access: &Access,
    cache: &Path,
    scratch: &Path,
    root: &Path,
) -> Result<ImageDetails, ImportError> {
    let limits = Limits::default();
    let image = match source {
        ImageSource::DockerArchive { path, name } => {
            docker::open(&Files::in_archive(path, scratch, limits.bytes)?, name.as_deref())?
        }
        ImageSource::OciLayout { path, name } if path.is_dir() => {
            layout::open(&Files::in_dir(path), name.as_deref())?
        }
        ImageSource::OciLayout { path, name } => {
            layout::open(&Files::in_archive(path, scratch, limits.bytes)?, name.as_deref())?
        }
        ImageSource::Registry(reference) => registry::pull(reference, access, cache, limits.bytes)?,
    };
    unpack(&image, limits, root)?;
    Ok(config::details(&image))
}

fn unpack(image: &Image, limits: Limits, root: &Path) -> Result<(), ImportError> {
    let digests = image.config.rootfs().diff_ids();
    if digests.len() != image.layers.len() || digests.len() > MOST_LAYERS {
        return Err(ImportError::LayerCount { listed: image.layers.len(), configured: digests.len() });
    }
    let mut unpacker = Unpacker::new(root, limits).map_err(ImportError::io("open", root))?;
    for (number, (layer, digest)) in image.layers.iter().zip(digests).enumerate() {
        let what = format!("unpacking layer {} of {}", number + 1, digests.len());
        let step = Step::of_bytes(what, layer.content.length());
        unpack_layer(&mut unpacker, layer, &document::digest_of(digest)?, &step)?;
        step.done(&Bytes(layer.content.length()).to_string());
    }
    let step = Step::begin("setting the attributes of directories");
    let unpacked = unpacker.finish()?;
    let left_out = match unpacked.left_out {
        0 => String::new(),
        count => format!(", {count} device nodes or attributes left out"),
    };
    step.done(&format!("{} entries{left_out}", unpacked.entries));
    Ok(())
}

fn unpack_layer(
    unpacker: &mut Unpacker,
    layer: &Layer,
    plain_digest: &Digest,
    step: &Step,
) -> Result<(), ImportError> {
    let read = |source| ImportError::Layer { layer: layer.name.clone(), source };
    let mut packed = Verified::new(layer.content.reader());
    let mut watched = Watched { inner: &mut packed, step };
    let mut plain = Verified::new(blob::decompress(&mut watched).map_err(read)?);
    unpacker.apply(&layer.name, &mut plain)?;
    plain.finish(&format!("the content of layer {}", layer.name), plain_digest)?;
    if let Some(digest) = &layer.digest {
        // A decompressor need not have read everything.
        io::copy(&mut packed, &mut io::sink()).map_err(read)?;
        packed.finish(&format!("layer {}", layer.name), digest)?;
    }
    Ok(())
}

/// Shows how far a stream has been read.
struct Watched<'a, R> {
    inner: &'a mut R,
    step: &'a Step,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.step.advance(length as u64);
        Ok(length)
    }
}

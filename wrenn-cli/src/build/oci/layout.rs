//! OCI image layouts: `index.json` names manifests, which name blobs, all by their digests. Format: the OCI image
//! specification, "Image Layout Specification".

use oci_spec::image::{Descriptor, ImageIndex};
use wrenn_core::image::Digest;

use super::archive::Files;
use super::document::{self, Document};
use super::{Image, ImportError, Layer, blob};

/// The name of an image in a layout's index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Indexes in indexes are followed so far.
const DEEPEST: usize = 4;

/// The image `name`, or the only one, of a layout.
///
/// # Errors
/// [`ImportError`]; [`ImportError::Ambiguous`] where there are several and no name.
pub(super) fn open(files: &Files, name: Option<&str>) -> Result<Image, ImportError> {
    // Says no more than that this is a layout.
    files.read("oci-layout")?;
    let index: ImageIndex = document::parse("index.json", &files.read("index.json")?)?;
    let mut descriptor = choose(files, &index, name)?.clone();
    for _ in 0..DEEPEST {
        let what = descriptor.digest().to_string();
        match Document::parse(&what, &read(files, &descriptor)?)? {
            Document::Index(index) => descriptor = document::for_this_machine(&what, &index)?.clone(),
            Document::Manifest(manifest) => {
                let config = manifest.config();
                let config = document::configuration(config.digest().as_ref(), &read(files, config)?)?;
                let layers = manifest.layers().iter().map(|layer| find(files, layer));
                let name = name.map(|name| format!(":{name}")).unwrap_or_default();
                return Ok(Image {
                    source: format!("oci {}{name} ({what})", files.path().display()),
                    layers: layers.collect::<Result<_, _>>()?,
                    config,
                });
            }
        }
    }
    Err(document::refused(descriptor.digest().as_ref(), "it lies behind too many indexes"))
}

fn choose<'a>(
    files: &Files,
    index: &'a ImageIndex,
    name: Option<&str>,
) -> Result<&'a Descriptor, ImportError> {
    let all = index.manifests();
    let name_of = |descriptor: &'a Descriptor| descriptor.annotations().as_ref()?.get(REF_NAME);
    let names = || all.iter().filter_map(name_of).cloned().collect::<Vec<_>>().join(", ");
    let path = files.path().to_owned();
    match (&all[..], name) {
        ([], _) => Err(files.not_an_image("it has no images")),
        (_, Some(name)) => all
            .iter()
            .find(|found| name_of(found).is_some_and(|found| found == name))
            .ok_or_else(|| ImportError::NoSuchImage { path, name: name.to_owned(), names: names() }),
        ([only], None) => Ok(only),
        // One image for several kinds of machines, or several images.
        (_, None) if names().is_empty() => document::for_this_machine("index.json", index),
        (_, None) => Err(ImportError::Ambiguous { path, names: names() }),
    }
}

/// A blob that is a document, compared with its digest.
fn read(files: &Files, descriptor: &Descriptor) -> Result<Vec<u8>, ImportError> {
    let digest = document::descriptor_digest(descriptor)?;
    let text = files.read(&file_of(&digest))?;
    document::check_size(descriptor.digest().as_ref(), descriptor.size(), text.len() as u64)?;
    blob::check(descriptor.digest().as_ref(), &text, &digest)?;
    Ok(text)
}

/// A blob of the promised size; its content is compared when it is read.
fn find(files: &Files, descriptor: &Descriptor) -> Result<Layer, ImportError> {
    let digest = document::descriptor_digest(descriptor)?;
    let name = descriptor.digest().to_string();
    let content = files.open(&file_of(&digest))?;
    document::check_size(&name, descriptor.size(), content.length())?;
    Ok(Layer { name, content, digest: Some(digest) })
}

fn file_of(digest: &Digest) -> String {
    format!("blobs/sha256/{digest}")
}

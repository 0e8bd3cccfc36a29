//! The archives that `docker save` writes: a tar archive with a `manifest.json`, which names the configuration and the
//! layers of each image. Format: moby's `image/spec/spec.md`, "Combined Image JSON + Filesystem Changeset Format".

use serde::Deserialize;
use wrenn_core::image::Digest;

use super::archive::Files;
use super::{Image, ImportError, Layer, blob, document};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The image `name`, or the only one, of an archive.
///
/// # Errors
/// [`ImportError`]; [`ImportError::Ambiguous`] where there are several and no name.
pub(super) fn open(files: &Files, name: Option<&str>) -> Result<Image, ImportError> {
    let saved: Vec<Saved> = document::parse("manifest.json", &files.read("manifest.json")?)?;
    let saved = choose(files, &saved, name)?;
    let text = files.read(&saved.config)?;
    // The file's name is the digest, in one of several notations. Without one, nothing was promised.
    if let Some(digest) = digest_in(&saved.config) {
        blob::check(&saved.config, &text, &digest)?;
    }
    let config = document::configuration(&saved.config, &text)?;
    // What layers hold is compared with the digests in the configuration.
    let layers = saved
        .layers
        .iter()
        .map(|name| Ok(Layer { name: name.clone(), content: files.open(name)?, digest: None }));
    let tags = saved.repo_tags.as_deref().unwrap_or_default().join(", ");
    let tags = if tags.is_empty() { tags } else { format!(" ({tags})") };
    Ok(Image {
        source: format!("docker-archive {}{tags}", files.path().display()),
        layers: layers.collect::<Result<_, ImportError>>()?,
        config,
    })
}

fn choose<'a>(files: &Files, saved: &'a [Saved], name: Option<&str>) -> Result<&'a Saved, ImportError> {
    let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
    let names = || saved.iter().flat_map(tags).collect::<Vec<_>>().join(", ");
    let path = files.path().to_owned();
    match (saved, name) {
        ([], _) => Err(files.not_an_image("it has no images")),
        (_, Some(name)) => saved
            .iter()
            .find(|saved| tags(saved).iter().any(|tag| tag == name))
            .ok_or_else(|| ImportError::NoSuchImage { path, name: name.to_owned(), names: names() }),
        ([only], None) => Ok(only),
        (_, None) => Err(ImportError::Ambiguous { path, names: names() }),
    }
}

/// The digest in `HEX.json`, `sha256:HEX` and `blobs/sha256/HEX`.
fn digest_in(name: &str) -> Option<Digest> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let hex = file.strip_suffix(".json").unwrap_or(file);
    Digest::try_from(hex.strip_prefix("sha256:").unwrap_or(hex).to_owned()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_a_digest_is_known_as_one() {
        let hex = "ab".repeat(32);
        for name in [format!("{hex}.json"), format!("sha256:{hex}"), format!("blobs/sha256/{hex}")] {
            assert_eq!(digest_in(&name).unwrap().as_str(), hex);
        }
        assert!(digest_in("config.json").is_none());
    }
}

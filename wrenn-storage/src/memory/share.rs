//! Layers in several directories at once, as hard links: a template's, and those of every sandbox made from it.
//!
//! A layer's space is free again when the last directory has removed it, and no directory needs to know of another.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::error::MemoryError;
use super::image::MemoryImage;
use super::layer::Layer;
use super::layers::{LayerDir, LayerId};
use super::reader::Content;
use crate::durable;

pub(super) fn link_into(image: &MemoryImage, to: &LayerDir) -> Result<MemoryImage, MemoryError> {
    let from = image.layer_dir();
    for layer in image.layers() {
        let id = layer.record().id;
        // As when a layer is made, it gets its name after its checksums.
        link(id, &from.sums_path(id), &to.sums_path(id), (from, to))?;
        link(id, &from.layer_path(id), &to.layer_path(id), (from, to))?;
    }
    durable::sync_dir(to.path()).map_err(MemoryError::io("sync the layer directory", to.path()))?;
    let layers = image.layers().iter().map(|layer| Layer::open(*layer.record(), to).map(Arc::new));
    let content = Content {
        layers: layers.collect::<Result<_, _>>()?,
        map: image.map().clone(),
        flat: image.is_flat(),
    };
    Ok(MemoryImage::new(to.clone(), content))
}

/// Links one of a layer's files; that the very same file is there already is fine.
fn link(
    layer: LayerId,
    old: &Path,
    new: &Path,
    (from, to): (&LayerDir, &LayerDir),
) -> Result<(), MemoryError> {
    match durable::hard_link(old, new) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_same(old, new) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            Err(MemoryError::LayerTaken { layer, path: new.to_owned() })
        }
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            Err(MemoryError::DirectoriesApart { from: from.path().to_owned(), to: to.path().to_owned() })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(old).is_err() => {
            Err(MemoryError::MissingLayer { layer, path: old.to_owned() })
        }
        Err(e) => Err(MemoryError::io("link the layer file", new)(e)),
    }
}

fn is_same(a: &Path, b: &Path) -> bool {
    let inode = |path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((inode(a), inode(b)), (Ok(a), Ok(b)) if a == b)
}

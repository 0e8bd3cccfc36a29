//! The copy backend: a clone of the image is the disk.

use std::path::PathBuf;

use super::cow::{Geometry, Source, cow_exists, create_cow};
use super::flatten::Flattening;
use super::{DiskError, DiskSpec, clone};

pub(super) fn attach(spec: &DiskSpec<'_>, geometry: Geometry) -> Result<PathBuf, DiskError> {
    if !cow_exists(spec.cow, geometry.disk)? {
        let image = std::fs::File::open(spec.image).map_err(DiskError::io("open image", spec.image))?;
        create_cow(spec.cow, |file| {
            let kind = clone::clone_into(&image, file)?;
            tracing::debug!(?kind, image = %spec.image.display(), "image cloned");
            file.set_len(geometry.disk)
        })?;
    }
    Ok(spec.cow.to_owned())
}

/// Gives `flattening` the disk: it is all in the cow file.
pub(super) fn flatten(
    spec: &DiskSpec<'_>,
    geometry: Geometry,
    flattening: &mut Flattening<'_>,
) -> Result<(), DiskError> {
    let cow = Source::open_cow(spec.cow, geometry.disk)?;
    flattening.take(&cow, 0..geometry.disk, 0)
}

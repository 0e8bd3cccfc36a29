//! Layers that several directories share.

use std::fs;
use std::os::unix::fs::MetadataExt;

use wrenn_base::Bytes;
use wrenn_storage::{LayerDir, MemoryError, MemoryImage};

use super::model::{Guest, PAGE, Place, Write, staged};
use super::mount::{Mount, or_skip};

/// A template's image, of a full layer and a diff.
fn template(place: &Place) -> (Guest, MemoryImage) {
    let mut guest = Guest::new(300);
    for page in 10..200 {
        guest.apply(page, Write::Fill(page as u8));
    }
    let full = guest.put_full(&place.layers, 100, |_| false).image;
    let image = place.put_diff(&full, &mut guest, &[(20, Write::Zero), (250, Write::Fill(7))]).image;
    image.save(&place.path("memory")).unwrap();
    (guest, image)
}

#[test]
fn a_sandbox_outlives_its_template() {
    let place = Place::new();
    let (guest, image) = template(&place);
    let layers = LayerDir::open(place.path("sandbox")).unwrap();
    let linked = image.link_into(&layers).unwrap();
    linked.save(&place.path("sandbox-memory")).unwrap();
    assert_eq!(linked.identity(), image.identity());
    assert_eq!(linked.usage().unwrap(), image.usage().unwrap());
    assert_eq!(layers.list().unwrap(), image.layers_in_use());
    for id in image.layers_in_use() {
        for (a, b) in [
            (place.layers.layer_path(id), layers.layer_path(id)),
            (place.layers.sums_path(id), layers.sums_path(id)),
        ] {
            assert_eq!(fs::metadata(a).unwrap().ino(), fs::metadata(b).unwrap().ino());
        }
    }
    // The sandbox goes on by itself, and what it lets go is still the template's.
    let mut own = guest.clone();
    let writes: Vec<_> = (0..300).map(|page| (page, Write::Fill(8))).collect();
    let next = place.put_diff(&linked, &mut own, &writes).image;
    assert_eq!(next.layers_in_use().len(), 1);
    assert_eq!(place.layers.list().unwrap(), image.layers_in_use(), "its layers are its own");
    assert_eq!(layers.retain(&next.layers_in_use()).unwrap(), Bytes(0), "the template holds that space");
    guest.check(&MemoryImage::open(&place.path("memory"), &place.layers).unwrap());
    own.check(&next);

    // And the other way around.
    let linked = image.link_into(&layers).unwrap();
    fs::remove_dir_all(place.layers.path()).unwrap();
    let opened = MemoryImage::open(&place.path("sandbox-memory"), &layers).unwrap();
    opened.verify().unwrap();
    guest.check(&opened);
    let (usage, kept) = (linked.usage().unwrap(), next.layers_in_use());
    assert_eq!(
        layers.retain(&kept).unwrap().get() / PAGE as u64,
        (usage.allocated.get() + 2 * 4096) / PAGE as u64
    );
}

#[test]
fn linking_can_be_repeated_and_finished() {
    let place = Place::new();
    let (guest, image) = template(&place);
    let layers = LayerDir::open(place.path("sandbox")).unwrap();
    let (first, last) = (*image.layers_in_use().first().unwrap(), *image.layers_in_use().last().unwrap());
    // As a crash in between would leave it.
    fs::hard_link(place.layers.sums_path(last), layers.sums_path(last)).unwrap();
    for _ in 0..2 {
        guest.check(&image.link_into(&layers).unwrap());
    }
    // Into its own directory it is linked already, and from a linked image it can be linked on.
    guest.check(&image.link_into(&place.layers).unwrap());
    let third = LayerDir::open(place.path("third")).unwrap();
    guest.check(&image.link_into(&layers).unwrap().link_into(&third).unwrap());
    assert_eq!(staged(third.path()), Vec::<String>::new());

    let taken = LayerDir::open(place.path("taken")).unwrap();
    fs::write(taken.layer_path(first), fs::read(layers.layer_path(first)).unwrap()).unwrap();
    let error = image.link_into(&taken).unwrap_err();
    assert!(
        matches!(&error, MemoryError::LayerTaken { layer, path } if *layer == first && *path == taken.layer_path(first))
    );
    taken.retain(&Default::default()).unwrap();
    guest.check(&image.link_into(&taken).unwrap());

    place.layers.retain(&[last].into()).unwrap();
    let error = image.link_into(&LayerDir::open(place.path("late")).unwrap()).unwrap_err();
    assert!(matches!(&error, MemoryError::MissingLayer { layer, .. } if *layer == first), "{error}");
}

#[test]
fn damaged_checksums_are_not_linked_unseen() {
    let place = Place::new();
    let (_, image) = template(&place);
    let id = *image.layers_in_use().first().unwrap();
    let path = place.layers.sums_path(id);
    let mut content = fs::read(&path).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(&path, content).unwrap();
    let layers = LayerDir::open(place.path("sandbox")).unwrap();
    assert!(matches!(image.link_into(&layers), Err(MemoryError::Sums { layer, .. }) if layer == id));
}

#[test]
fn other_file_systems_cannot_share() {
    let place = Place::new();
    let (_, image) = template(&place);
    let Some(mount) = or_skip(Mount::tmpfs("size=16m")) else { return };
    let layers = LayerDir::open(mount.dir.join("layers")).unwrap();
    match image.link_into(&layers).unwrap_err() {
        MemoryError::DirectoriesApart { from, to } => {
            assert_eq!((&*from, &*to), (place.layers.path(), layers.path()))
        }
        other => panic!("{other}"),
    }
    assert!(layers.list().unwrap().is_empty());
}

//! Chains of layers that become one.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use wrenn_base::Bytes;
use wrenn_storage::{MemoryError, MemoryImage};

use super::model::{Guest, PAGE, Place, Write, staged};

/// A guest of 1,200 pages after a full image and three diffs.
fn chain(place: &Place) -> (Guest, MemoryImage) {
    let mut guest = Guest::new(1200);
    for page in 10..900 {
        guest.apply(page, Write::Fill(page as u8));
    }
    let mut image = guest.put_full(&place.layers, 100, |_| false).image;
    for seed in 1..4 {
        let zeros = (0..1200).step_by(seed * 13).map(|page| (page, Write::Zero));
        let data = (1..1200).step_by(seed * 7).map(|page| (page, Write::Fill(seed as u8)));
        let writes: Vec<_> = zeros.chain(data).collect();
        image = place.put_diff(&image, &mut guest, &writes).image;
    }
    // Erased at length, which the chain still has on disk.
    let erased: Vec<_> = (400..800).map(|page| (page, Write::Zero)).collect();
    image = place.put_diff(&image, &mut guest, &erased).image;
    (guest, image)
}

fn go_on(_: Bytes) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn a_chain_becomes_one_flat_layer_while_the_old_image_serves() {
    let place = Place::new();
    let (guest, image) = chain(&place);
    image.save(&place.path("memory")).unwrap();
    let (before, data) = (image.usage().unwrap(), image.usage().unwrap().data);
    assert_eq!(before.layers, 4);
    let mut told = Vec::new();
    let merged = image.compact(|copied| {
        told.push(copied.get());
        guest.check(&image);
        ControlFlow::Continue(())
    });
    let merged = merged.unwrap();
    assert_eq!(told.iter().sum::<u64>(), data.get());
    assert!(told.iter().all(|copied| (1..=1 << 20).contains(copied)), "{told:?}");
    assert_eq!(merged.data, data);
    guest.check(&merged.image);
    merged.image.verify().unwrap();
    let usage = merged.image.usage().unwrap();
    assert_eq!((usage.layers, usage.allocated), (1, merged.written));
    assert!(usage.allocated < before.allocated && usage.extents < before.extents);
    let flat = merged.image.flat_layer().unwrap();
    assert!(fs::read(flat).unwrap() == guest.0);

    // Both are there until the new one is saved and the rest let go.
    let of_both: BTreeSet<_> = image.layers_in_use().union(&merged.image.layers_in_use()).copied().collect();
    assert_eq!(place.layers.list().unwrap(), of_both);
    guest.check(&MemoryImage::open(&place.path("memory"), &place.layers).unwrap());
    merged.image.save(&place.path("memory")).unwrap();
    assert!(place.layers.retain(&merged.image.layers_in_use()).unwrap() >= before.allocated);
    let opened = MemoryImage::open(&place.path("memory"), &place.layers).unwrap();
    guest.check(&opened);
    assert_eq!(opened.identity(), merged.image.identity());
}

#[test]
fn what_is_flat_already_is_not_copied() {
    let place = Place::new();
    let guest = Guest(vec![5; 8 * PAGE]);
    let flat = guest.put_full(&place.layers, 8, |_| false).image;
    let same = flat.compact(|_| ControlFlow::Break(())).unwrap();
    assert_eq!((same.image.identity(), same.written), (flat.identity(), Bytes(0)));
    assert_eq!(place.layers.list().unwrap(), flat.layers_in_use());
    let empty = Guest::new(8);
    let image = empty.put_full(&place.layers, 8, |_| false).image;
    empty.check(&image.compact(go_on).unwrap().image);
}

#[test]
fn zeros_that_a_layer_holds_become_holes() {
    let place = Place::new();
    let mut guest = Guest::new(600);
    // Short runs of zeros stay data in a dump's layer; the diff makes the image a chain.
    for page in (0..600).step_by(4) {
        guest.apply(page, Write::Fill(1));
    }
    guest.dump_full(&place.path("dump"), |_| false);
    let full = MemoryImage::import_full(&place.path("dump"), guest.size(), &place.layers).unwrap();
    assert!(full.written.get() >= 600 << 12);
    let image = place.put_diff(&full.image, &mut guest, &[(1, Write::LastByte(3))]).image;
    let merged = image.compact(go_on).unwrap();
    assert!(merged.written.get() < 160 << 12, "{}", merged.written);
    guest.check(&merged.image);
}

#[test]
fn a_cancelled_merge_leaves_nothing() {
    let place = Place::new();
    let (guest, image) = chain(&place);
    for after in 0..3 {
        let mut pieces = 0;
        let stop = |_| {
            pieces += 1;
            if pieces > after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        assert!(matches!(image.compact(stop), Err(MemoryError::Cancelled)));
        assert_eq!(pieces, after + 1);
        assert_eq!(staged(place.layers.path()), Vec::<String>::new());
        assert_eq!(place.layers.list().unwrap(), image.layers_in_use());
    }
    guest.check(&image);
}

#[test]
fn a_merge_vouches_for_nothing_that_it_did_not_check() {
    let place = Place::new();
    let (guest, image) = chain(&place);
    // Every block was found good once; then the storage changes one.
    guest.check(&image);
    let layer = image
        .layers_in_use()
        .into_iter()
        .max_by_key(|id| fs::metadata(place.layers.layer_path(*id)).unwrap().len());
    let layer = layer.unwrap();
    let file = OpenOptions::new().read(true).write(true).open(place.layers.layer_path(layer)).unwrap();
    let (mut good, offset) = ([0], 890 * PAGE as u64 + 1);
    file.read_exact_at(&mut good, offset).unwrap();
    file.write_all_at(&[!good[0]], offset).unwrap();
    let error = image.compact(go_on).unwrap_err();
    assert!(matches!(error, MemoryError::Corrupt { layer: l, block: 55 } if l == layer), "{error}");
    assert_eq!(place.layers.list().unwrap(), image.layers_in_use());
    assert_eq!(staged(place.layers.path()), Vec::<String>::new());
    file.write_all_at(&good, offset).unwrap();
    guest.check(&image.compact(go_on).unwrap().image);
}

#[test]
fn layers_that_were_let_go_can_still_be_merged_by_who_has_them_open() {
    let place = Place::new();
    let (guest, image) = chain(&place);
    place.layers.retain(&BTreeSet::new()).unwrap();
    guest.check(&image.compact(go_on).unwrap().image);
}

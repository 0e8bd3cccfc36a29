//! Random generations against the model.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use wrenn_storage::{MemoryError, MemoryImage};

use super::model::{Guest, PAGE, Place, Write};

const PAGES: usize = 100;

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        3 => any::<u8>().prop_map(Write::Fill),
        1 => any::<u8>().prop_map(Write::LastByte),
        2 => Just(Write::Zero),
        1 => Just(Write::Rewrite),
    ]
}

/// Writes to runs of pages, so that extents longer than a page come up too.
fn generation() -> impl Strategy<Value = Vec<(usize, Write)>> {
    vec((0..PAGES, 1..24usize, write()), 0..12).prop_map(|runs| {
        let pages = |(first, len, write)| {
            (first..PAGES.min(first + len)).map(move |page| (page, write)).collect::<Vec<_>>()
        };
        runs.into_iter().flat_map(pages).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_generation_reads_back_as_the_model(
        start in generation(),
        holes in any::<bool>(),
        generations in vec(generation(), 1..6),
        reads in vec((0..PAGES * PAGE, 0..5 * PAGE), 8),
    ) {
        let place = Place::new();
        let mut guest = Guest::new(PAGES);
        for (page, write) in start {
            guest.apply(page, write);
        }
        guest.dump_full(&place.path("dump"), |_| holes);
        let mut image = MemoryImage::import_full(&place.path("dump"), guest.size(), &place.layers).unwrap().image;
        guest.check(&image);
        for writes in generations {
            let before = guest.clone();
            let next = place.diff(&image, &mut guest, &writes).image;
            guest.check(&next);
            before.check(&image);
            image = next;
        }
        image.save(&place.path("memory")).unwrap();
        // Only now may what earlier generations alone used go.
        place.layers.retain(&image.layers_in_use()).unwrap();
        prop_assert_eq!(place.layers.list().unwrap(), image.layers_in_use());
        let reopened = MemoryImage::open(&place.path("memory"), &place.layers).unwrap();
        guest.check(&reopened);
        reopened.verify().unwrap();
        for (offset, len) in reads {
            let mut buf = vec![0; len.min(PAGES * PAGE - offset)];
            reopened.reader().read(offset as u64, &mut buf).unwrap();
            prop_assert!(buf == guest.0[offset..offset + buf.len()]);
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_an_error_or_without_effect(
        start in generation(),
        writes in generation(),
        flips in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..8u32), 12),
    ) {
        let place = Place::new();
        let mut guest = Guest::new(PAGES);
        for (page, write) in start {
            guest.apply(page, write);
        }
        let full = place.full(&guest).image;
        let image = place.diff(&full, &mut guest, &writes).image;
        image.save(&place.path("memory")).unwrap();
        let mut files = vec![place.path("memory")];
        let layers: BTreeSet<_> = image.layers_in_use();
        files.extend(layers.iter().flat_map(|id| [place.layers.layer_path(*id), place.layers.sums_path(*id)]));
        for (file, byte, bit) in flips {
            let file = file.get(&files);
            let mut content = std::fs::read(file).unwrap();
            let good = content.clone();
            content[byte.index(good.len())] ^= 1 << bit;
            replace(file, &content);
            let opened = MemoryImage::open(&place.path("memory"), &place.layers);
            if file.extension().is_some_and(|extension| extension == "layer") {
                let opened = opened.unwrap();
                prop_assert!(is_corrupt(&opened.verify().unwrap_err()));
                let mut read = vec![0; guest.0.len()];
                match opened.reader().read(0, &mut read) {
                    Ok(()) => prop_assert!(read == guest.0),
                    Err(e) => prop_assert!(is_corrupt(&e)),
                }
            } else {
                prop_assert!(opened.is_err());
            }
            replace(file, &good);
        }
        guest.check(&MemoryImage::open(&place.path("memory"), &place.layers).unwrap());
    }
}

fn is_corrupt(error: &MemoryError) -> bool {
    matches!(error, MemoryError::Corrupt { .. })
}

/// Replaces a file's content though it is read-only.
fn replace(file: &std::path::Path, content: &[u8]) {
    std::fs::remove_file(file).unwrap();
    std::fs::write(file, content).unwrap();
}

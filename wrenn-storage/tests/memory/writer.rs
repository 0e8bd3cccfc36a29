//! Images that are built from pages, without a dump.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use wrenn_base::Bytes;
use wrenn_storage::{MemoryError, MemoryImage, RunKind};

use super::model::{Guest, PAGE, Place, Write, staged};

fn bytes(pages: usize) -> Bytes {
    Bytes((pages * PAGE) as u64)
}

/// 2,000 pages: data at the front, in single pages, and none at the end.
fn guest() -> Guest {
    let mut guest = Guest::new(2000);
    for page in (0..700).chain((800..1000).step_by(2)) {
        guest.apply(page, Write::Fill(page as u8));
    }
    guest
}

#[test]
fn a_full_image_is_a_sparse_layer_that_can_be_mapped() {
    let place = Place::new();
    let guest = guest();
    // Pieces of more than the writer's own, of a page, and of a size that divides nothing.
    for (step, left_out) in [(2000, false), (1, false), (1, true), (77, true), (300, false)] {
        let written = guest.put_full(&place.layers, step, |_| left_out);
        assert_eq!(written.data, bytes(800));
        assert!(left_out || written.zeros == bytes(1200));
        let layer = written.image.flat_layer().unwrap();
        let found = fs::metadata(&layer).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (guest.size().get(), 0o400));
        assert_eq!(written.written.get(), found.blocks() * 512);
        assert!(written.written <= bytes(810), "zero pages are holes: {}", written.written);
        guest.check(&written.image);
        written.image.verify().unwrap();
        written.image.save(&place.path("memory")).unwrap();
        let opened = MemoryImage::open(&place.path("memory"), &place.layers).unwrap();
        assert_eq!(opened.flat_layer(), Some(layer));
        opened.verify().unwrap();
        guest.check(&opened);
    }
}

#[test]
fn what_is_imported_and_what_is_written_is_the_same_image() {
    let place = Place::new();
    let mut guest = guest();
    let (imported, written) = (place.full(&guest).image, guest.put_full(&place.layers, 64, |_| false).image);
    let sums = |image: &MemoryImage| {
        let ids = image.layers_in_use();
        ids.iter().map(|id| fs::read(place.layers.sums_path(*id)).unwrap()).collect::<BTreeSet<_>>()
    };
    assert_eq!(sums(&imported), sums(&written));
    assert_eq!(imported.usage().unwrap().extents, written.usage().unwrap().extents);
    let writes = [(3, Write::Fill(99)), (4, Write::Zero), (900, Write::Zero), (1999, Write::LastByte(1))];
    let imported = place.diff(&imported, &mut guest, &writes);
    let written = place.put_diff(&written, &mut guest, &writes);
    assert_eq!((imported.data, imported.zeros), (bytes(2), bytes(2)));
    assert_eq!((written.data, written.zeros), (bytes(2), bytes(2)));
    assert_eq!(sums(&imported.image), sums(&written.image));
    guest.check(&imported.image);
    guest.check(&written.image);
}

#[test]
fn a_zero_page_that_the_guest_wrote_is_zero_and_one_that_was_zero_is_nothing() {
    let place = Place::new();
    let mut guest = Guest::new(16);
    for page in 4..8 {
        guest.apply(page, Write::Fill(1));
    }
    let full = guest.put_full(&place.layers, 16, |_| false).image;
    // Zeros over data and over zeros alike, as one run.
    let writes: Vec<_> = (2..6).map(|page| (page, Write::Zero)).collect();
    let zeroed = place.put_diff(&full, &mut guest, &writes);
    assert_eq!((zeroed.data, zeroed.zeros, zeroed.written), (Bytes(0), bytes(2), Bytes(0)));
    assert_eq!(zeroed.image.layers_in_use(), full.layers_in_use(), "zeros need no layer");
    assert_eq!(zeroed.image.flat_layer(), None, "the file still holds what the guest erased");
    assert_eq!(zeroed.image.reader().lookup(4 << 12, u64::MAX).kind, RunKind::Zero);
    assert_eq!(zeroed.image.usage().unwrap().extents, 3);
    guest.check(&zeroed.image);

    let untouched: Vec<_> = (0..3).map(|page| (page, Write::Zero)).collect();
    let same = place.put_diff(&full, &mut guest.clone(), &untouched);
    assert_eq!((same.zeros, same.image.flat_layer()), (Bytes(0), full.flat_layer()), "nothing changed");
    assert_eq!(same.image.identity(), full.identity());
    let none = full.write_diff().unwrap().finish().unwrap();
    assert_eq!(none.image.identity(), full.identity());

    // What is put is stored, compared with nothing, packed back to back.
    let rewritten = place.put_diff(&zeroed.image, &mut guest, &[(6, Write::Rewrite), (7, Write::Rewrite)]);
    assert_eq!(rewritten.data, bytes(2));
    assert_eq!(rewritten.image.layers_in_use().len(), 1, "the layer below no longer shows");
    assert_eq!(rewritten.image.usage().unwrap().allocated, rewritten.written);
    guest.check(&rewritten.image);
}

#[test]
fn an_all_zero_guest_needs_no_layer() {
    let place = Place::new();
    let guest = Guest::new(10);
    for written in [guest.put_full(&place.layers, 3, |_| false), guest.put_full(&place.layers, 3, |_| true)] {
        assert!(written.image.layers_in_use().is_empty());
        guest.check(&written.image);
    }
    assert!(place.layers.list().unwrap().is_empty());
}

#[test]
fn impossible_pages_are_refused_and_break_the_writer() {
    let place = Place::new();
    let size = bytes(8);
    for size in [Bytes(0), Bytes(4097), Bytes(u64::MAX)] {
        let refused = MemoryImage::write_full(size, &place.layers);
        assert!(matches!(refused, Err(MemoryError::GuestSize { size: s }) if s == size));
    }
    let page = [1; PAGE];
    let full = || {
        let mut writer = MemoryImage::write_full(size, &place.layers).unwrap();
        writer.put(4096, &page).unwrap();
        writer.put(8192, &[]).unwrap();
        writer
    };
    let base = full().finish().unwrap().image;
    type Expected = fn(&MemoryError) -> bool;
    let cases: [(u64, &[u8], Expected); 7] = [
        (8193, &page, |e| matches!(e, MemoryError::PartPages { offset: 8193, len: 4096 })),
        (8192, &page[1..], |e| matches!(e, MemoryError::PartPages { len: 4095, .. })),
        (4096, &page, |e| matches!(e, MemoryError::PageOrder { offset: 4096, next: 8192 })),
        (0, &page, |e| matches!(e, MemoryError::PageOrder { offset: 0, .. })),
        (8 * 4096, &page, |e| matches!(e, MemoryError::OutOfRange { .. })),
        (u64::MAX - 4095, &page, |e| matches!(e, MemoryError::OutOfRange { .. })),
        (7 * 4096, &[1; 2 * PAGE], |e| matches!(e, MemoryError::OutOfRange { .. })),
    ];
    let kept = place.layers.list().unwrap();
    for (offset, pages, expected) in cases {
        for mut writer in [full(), {
            let mut writer = base.write_diff().unwrap();
            writer.put(4096, &page).unwrap();
            writer.put(8192, &[]).unwrap();
            writer
        }] {
            let error = writer.put(offset, pages).unwrap_err();
            assert!(expected(&error), "{error}");
            assert!(matches!(writer.put(7 * 4096, &page), Err(MemoryError::BrokenWriter)));
            assert!(matches!(writer.finish(), Err(MemoryError::BrokenWriter)));
        }
    }
    assert_eq!(place.layers.list().unwrap(), kept);
    assert_eq!(staged(place.layers.path()), Vec::<String>::new());
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let place = Place::new();
    let guest = guest();
    let base = guest.put_full(&place.layers, 2000, |_| false).image;
    for mut writer in
        [base.write_diff().unwrap(), MemoryImage::write_full(guest.size(), &place.layers).unwrap()]
    {
        writer.put(0, &guest.0[..700 * PAGE]).unwrap();
        assert_eq!(staged(place.layers.path()).len(), 1);
        drop(writer);
        assert_eq!(staged(place.layers.path()), Vec::<String>::new());
    }
    assert_eq!(place.layers.list().unwrap(), base.layers_in_use());
    fs::remove_dir_all(place.layers.path()).unwrap();
    let mut writer = MemoryImage::write_full(guest.size(), &place.layers).unwrap();
    let error = writer.put(0, &guest.0).unwrap_err();
    assert!(
        matches!(&error, MemoryError::Io { path, .. } if path.starts_with(place.layers.path())),
        "{error}"
    );
    let mut page = [0; PAGE];
    base.reader().read(4096, &mut page).unwrap();
    assert_eq!(page, guest.page(1), "who has it open can still read");
}

#[test]
fn identities_tell_images_apart() {
    let place = Place::new();
    let mut guest = guest();
    let image = guest.put_full(&place.layers, 2000, |_| false).image;
    let other = guest.put_full(&place.layers, 2000, |_| false).image;
    assert_ne!(image.identity(), other.identity(), "equal content in another layer");
    assert_eq!(image.identity(), image.clone().identity());
    image.save(&place.path("memory")).unwrap();
    let opened = MemoryImage::open(&place.path("memory"), &place.layers).unwrap();
    assert_eq!(image.identity(), opened.identity());
    let diff = place.put_diff(&image, &mut guest, &[(0, Write::Zero)]).image;
    assert_ne!(image.identity(), diff.identity());
    let sizes = [8, 9].map(|pages| Guest::new(pages).put_full(&place.layers, 1, |_| true).image.identity());
    assert_ne!(sizes[0], sizes[1]);
    let text = image.identity().to_string();
    assert!(text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()), "{text}");
}

#[test]
fn sixty_generations_stay_searchable() {
    let place = Place::new();
    let mut guest = guest();
    let mut image = guest.put_full(&place.layers, 2000, |_| false).image;
    for generation in 0..60usize {
        let first = generation * 131 % 1900;
        let kind = if generation % 5 == 0 { Write::Zero } else { Write::Fill(generation as u8) };
        let writes: Vec<_> =
            (first..first + 60).chain([(first + 977) % 2000]).map(|page| (page, kind)).collect();
        let before = image.usage().unwrap().extents;
        image = place.put_diff(&image, &mut guest, &writes).image;
        // Each run cuts at most one extent in two and adds itself.
        assert!(image.usage().unwrap().extents <= before + 4, "generation {generation}");
        if generation % 20 == 19 {
            guest.check(&image);
        }
    }
    image.save(&place.path("memory")).unwrap();
    place.layers.retain(&image.layers_in_use()).unwrap();
    let image = MemoryImage::open(&place.path("memory"), &place.layers).unwrap();
    guest.check(&image);
    let everything: Vec<_> = (0..2000).map(|page| (page, Write::Fill(1))).collect();
    let over = place.put_diff(&image, &mut guest.clone(), &everything).image.usage().unwrap();
    assert_eq!((over.extents, over.layers), (1, 1), "what is written as a whole is one run");
    let compact = image.compact(|_| std::ops::ControlFlow::Continue(())).unwrap().image;
    guest.check(&compact);
    let runs = guest.0.chunks(PAGE).map(|page| page.iter().all(|byte| *byte == 0)).collect::<Vec<_>>();
    let runs = runs.chunk_by(|a, b| a == b).count();
    let usage = compact.usage().unwrap();
    assert_eq!((usage.layers, usage.extents), (1, runs), "one extent for each stretch of data and of zeros");
}

//! Each thing that can be wrong with an image's files is its own error, and names the thing.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use wrenn_base::Bytes;
use wrenn_storage::{LayerId, MemoryError, MemoryImage, RunKind};

use super::model::{Guest, PAGE, Place, Write};

const PAGES: usize = 64;

/// A guest with data in every second run of four pages, full and then with a small diff.
fn saved(place: &Place) -> (Guest, MemoryImage) {
    let mut guest = Guest::new(PAGES);
    for page in (0..PAGES).filter(|page| page / 4 % 2 == 0) {
        guest.apply(page, Write::Fill(page as u8));
    }
    let full = place.full(&guest).image;
    let image = place.diff(&full, &mut guest, &[(1, Write::Zero), (7, Write::Fill(9))]).image;
    image.save(&place.path("memory")).unwrap();
    (guest, image)
}

fn open(place: &Place) -> Result<MemoryImage, MemoryError> {
    MemoryImage::open(&place.path("memory"), &place.layers)
}

/// The image's layers, by length: the packed one of the diff, then the full one.
fn by_length(place: &Place, image: &MemoryImage) -> Vec<LayerId> {
    let mut ids: Vec<_> = image.layers_in_use().into_iter().collect();
    ids.sort_by_key(|id| fs::metadata(place.layers.layer_path(*id)).unwrap().len());
    ids
}

#[test]
fn a_cut_or_missing_layer_is_found_when_the_image_is_opened() {
    let place = Place::new();
    let (_, image) = saved(&place);
    for id in image.layers_in_use() {
        let path = place.layers.layer_path(id);
        let length = fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
        match open(&place).unwrap_err() {
            MemoryError::LayerLength { layer, expected, found } => {
                assert_eq!((layer, expected, found), (id, length, length - 1));
            }
            other => panic!("{other}"),
        }
        let aside = place.path("aside");
        fs::rename(&path, &aside).unwrap();
        assert!(
            matches!(open(&place), Err(MemoryError::MissingLayer { layer, path: p }) if layer == id && p == path)
        );
        fs::create_dir(&path).unwrap();
        assert!(matches!(open(&place), Err(MemoryError::MissingLayer { layer, .. }) if layer == id));
        fs::remove_dir(&path).unwrap();
        symlink(&aside, &path).unwrap();
        assert!(open(&place).is_err(), "a link in a layer's place is not followed");
        fs::remove_file(&path).unwrap();
        OpenOptions::new().write(true).open(&aside).unwrap().set_len(length).unwrap();
        let sums = place.layers.sums_path(id);
        fs::rename(&aside, &path).unwrap();
        fs::rename(&sums, &aside).unwrap();
        assert!(matches!(open(&place), Err(MemoryError::MissingLayer { path, .. }) if path == sums));
        fs::write(&sums, &fs::read(&aside).unwrap()[1..]).unwrap();
        assert!(matches!(open(&place), Err(MemoryError::Sums { layer, .. }) if layer == id));
        fs::rename(&aside, &sums).unwrap();
        open(&place).unwrap();
    }
}

#[test]
fn an_altered_byte_is_found_when_its_block_is_read_and_not_before() {
    let place = Place::new();
    let (guest, image) = saved(&place);
    let id = by_length(&place, &image)[1];
    let path = place.layers.layer_path(id);
    // Page 40 has data and is in block 2 of the flat layer.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[guest.page(40)[5] ^ 1], 40 * PAGE as u64 + 5).unwrap();
    let image = open(&place).unwrap();
    let reader = image.reader();
    let mut page = vec![0; PAGE];
    reader.read(0, &mut page).unwrap();
    assert!(page == guest.page(0));
    for offset in [40, 33] {
        let error = reader.read((offset * PAGE) as u64, &mut page).unwrap_err();
        assert!(matches!(error, MemoryError::Corrupt { layer, block: 2 } if layer == id), "{error}");
    }
    assert!(matches!(image.verify(), Err(MemoryError::Corrupt { layer, block: 2 }) if layer == id));
    // A failed check is not remembered as a passed one.
    file.write_all_at(&guest.page(40)[5..6], 40 * PAGE as u64 + 5).unwrap();
    guest.check(&image);
}

#[test]
fn a_layer_that_shrinks_under_a_reader_is_an_error() {
    let place = Place::new();
    let (_, image) = saved(&place);
    let id = by_length(&place, &image)[1];
    OpenOptions::new().write(true).open(place.layers.layer_path(id)).unwrap().set_len(8192).unwrap();
    let error = image.reader().read(0, &mut vec![0; PAGES * PAGE]).unwrap_err();
    assert!(matches!(error, MemoryError::LayerLength { layer, found: 8192, .. } if layer == id), "{error}");
}

#[test]
fn damaged_manifests_are_told_apart() {
    let place = Place::new();
    saved(&place);
    let path = place.path("memory");
    let good = fs::read(&path).unwrap();
    let check = |content: &[u8], expected: fn(&MemoryError) -> bool, says: &str| {
        fs::write(&path, content).unwrap();
        let error = open(&place).unwrap_err();
        assert!(expected(&error), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("memory") && text.contains(says), "{text}");
    };
    check(&good[..good.len() - 3], |e| matches!(e, MemoryError::Truncated { .. }), "cut off");
    check(b"", |e| matches!(e, MemoryError::Truncated { .. }), "cut off");
    check(&[0; 100], |e| matches!(e, MemoryError::Foreign { .. }), "not a memory image");
    let mut newer = good.clone();
    newer[8] = 2;
    check(&newer, |e| matches!(e, MemoryError::NewerVersion { found: 2, supported: 1, .. }), "newer Wrenn");
    let mut altered = good.clone();
    altered[40] ^= 1;
    check(&altered, |e| matches!(e, MemoryError::Altered { .. }), "checksum");
    fs::remove_file(&path).unwrap();
    assert!(matches!(open(&place), Err(MemoryError::Io { path: p, .. }) if p == path));
}

#[test]
fn dumps_that_cannot_be_the_guests_are_refused_and_left_alone() {
    let place = Place::new();
    let (guest, image) = saved(&place);
    let dump = place.path("bad");
    let import = |size: u64| MemoryImage::import_full(&dump, Bytes(size), &place.layers).unwrap_err();
    fs::write(&dump, vec![1; 3 * PAGE]).unwrap();
    for size in [0, 4097, u64::MAX - 4095] {
        assert!(matches!(import(size), MemoryError::GuestSize { size: s } if s == Bytes(size)));
    }
    assert!(matches!(import(4 * 4096), MemoryError::DumpLength { expected: 16384, found: 12288, .. }));
    assert!(matches!(image.import_diff(&dump), Err(MemoryError::DumpLength { .. })));
    assert_eq!(fs::read(&dump).unwrap(), vec![1; 3 * PAGE]);
    fs::remove_file(&dump).unwrap();
    assert!(matches!(import(4096), MemoryError::Io { .. }));
    symlink(place.path("memory"), &dump).unwrap();
    assert!(matches!(import(4096), MemoryError::Io { .. }));
    fs::remove_file(&dump).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &dump, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(import(4096), MemoryError::DumpKind { .. }));
    let elsewhere = Place::below(std::path::Path::new("/dev/shm"));
    guest.dump_full(&elsewhere.path("dump"), |_| true);
    if fs::metadata("/dev/shm").unwrap().dev() == fs::metadata(place.layers.path()).unwrap().dev() {
        eprintln!("SKIP: /dev/shm is where the layers are, so there is no second file system");
        return;
    }
    let refused = MemoryImage::import_full(&elsewhere.path("dump"), guest.size(), &place.layers);
    assert!(matches!(refused, Err(MemoryError::OtherFileSystem { .. })));
    assert!(elsewhere.path("dump").exists());
    assert_eq!(place.layers.list().unwrap(), image.layers_in_use(), "nothing is left behind");
}

#[test]
fn a_diff_over_a_damaged_base_does_not_need_it() {
    let place = Place::new();
    let mut guest = Guest::new(PAGES);
    let fill: Vec<_> = (0..PAGES).map(|page| (page, Write::Fill(page as u8 + 1))).collect();
    for (page, write) in &fill {
        guest.apply(*page, *write);
    }
    let full = place.full(&guest).image;
    let layer = full.flat_layer().unwrap();
    fs::set_permissions(&layer, fs::Permissions::from_mode(0o600)).unwrap();
    OpenOptions::new().write(true).open(&layer).unwrap().write_all_at(&[0], 5 * PAGE as u64).unwrap();
    assert!(full.reader().read(0, &mut [0; PAGE]).is_err());
    let healed = place.diff(&full, &mut guest, &fill);
    assert_eq!(healed.data, Bytes((PAGES * PAGE) as u64));
    guest.check(&healed.image);
}

#[test]
fn zero_pages_take_no_space_and_a_diff_takes_its_data() {
    let place = Place::new();
    let mut guest = Guest::new(1024);
    for page in 100..200 {
        guest.apply(page, Write::Fill(3));
    }
    // The monitor wrote every page, zero or not.
    guest.dump_full(&place.path("dump"), |_| false);
    let full = MemoryImage::import_full(&place.path("dump"), guest.size(), &place.layers).unwrap();
    assert_eq!((full.data, full.zeros), (Bytes(100 << 12), Bytes(924 << 12)));
    assert!(full.written.get() < 120 << 12, "{} on disk", full.written);
    assert!(!place.path("dump").exists(), "a full dump is consumed");
    assert!(full.image.flat_layer().is_some());
    let mode = fs::metadata(full.image.flat_layer().unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o400);

    let none = place.diff(&full.image, &mut guest, &[]);
    assert_eq!((none.data, none.zeros, none.written), (Bytes(0), Bytes(0), Bytes(0)));
    assert_eq!(none.image.flat_layer(), full.image.flat_layer(), "nothing changed");

    let rewritten: Vec<_> =
        (90..200).map(|page| (page, if page < 100 { Write::Zero } else { Write::Fill(3) })).collect();
    let same = place.diff(&full.image, &mut guest, &rewritten);
    assert_eq!(
        (same.data, same.zeros, same.written),
        (Bytes(0), Bytes(0), Bytes(0)),
        "written, but not changed"
    );
    guest.check(&same.image);

    let zeros: Vec<_> = (150..160).map(|page| (page, Write::Zero)).collect();
    let zeroed = place.diff(&full.image, &mut guest, &zeros);
    assert_eq!((zeroed.data, zeroed.zeros), (Bytes(0), Bytes(10 << 12)));
    assert_eq!(zeroed.image.layers_in_use(), full.image.layers_in_use(), "zeros need no layer");
    assert_eq!(zeroed.image.flat_layer(), None, "the file still holds what the guest erased");
    guest.check(&zeroed.image);
    assert_eq!(zeroed.image.reader().lookup(150 << 12, u64::MAX).kind, RunKind::Zero);

    let writes: Vec<_> = (0..600).step_by(2).map(|page| (page, Write::Fill(4))).collect();
    let diff = place.diff(&zeroed.image, &mut guest, &writes);
    assert_eq!(diff.data, Bytes(300 << 12));
    assert!(diff.written.get() >= 300 << 12 && diff.written.get() < 320 << 12, "{}", diff.written);
    guest.check(&diff.image);

    let all: Vec<_> = (0..1024).map(|page| (page, Write::Fill(5))).collect();
    let all = place.diff(&diff.image, &mut guest, &all);
    assert_eq!(all.image.layers_in_use().len(), 1, "layers that no longer show are dropped");
    let usage = all.image.usage().unwrap();
    assert_eq!((usage.data, usage.layers, usage.extents), (guest.size(), 1, 1));
}

#[test]
fn an_all_zero_guest_needs_no_layer() {
    let place = Place::new();
    let guest = Guest::new(10);
    for holes in [true, false] {
        guest.dump_full(&place.path("dump"), |_| holes);
        let image = MemoryImage::import_full(&place.path("dump"), guest.size(), &place.layers).unwrap().image;
        assert!(!place.path("dump").exists() && image.layers_in_use().is_empty());
        image.save(&place.path("memory")).unwrap();
        guest.check(&open(&place).unwrap());
    }
    assert!(place.layers.list().unwrap().is_empty());
}

#[test]
fn readers_answer_at_the_edges() {
    let place = Place::new();
    let (guest, image) = saved(&place);
    let (reader, size) = (image.reader(), guest.size().get());
    assert_eq!(reader.len(), size);
    reader.read(size, &mut []).unwrap();
    for (offset, len) in [(size, 1), (size - 1, 2), (u64::MAX, 1), (0, PAGES * PAGE + 1)] {
        assert!(matches!(reader.read(offset, &mut vec![0; len]), Err(MemoryError::OutOfRange { .. })));
    }
    assert_eq!(reader.lookup(size, 1).len, 0);
    assert_eq!(reader.lookup(0, 1).len, 4096, "at least a page");
    assert_eq!(reader.lookup(1, 1).len, 4095, "at least to the end of the page");
    assert_eq!(
        (reader.lookup(4096, u64::MAX).kind, reader.lookup(4096, u64::MAX).len),
        (RunKind::Zero, 4096)
    );
    assert_eq!(
        (reader.lookup(8192, u64::MAX).kind, reader.lookup(8192, u64::MAX).len),
        (RunKind::Data, 8192)
    );
    // Layers that were collected stay readable for who has them open.
    place.layers.retain(&Default::default()).unwrap();
    guest.check(&image);
    assert!(matches!(open(&place), Err(MemoryError::MissingLayer { .. })));
}

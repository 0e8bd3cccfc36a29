//! Files of format version 1 as they were written when it was made: every later build has to read them.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use wrenn_storage::{LayerDir, MemoryImage};

use super::model::{Guest, Place, Write};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/memory-v1")
}

/// Images of the same history that were made of pages rather than dumps.
fn written() -> PathBuf {
    golden().with_file_name("written-v1")
}

/// The golden image's history; never to be changed.
fn history() -> [Vec<(usize, Write)>; 3] {
    [
        (4..24).map(|page| (page, Write::Fill(1))).collect(),
        vec![(5, Write::Zero), (9, Write::Fill(2)), (10, Write::Fill(2)), (30, Write::LastByte(7))],
        vec![(9, Write::Zero), (11, Write::LastByte(8)), (2, Write::Fill(3))],
    ]
}

fn guest_after(generations: usize) -> Guest {
    let mut guest = Guest::new(40);
    for writes in &history()[..generations] {
        for (page, write) in writes {
            guest.apply(*page, *write);
        }
    }
    guest
}

#[test]
fn images_of_version_1_are_read_and_written_the_same() {
    let layers = LayerDir::open(golden().join("layers")).unwrap();
    let scratch = Place::new();
    for (name, generations, layer_count) in [("full", 1, 1), ("diff", 3, 3)] {
        let path = golden().join(name);
        let image = MemoryImage::open(&path, &layers).unwrap();
        assert_eq!(image.layers_in_use().len(), layer_count);
        assert_eq!(image.flat_layer().is_some(), name == "full");
        image.verify().unwrap();
        guest_after(generations).check(&image);
        image.save(&scratch.path("again")).unwrap();
        let (written, again) = (std::fs::read(&path).unwrap(), std::fs::read(scratch.path("again")).unwrap());
        assert!(written == again, "{name} is written back byte by byte");
    }
}

/// The history's images as they are made of pages: full, after two diffs, and merged.
fn write_history(layers: &LayerDir) -> [(&'static str, MemoryImage); 3] {
    let mut guest = guest_after(1);
    let full = guest.put_full(layers, 16, |_| true).image;
    let mut diff = full.clone();
    for writes in &history()[1..] {
        for (page, write) in writes {
            guest.apply(*page, *write);
        }
        diff = guest.put_diff(&diff, &writes.iter().map(|(page, _)| *page).collect(), 2).image;
    }
    let merged = diff.compact(|_| ControlFlow::Continue(())).unwrap().image;
    [("full", full), ("diff", diff), ("merged", merged)]
}

/// The content of every file of an image's layers.
fn contents(image: &MemoryImage, layers: &LayerDir) -> BTreeSet<Vec<u8>> {
    let ids = image.layers_in_use();
    let paths = ids.iter().flat_map(|id| [layers.layer_path(*id), layers.sums_path(*id)]);
    paths.map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn what_is_written_of_pages_is_what_version_1_is() {
    let (layers, scratch) = (LayerDir::open(written().join("layers")).unwrap(), Place::new());
    for (name, made) in write_history(&scratch.layers) {
        let path = written().join(name);
        let image = MemoryImage::open(&path, &layers).unwrap();
        image.verify().unwrap();
        guest_after(if name == "full" { 1 } else { 3 }).check(&image);
        assert_eq!(image.flat_layer().is_some(), name != "diff");
        assert!(contents(&image, &layers) == contents(&made, &scratch.layers), "the layers of {name}");
        image.save(&scratch.path("again")).unwrap();
        let (golden, again) = (std::fs::read(&path).unwrap(), std::fs::read(scratch.path("again")).unwrap());
        assert!(golden == again, "{name} is written back byte by byte");
        // All but the layers' random ids is the same in the manifest that is made now.
        made.save(&scratch.path("made")).unwrap();
        let made = std::fs::read(scratch.path("made")).unwrap();
        assert_eq!(made.len(), golden.len());
        assert_eq!(made[..32], golden[..32]);
        let extents = 32 + 32 * image.layers_in_use().len();
        assert!(made[extents..made.len() - 4] == golden[extents..golden.len() - 4], "the extents of {name}");
    }
}

/// Writes the golden files that are made of pages anew, for a new version.
#[test]
#[ignore = "writes files that are checked in"]
fn write_golden_files_of_pages() {
    std::fs::create_dir_all(written()).unwrap();
    for (name, image) in write_history(&LayerDir::open(written().join("layers")).unwrap()) {
        image.save(&written().join(name)).unwrap();
    }
}

/// Writes the golden files anew: `cargo test -p wrenn-storage -- --ignored write_golden_files`, for a new
/// version.
#[test]
#[ignore = "writes files that are checked in"]
fn write_golden_files() {
    std::fs::create_dir_all(golden()).unwrap();
    let layers = LayerDir::open(golden().join("layers")).unwrap();
    let mut guest = guest_after(1);
    guest.dump_full(&golden().join("dump"), |_| true);
    let mut image = MemoryImage::import_full(&golden().join("dump"), guest.size(), &layers).unwrap().image;
    image.save(&golden().join("full")).unwrap();
    for (generation, writes) in history()[1..].iter().enumerate() {
        for (page, write) in writes {
            guest.apply(*page, *write);
        }
        assert_eq!(guest, guest_after(generation + 2));
        let dump = golden().join("dump");
        guest.dump_diff(&dump, writes.iter().map(|(page, _)| *page));
        image = image.import_diff(&dump).unwrap().image;
        std::fs::remove_file(&dump).unwrap();
    }
    image.save(&golden().join("diff")).unwrap();
}

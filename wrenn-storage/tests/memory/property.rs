//! Random generations against the model.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use wrenn_storage::{LayerDir, MemoryError, MemoryImage};

use super::model::{Guest, PAGE, Place, Write};

const PAGES: usize = 48;

/// In memory: thousands of cases that each sync a dozen files are too many for a disk.
fn place() -> Place {
    Place::below(Path::new("/dev/shm"))
}

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

/// What happens to an image.
#[derive(Debug, Clone)]
enum Step {
    /// The guest runs, and a diff is written in runs of at most so many pages.
    Write(Vec<(usize, Write)>, usize),
    /// As above, by a diff dump.
    Import(Vec<(usize, Write)>),
    /// Everything is written anew.
    WriteFull(usize),
    /// The layers are merged.
    Compact,
    /// Merging is given up at once.
    CancelCompact,
    /// Another directory takes over; the old one is deleted.
    Link,
    /// Saved and opened by somebody else.
    Reopen,
    /// What is not used goes.
    Retain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (generation(), 1..30usize).prop_map(|(writes, step)| Step::Write(writes, step)),
        2 => generation().prop_map(Step::Import),
        1 => (1..50usize).prop_map(Step::WriteFull),
        1 => Just(Step::Compact),
        1 => Just(Step::CancelCompact),
        1 => Just(Step::Link),
        2 => Just(Step::Reopen),
        1 => Just(Step::Retain),
    ]
}

/// An image on its way through steps, with the model beside it.
struct Journey {
    place: Place,
    guest: Guest,
    image: MemoryImage,
    directories: usize,
}

impl Journey {
    fn take(&mut self, step: Step) {
        let (place, before) = (&self.place, self.image.clone());
        let held = self.guest.clone();
        self.image = match step {
            Step::Write(writes, step) => {
                for (page, write) in &writes {
                    self.guest.apply(*page, *write);
                }
                self.guest.put_diff(&before, &writes.iter().map(|(page, _)| *page).collect(), step).image
            }
            Step::Import(writes) => place.diff(&before, &mut self.guest, &writes).image,
            Step::WriteFull(step) => self.guest.put_full(&place.layers, step, |piece| piece % 2 == 0).image,
            Step::Compact => before.compact(|_| ControlFlow::Continue(())).unwrap().image,
            Step::CancelCompact => match before.compact(|_| ControlFlow::Break(())) {
                // There was nothing to copy.
                Ok(merged) => merged.image,
                Err(MemoryError::Cancelled) => before.clone(),
                Err(other) => panic!("{other}"),
            },
            Step::Link => return self.link(),
            Step::Reopen => {
                before.save(&place.path("memory")).unwrap();
                let opened = MemoryImage::open(&place.path("memory"), &place.layers).unwrap();
                assert_eq!(opened.identity(), before.identity());
                opened
            }
            Step::Retain => {
                place.layers.retain(&before.layers_in_use()).unwrap();
                assert_eq!(place.layers.list().unwrap(), before.layers_in_use());
                before.clone()
            }
        };
        held.check(&before);
    }

    fn link(&mut self) {
        self.directories += 1;
        let next = LayerDir::open(self.place.path(&format!("layers{}", self.directories))).unwrap();
        self.image = self.image.link_into(&next).unwrap();
        std::fs::remove_dir_all(self.place.layers.path()).unwrap();
        self.place.layers = next;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_an_image_it_is_the_guests_memory(
        start in generation(),
        steps in vec(step(), 1..16),
    ) {
        let place = place();
        let mut guest = Guest::new(PAGES);
        for (page, write) in start {
            guest.apply(page, write);
        }
        let image = guest.put_full(&place.layers, 9, |_| true).image;
        guest.check(&image);
        let mut journey = Journey { place, guest, image, directories: 0 };
        for step in steps {
            journey.take(step);
            journey.guest.check(&journey.image);
        }
        journey.image.verify().unwrap();
        let usage = journey.image.usage().unwrap();
        prop_assert!(usage.extents <= PAGES && usage.layers <= usage.extents);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_generation_reads_back_as_the_model(
        start in generation(),
        holes in any::<bool>(),
        generations in vec(generation(), 1..6),
        reads in vec((0..PAGES * PAGE, 0..5 * PAGE), 8),
    ) {
        let place = place();
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
        let place = place();
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
fn replace(file: &Path, content: &[u8]) {
    std::fs::remove_file(file).unwrap();
    std::fs::write(file, content).unwrap();
}

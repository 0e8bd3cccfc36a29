//! The zero/hole/data rule on the file systems that users have, and the refusal of those that cannot keep it.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use wrenn_storage::{LayerDir, MemoryError};

use super::model::{Guest, PAGE, Place, Write};
use super::mount::{Mount, or_skip};

/// Three generations of single pages between holes, which is where a coarse file system shows.
fn check_rule(parent: &Path) {
    let place = Place::below(parent);
    let mut guest = Guest::new(2048);
    for page in 0..2048 {
        guest.apply(page, Write::Fill(page as u8));
    }
    let mut image = place.full(&guest).image;
    for seed in 1..4u8 {
        let step = usize::from(seed) * 2 + 1;
        let zeros = (0..2048).step_by(step * 5).map(|page| (page, Write::Zero));
        let data = (1..2048).step_by(step * 3).map(|page| (page, Write::Fill(seed)));
        let mut writes: Vec<_> = zeros.chain(data).collect();
        writes.extend([(2047, Write::LastByte(seed)), (1000, Write::Rewrite)]);
        image = place.diff(&image, &mut guest, &writes).image;
        guest.check(&image);
    }
}

/// A diff dump whose writer extended the file page by page, which makes some file systems reserve space
/// ahead.
fn check_extending_writer(parent: &Path) {
    let place = Place::below(parent);
    let mut guest = Guest::new(4096);
    for page in 0..4096 {
        guest.apply(page, Write::Fill(page as u8));
    }
    let base = place.full(&guest).image;
    let file = File::create(place.path("diff")).unwrap();
    for page in (0..4096usize).step_by(37) {
        guest.apply(page, Write::Fill(99));
        file.write_all_at(guest.page(page), (page * PAGE) as u64).unwrap();
    }
    file.set_len(guest.size().get()).unwrap();
    guest.check(&base.import_diff(&place.path("diff")).unwrap().image);
}

/// Images that are made of pages take the space of their data, give or take what the file system adds to a file.
fn check_written(parent: &Path) {
    let place = Place::below(parent);
    let mut guest = Guest::new(4096);
    for page in (0..300).chain((301..900).step_by(2)).chain([2000, 2001, 3000]) {
        guest.apply(page, Write::Fill(page as u8));
    }
    let spare = 128 << 10;
    for step in [1, 64, 4096] {
        let full = guest.put_full(&place.layers, step, |_| false);
        guest.check(&full.image);
        assert!(full.written.get() <= full.data.get() + spare, "{} for {}", full.written, full.data);
        let mut later = guest.clone();
        let writes: Vec<_> =
            (200..400).map(|page| (page, Write::Fill(3))).chain([(2000, Write::Zero)]).collect();
        let diff = place.put_diff(&full.image, &mut later, &writes);
        later.check(&diff.image);
        assert!(diff.written.get() <= diff.data.get() + spare, "{} for {}", diff.written, diff.data);
        let merged = diff.image.compact(|_| ControlFlow::Continue(())).unwrap();
        later.check(&merged.image);
        assert!(merged.written.get() <= merged.data.get() + spare, "{} for {}", merged.written, merged.data);
        let linked = merged.image.link_into(&LayerDir::open(place.path("linked")).unwrap()).unwrap();
        later.check(&linked);
        assert_eq!(linked.usage().unwrap().allocated, merged.written);
    }
}

#[test]
fn the_rule_holds_on_ext4() {
    for block in ["4096", "1024"] {
        let mkfs = ["mkfs.ext4", "-q", "-F", "-b", block];
        let Some(mount) = or_skip(Mount::image(&mkfs, 256 << 20)) else { return };
        check_rule(&mount.dir);
        check_extending_writer(&mount.dir);
        check_written(&mount.dir);
    }
}

#[test]
fn the_rule_holds_on_xfs() {
    let mkfs = ["mkfs.xfs", "-q", "-m", "reflink=1"];
    let Some(mount) = or_skip(Mount::image(&mkfs, 512 << 20)) else { return };
    check_rule(&mount.dir);
    check_extending_writer(&mount.dir);
    check_written(&mount.dir);
}

#[test]
fn the_rule_holds_on_btrfs() {
    let Some(mount) = or_skip(Mount::image(&["mkfs.btrfs", "-q"], 512 << 20)) else { return };
    check_rule(&mount.dir);
    check_extending_writer(&mount.dir);
    check_written(&mount.dir);
}

#[test]
fn the_rule_holds_on_tmpfs() {
    let Some(mount) = or_skip(Mount::tmpfs("size=256m,huge=never")) else { return };
    check_rule(&mount.dir);
    check_extending_writer(&mount.dir);
    check_written(&mount.dir);
}

#[test]
fn coarse_file_systems_are_refused_for_diffs() {
    let xfs = || Mount::image(&["mkfs.xfs", "-q", "-b", "size=16k"], 512 << 20);
    for mount in [xfs(), Mount::tmpfs("size=256m,huge=always")] {
        let Some(mount) = or_skip(mount) else { continue };
        let place = Place::below(&mount.dir);
        let mut guest = Guest::new(1024);
        guest.apply(3, Write::Fill(1));
        // Holes that are data are no harm in a full dump: they are found to be zero.
        let base = place.full(&guest).image;
        guest.check(&base);
        guest.dump_diff(&place.path("diff"), [7]);
        match base.import_diff(&place.path("diff")).unwrap_err() {
            MemoryError::CoarseHoles { dir, .. } => assert_eq!(dir, place.path("diff").parent().unwrap()),
            other => panic!("{other}"),
        }
    }
}

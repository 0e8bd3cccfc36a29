//! File systems that fill up in the middle of everything.

use std::error::Error;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use wrenn_storage::{LayerDir, MemoryError, MemoryImage, SnapshotError, SnapshotStore};

use super::model::{Guest, PAGE, Place, Write, staged};
use super::mount::{Mount, or_skip};

const PAGES: usize = 512;

/// A file system with a saved chain on it and, from then on, less space than the guest has memory.
struct Tight {
    place: Place,
    guest: Guest,
    image: MemoryImage,
    ballast: PathBuf,
    mount: Mount,
}

impl Tight {
    fn new() -> Option<Self> {
        let mount = or_skip(Mount::tmpfs("size=8m,huge=never"))?;
        let place = Place::below(&mount.dir);
        let mut guest = Guest::new(PAGES);
        for page in 0..PAGES {
            guest.apply(page, Write::Fill(page as u8));
        }
        let full = guest.put_full(&place.layers, 64, |_| false).image;
        let image = place.put_diff(&full, &mut guest, &[(3, Write::Zero), (5, Write::Fill(77))]).image;
        image.save(&place.path("memory")).unwrap();
        let ballast = mount.dir.join("ballast");
        Some(Self { place, guest, image, ballast, mount })
    }

    /// Leaves so many pages of space.
    fn fill_up(&self, leave: u64) {
        let _ = fs::remove_file(&self.ballast);
        let free = rustix::fs::statvfs(&self.mount.dir).unwrap();
        let bytes = (free.f_bavail * free.f_frsize).saturating_sub(leave * PAGE as u64);
        fs::write(&self.ballast, vec![1; bytes as usize]).unwrap();
    }

    fn check_old(&self) {
        assert_eq!(staged(self.place.layers.path()), Vec::<String>::new());
        assert_eq!(staged(self.place.path("memory").parent().unwrap()), Vec::<String>::new());
        assert_eq!(self.place.layers.list().unwrap(), self.image.layers_in_use(), "nothing is left behind");
        let files = fs::read_dir(self.place.layers.path()).unwrap().count();
        assert_eq!(files, 2 * self.image.layers_in_use().len());
        let opened = MemoryImage::open(&self.place.path("memory"), &self.place.layers).unwrap();
        opened.verify().unwrap();
        self.guest.check(&opened);
    }
}

#[track_caller]
fn assert_full(error: &dyn Error, below: &Path) {
    let mut source = error.source();
    while let Some(next) = source.and_then(Error::source) {
        source = Some(next);
    }
    let io = source.and_then(|source| source.downcast_ref::<io::Error>());
    assert_eq!(io.map(io::Error::kind), Some(io::ErrorKind::StorageFull), "{error:?}");
    assert!(error.to_string().contains(below.to_str().unwrap()), "the message names the path: {error}");
}

fn write(layers: &LayerDir, guest: &Guest, base: Option<&MemoryImage>) -> Result<MemoryImage, MemoryError> {
    let mut writer = match base {
        None => MemoryImage::write_full(guest.size(), layers)?,
        Some(base) => base.write_diff()?,
    };
    for (number, pages) in guest.0.chunks(64 * PAGE).enumerate() {
        writer.put((number * 64 * PAGE) as u64, pages)?;
    }
    Ok(writer.finish()?.image)
}

#[test]
fn writers_and_merges_fail_whole() {
    let Some(tight) = Tight::new() else { return };
    let layers = &tight.place.layers;
    // No room at all, for a part, for all but the last page, and for the layer but not for its checksums: one page of
    // the guest is zero.
    for leave in [0, 1, 100, PAGES as u64 - 2, PAGES as u64 - 1] {
        tight.fill_up(leave);
        let results = [
            ("full", write(layers, &tight.guest, None)),
            ("diff", write(layers, &tight.guest, Some(&tight.image))),
            ("merge", tight.image.compact(|_| ControlFlow::Continue(())).map(|merged| merged.image)),
        ];
        for (what, result) in results {
            match result {
                Err(error) => {
                    eprintln!("{what} with {leave} pages free: {error}");
                    assert_full(&error, layers.path());
                }
                Ok(_) => panic!("{what} fitted into {leave} pages"),
            }
        }
        tight.check_old();
    }
    fs::remove_file(&tight.ballast).unwrap();
    tight.guest.check(&tight.image.compact(|_| ControlFlow::Continue(())).unwrap().image);
}

#[test]
fn manifests_are_replaced_or_not() {
    let Some(tight) = Tight::new() else { return };
    let next = write(&tight.place.layers, &tight.guest, None).unwrap();
    let path = tight.place.path("memory");
    tight.fill_up(0);
    assert_full(&next.save(&path).unwrap_err(), &path);
    tight.place.layers.retain(&tight.image.layers_in_use()).unwrap();
    tight.check_old();
}

#[test]
fn snapshots_are_committed_or_not() {
    let Some(tight) = Tight::new() else { return };
    let dir = tight.place.path("snapshots");
    let store = SnapshotStore::new(&dir);
    let first = store.stage(1).unwrap();
    fs::write(first.file("state"), "registers").unwrap();
    first.commit(&["state"], "record").unwrap();
    let second = store.stage(2).unwrap();
    fs::write(second.file("state"), "others").unwrap();
    tight.fill_up(0);
    let error = second.commit(&["state"], "record").unwrap_err();
    assert_full(&error, &dir);
    assert!(matches!(error, SnapshotError::Io { .. }));
    assert_eq!(staged(&dir), Vec::<String>::new());
    assert_eq!(store.latest().unwrap(), Some(1));
    store.open::<String>(1).unwrap().0.verify("state").unwrap();
    tight.check_old();
}

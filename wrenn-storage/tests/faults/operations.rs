//! What is tested: operations on a directory that holds a saved image, its layers and a snapshot.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use wrenn_base::{Bytes, HostId, SandboxId};
use wrenn_storage::{
    BackendChoice, DiskSpec, LayerDir, MemoryImage, PageRun, RootDisks, SnapshotError, SnapshotStore,
    WorkingSet, durable,
};

use super::model::{Guest, Write, staged};

const PAGES: usize = 64;

/// What somebody who opens the directory finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// How many times the saved image's guest was written to.
    memory: usize,
    /// The latest snapshot.
    snapshot: u64,
    /// Whether there is a linked image.
    linked: bool,
    /// Whether there is a working set.
    working_set: bool,
    /// Whether there is a flat disk.
    flat: bool,
}

const START: Found = Found { memory: 1, snapshot: 1, linked: false, working_set: false, flat: false };
const WRITTEN: Found = Found { memory: 2, ..START };

type Outcome = Result<(), Box<dyn Error>>;

pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) prepare: fn(&Path),
    pub(crate) run: fn(&Path) -> Outcome,
    /// Whether it can be run on what a failure left.
    pub(crate) can_repeat: fn(&Path) -> bool,
    pub(crate) starts_with: Found,
    pub(crate) leaves: Found,
    /// So many points are the least that its effects need.
    pub(crate) least_points: usize,
}

const MEMORY: Operation = Operation {
    name: "",
    prepare,
    run: |_| Ok(()),
    can_repeat: |_| true,
    starts_with: START,
    leaves: WRITTEN,
    least_points: 20,
};

pub(crate) const OPERATIONS: [Operation; 10] = [
    Operation { name: "write_full", run: write_full, ..MEMORY },
    Operation { name: "write_diff", run: write_diff, ..MEMORY },
    Operation {
        name: "import_full",
        prepare: |dir| {
            prepare(dir);
            guest(2).dump_full(&dump(dir), |_| false);
        },
        run: import_full,
        // If its last steps fail the dump is a layer by then, as documented.
        can_repeat: |dir| dump(dir).exists(),
        ..MEMORY
    },
    Operation {
        name: "import_diff",
        prepare: |dir| {
            prepare(dir);
            guest(2).dump_diff(&dump(dir), dirty());
        },
        run: import_diff,
        ..MEMORY
    },
    Operation { name: "compact", run: compact, leaves: START, ..MEMORY },
    Operation {
        name: "link",
        run: link,
        leaves: Found { linked: true, ..START },
        least_points: 16,
        ..MEMORY
    },
    Operation {
        name: "working_set",
        run: working_set,
        leaves: Found { working_set: true, ..START },
        least_points: 10,
        ..MEMORY
    },
    Operation {
        name: "snapshot",
        run: snapshot,
        leaves: Found { snapshot: 2, ..START },
        least_points: 10,
        ..MEMORY
    },
    Operation {
        name: "prune",
        prepare: |dir| {
            prepare(dir);
            snapshot(dir).unwrap();
        },
        run: prune,
        starts_with: Found { snapshot: 2, ..START },
        leaves: Found { snapshot: 2, ..START },
        least_points: 2,
        ..MEMORY
    },
    Operation {
        name: "flatten",
        prepare: |dir| {
            prepare(dir);
            fs::write(dir.join("disk-image"), flat_content()).unwrap();
            fs::copy(dir.join("disk-image"), dir.join("cow")).unwrap();
        },
        run: flatten,
        // What is there is never replaced.
        can_repeat: |dir| !dir.join("flat").exists(),
        leaves: Found { flat: true, ..START },
        least_points: 11,
        ..MEMORY
    },
];

/// The guest after so many writes.
fn guest(writes: usize) -> Guest {
    let mut guest = Guest::new(PAGES);
    for page in 8..40 {
        guest.apply(page, Write::Fill(page as u8));
    }
    for seed in 1..=writes {
        for page in dirty() {
            guest.apply(page, if page % 2 == 0 { Write::Zero } else { Write::Fill(seed as u8) });
        }
    }
    guest
}

fn dirty() -> BTreeSet<usize> {
    (4..12).chain([50]).collect()
}

fn layers(dir: &Path) -> LayerDir {
    LayerDir::open(dir.join("layers")).unwrap()
}

fn memory(dir: &Path) -> PathBuf {
    dir.join("memory")
}

fn dump(dir: &Path) -> PathBuf {
    dir.join("dump")
}

fn open(dir: &Path) -> MemoryImage {
    MemoryImage::open(&memory(dir), &layers(dir)).unwrap()
}

fn snapshots(dir: &Path) -> SnapshotStore {
    SnapshotStore::new(dir.join("snapshots"))
}

/// An image of two layers, saved, and a snapshot.
fn prepare(dir: &Path) {
    let full = guest(0).put_full(&layers(dir), 16, |_| true).image;
    let image = guest(1).put_diff(&full, &dirty(), 3).image;
    assert_eq!(image.layers_in_use().len(), 2);
    image.save(&memory(dir)).unwrap();
    stage_and_commit(dir, 1).unwrap();
}

/// Switches to `image` as the callers of this crate do.
fn switch(dir: &Path, image: &MemoryImage) -> Outcome {
    image.save(&memory(dir))?;
    layers(dir).retain(&image.layers_in_use())?;
    Ok(())
}

fn write_full(dir: &Path) -> Outcome {
    let (guest, image) = (guest(2), open(dir));
    let mut writer = MemoryImage::write_full(image.guest_size(), &layers(dir))?;
    for (number, pages) in guest.0.chunks(16 * 4096).enumerate() {
        writer.put(number as u64 * 16 * 4096, pages)?;
    }
    switch(dir, &writer.finish()?.image)
}

fn write_diff(dir: &Path) -> Outcome {
    let guest = guest(2);
    let mut writer = open(dir).write_diff()?;
    for page in dirty() {
        writer.put(page as u64 * 4096, guest.page(page))?;
    }
    switch(dir, &writer.finish()?.image)
}

fn import_full(dir: &Path) -> Outcome {
    let image = MemoryImage::import_full(&dump(dir), guest(2).size(), &layers(dir))?.image;
    switch(dir, &image)
}

fn import_diff(dir: &Path) -> Outcome {
    let image = open(dir).import_diff(&dump(dir))?.image;
    switch(dir, &image)
}

fn compact(dir: &Path) -> Outcome {
    let merged = open(dir).compact(|_| ControlFlow::Continue(()))?;
    assert!(merged.image.flat_layer().is_some());
    switch(dir, &merged.image)
}

fn link(dir: &Path) -> Outcome {
    let linked = open(dir).link_into(&LayerDir::open(dir.join("linked"))?)?;
    linked.save(&dir.join("linked-memory"))?;
    Ok(())
}

fn working_set(dir: &Path) -> Outcome {
    let size = Bytes((PAGES * 4096) as u64);
    WorkingSet::new(size, [PageRun { first: 5, pages: 9 }])?.save(&dir.join("working-set"))?;
    Ok(())
}

fn snapshot(dir: &Path) -> Outcome {
    match stage_and_commit(dir, 2) {
        // It was committed, and only its directory not synced, when it failed before.
        Err(SnapshotError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        result => Ok(result?),
    }
}

fn stage_and_commit(dir: &Path, generation: u64) -> Result<(), SnapshotError> {
    let staged = snapshots(dir).stage(generation)?;
    fs::write(staged.file("state"), format!("state {generation}")).unwrap();
    fs::write(staged.file("disk"), vec![generation as u8; 100_000]).unwrap();
    staged.commit(&["state", "disk"], generation)?;
    Ok(())
}

fn prune(dir: &Path) -> Outcome {
    snapshots(dir).prune(2)?;
    assert!(!dir.join("snapshots/1").exists());
    Ok(())
}

/// Three pieces of a disk.
fn flat_content() -> Vec<u8> {
    (0..768).flat_map(|block: u32| [block as u8 | 1; 4096]).collect()
}

fn flatten(dir: &Path) -> Outcome {
    let disks = RootDisks::probe(&HostId::random(), BackendChoice::Copy)?;
    let (sandbox, image, cow) = (SandboxId::random(), dir.join("disk-image"), dir.join("cow"));
    let spec = DiskSpec { sandbox: &sandbox, image: &image, cow: &cow, size: None };
    disks.flatten(&spec, &dir.join("flat"), |_| ControlFlow::Continue(()))?;
    Ok(())
}

/// Opens everything, cleans up as callers do, and panics where something is not whole or more than is used is left.
pub(crate) fn check(dir: &Path) -> Found {
    let image = open(dir);
    image.verify().unwrap();
    let mut read = vec![0; PAGES * 4096];
    image.reader().read(0, &mut read).unwrap();
    let memory = (1..=2).find(|writes| guest(*writes).0 == read).expect("one of the guests that there were");
    guest(memory).check(&image);
    keep_only(dir.join("layers").as_path(), &image);

    let linked = dir.join("linked-memory").exists();
    if linked {
        let layers = LayerDir::open(dir.join("linked")).unwrap();
        let image = MemoryImage::open(&dir.join("linked-memory"), &layers).unwrap();
        image.verify().unwrap();
        guest(1).check(&image);
        keep_only(layers.path(), &image);
    } else if dir.join("linked").exists() {
        let layers = LayerDir::open(dir.join("linked")).unwrap();
        layers.retain(&BTreeSet::new()).unwrap();
        assert_eq!(fs::read_dir(layers.path()).unwrap().count(), 0);
    }

    let (store, latest) = (snapshots(dir), snapshots(dir).latest().unwrap().unwrap());
    let (snapshot, record) = store.open::<u64>(latest).unwrap();
    assert_eq!(record, latest);
    ["state", "disk"].iter().for_each(|name| snapshot.verify(name).unwrap());
    store.prune(latest).unwrap();
    let names: Vec<_> =
        fs::read_dir(dir.join("snapshots")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [latest.to_string().as_str()]);

    durable::sweep(dir).unwrap();
    let working_set = WorkingSet::load(&dir.join("working-set")).unwrap().is_some();
    assert_eq!(staged_anywhere(dir), Vec::<String>::new());
    let flat = dir.join("flat").exists();
    assert!(!flat || fs::read(dir.join("flat")).unwrap() == flat_content(), "it is whole");
    Found { memory, snapshot: latest, linked, working_set, flat }
}

/// Collects what `image` does not use; then there is nothing else.
fn keep_only(dir: &Path, image: &MemoryImage) {
    let layers = LayerDir::open(dir).unwrap();
    layers.retain(&image.layers_in_use()).unwrap();
    assert_eq!(layers.list().unwrap(), image.layers_in_use());
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2 * image.layers_in_use().len());
}

/// Panics where a dump that is still one cannot be opened for writing any more, by whoever is not root.
pub(crate) fn check_dump(dir: &Path) {
    if let Ok(found) = fs::metadata(dump(dir)) {
        assert_eq!(found.permissions().mode() & 0o200, 0o200);
    }
}

/// The staging names in `dir` and the directories in it.
pub(crate) fn staged_anywhere(dir: &Path) -> Vec<String> {
    let mut names = staged(dir);
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            names.extend(staged(&entry.path()));
        }
    }
    names
}

/// An error and what caused it, as one text.
pub(crate) fn chain(error: &dyn Error) -> String {
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

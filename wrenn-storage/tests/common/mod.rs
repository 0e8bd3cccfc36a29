//! What every root-disk backend has to do, as one body of tests for all of them.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wrenn_base::{Bytes, Deadline, HostId, Reaper, SandboxId, UndoList};
use wrenn_storage::{
    BackendChoice, DiskError, DiskSpec, RootDisk, RootDisks, loop_devices_under, mapped_devices_of,
};

pub(crate) const BLOCK: usize = 4096;
pub(crate) const IMAGE_BLOCKS: usize = 2048;

/// A host with one image, in a directory of its own; dropping it checks that nothing is left.
pub(crate) struct Bench {
    pub(crate) disks: RootDisks,
    pub(crate) host: HostId,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) reaper: Reaper,
}

impl Bench {
    pub(crate) fn new(choice: BackendChoice) -> Self {
        let scratch = std::env::var_os("WRENN_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::tempdir_in(scratch).unwrap();
        let host = HostId::random();
        let image: Vec<u8> = (0..IMAGE_BLOCKS).flat_map(|block| pattern(block, 0)).collect();
        fs::write(dir.path().join("image"), image).unwrap();
        let disks = RootDisks::probe(&host, choice).unwrap();
        Self { disks, host, dir, reaper: Reaper::start() }
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub(crate) fn sandbox(&self) -> Sandbox<'_> {
        let id = SandboxId::random();
        let cow = self.dir.path().join(format!("{id}.cow"));
        Sandbox { bench: self, id, cow, size: None }
    }

    pub(crate) fn undo(&self) -> UndoList {
        UndoList::new(&self.reaper)
    }

    /// The kernel releases a loop device shortly after its last user, not with it.
    pub(crate) fn assert_nothing_attached(&self) {
        let start = Instant::now();
        loop {
            let mapped = mapped_devices_of(&self.host).unwrap();
            let loops = loop_devices_under(self.dir.path()).unwrap();
            if mapped.is_empty() && loops.is_empty() {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "left behind: {mapped:?} {loops:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(self.disks.attached().unwrap().is_empty());
    }
}

pub(crate) struct Sandbox<'a> {
    bench: &'a Bench,
    pub(crate) id: SandboxId,
    pub(crate) cow: PathBuf,
    pub(crate) size: Option<Bytes>,
}

impl Sandbox<'_> {
    pub(crate) fn try_attach(&self, undo: &mut UndoList) -> Result<RootDisk, DiskError> {
        let image = self.bench.image();
        let spec = DiskSpec { sandbox: &self.id, image: &image, cow: &self.cow, size: self.size };
        self.bench.disks.attach(&spec, undo)
    }

    pub(crate) fn attach(&self, undo: &mut UndoList) -> RootDisk {
        self.try_attach(undo)
            .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
    }
}

pub(crate) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// A block's content: another one for every block and version.
pub(crate) fn pattern(block: usize, version: u8) -> Vec<u8> {
    let mut content = vec![version ^ 0xa5; BLOCK];
    content[..8].copy_from_slice(&(block as u64 + 1).to_le_bytes());
    content[BLOCK - 1] = version;
    content
}

pub(crate) fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

pub(crate) fn write_blocks(device: &Path, blocks: impl Iterator<Item = usize>, version: u8) {
    let file = open(device);
    for block in blocks {
        file.write_all_at(&pattern(block, version), (block * BLOCK) as u64).unwrap();
    }
    file.sync_all().unwrap();
}

/// Compares the disk, block by block, with what `expected` says (`None`: zeros).
pub(crate) fn check_blocks(device: &Path, blocks: usize, expected: impl Fn(usize) -> Option<u8>) {
    let file = open(device);
    let mut found = vec![0; BLOCK];
    for block in 0..blocks {
        file.read_exact_at(&mut found, (block * BLOCK) as u64).unwrap();
        let wanted = expected(block).map_or_else(|| vec![0; BLOCK], |version| pattern(block, version));
        assert!(found == wanted, "block {block}");
    }
    let beyond = file.read_at(&mut found, (blocks * BLOCK) as u64).unwrap();
    assert_eq!(beyond, 0, "the disk is larger than {blocks} blocks");
}

/// The one body: what it checks holds for every backend.
pub(crate) fn conformance(choice: BackendChoice) {
    let bench = Bench::new(choice);
    keeps_what_was_written(&bench);
    grows_beyond_its_image(&bench);
    takes_a_whole_rewrite(&bench);
    isolates_sandboxes(&bench);
    refuses_what_does_not_fit(&bench);
    undo_detaches_and_keeps_the_cow_file(&bench);
    bench.assert_nothing_attached();
    check_blocks(&bench.image(), IMAGE_BLOCKS, |_| Some(0));
}

fn keeps_what_was_written(bench: &Bench) {
    let sandbox = bench.sandbox();
    let changed = |block: usize| block % 97 == 3;
    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    assert_eq!(disk.cow(), sandbox.cow);
    check_blocks(disk.device(), IMAGE_BLOCKS, |_| Some(0));
    write_blocks(disk.device(), (0..IMAGE_BLOCKS).filter(|block| changed(*block)), 1);
    disk.detach(soon()).unwrap();
    disk.detach(soon()).unwrap();
    assert!(undo.run(Duration::from_secs(5)).is_empty());

    for _ in 0..3 {
        let mut undo = bench.undo();
        let disk = sandbox.attach(&mut undo);
        check_blocks(disk.device(), IMAGE_BLOCKS, |block| Some(u8::from(changed(block))));
        disk.detach(soon()).unwrap();
        undo.commit();
    }
}

fn grows_beyond_its_image(bench: &Bench) {
    let blocks = IMAGE_BLOCKS + 777;
    let mut sandbox = bench.sandbox();
    sandbox.size = Some(Bytes((blocks * BLOCK) as u64));
    let written = |block: usize| block == 5 || block == IMAGE_BLOCKS - 1 || block >= blocks - 2;
    for round in 0..2 {
        let mut undo = bench.undo();
        let disk = sandbox.attach(&mut undo);
        check_blocks(disk.device(), blocks, |block| match (round, written(block)) {
            (1, true) => Some(9),
            _ => (block < IMAGE_BLOCKS).then_some(0),
        });
        write_blocks(disk.device(), (0..blocks).filter(|block| written(*block)), 9);
        disk.detach(soon()).unwrap();
        undo.commit();
    }
}

fn takes_a_whole_rewrite(bench: &Bench) {
    let blocks = IMAGE_BLOCKS + 256;
    let mut sandbox = bench.sandbox();
    sandbox.size = Some(Bytes((blocks * BLOCK) as u64));
    for version in 2..4 {
        let mut undo = bench.undo();
        let disk = sandbox.attach(&mut undo);
        write_blocks(disk.device(), 0..blocks, version);
        check_blocks(disk.device(), blocks, |_| Some(version));
        disk.detach(soon()).unwrap();
        let disk = sandbox.attach(&mut undo);
        check_blocks(disk.device(), blocks, |_| Some(version));
        disk.detach(soon()).unwrap();
        undo.commit();
    }
}

fn isolates_sandboxes(bench: &Bench) {
    let (one, two) = (bench.sandbox(), bench.sandbox());
    let mut undo = bench.undo();
    let (disk_one, disk_two) = (one.attach(&mut undo), two.attach(&mut undo));
    write_blocks(disk_one.device(), 0..64, 4);
    write_blocks(disk_two.device(), 32..96, 5);
    check_blocks(disk_one.device(), IMAGE_BLOCKS, |block| Some(if block < 64 { 4 } else { 0 }));
    check_blocks(disk_two.device(), IMAGE_BLOCKS, |block| {
        Some(if (32..96).contains(&block) { 5 } else { 0 })
    });
    disk_one.detach(soon()).unwrap();
    check_blocks(disk_two.device(), IMAGE_BLOCKS, |block| {
        Some(if (32..96).contains(&block) { 5 } else { 0 })
    });
    assert!(undo.run(Duration::from_secs(20)).is_empty());
}

fn refuses_what_does_not_fit(bench: &Bench) {
    let image_size = (IMAGE_BLOCKS * BLOCK) as u64;
    let mut sandbox = bench.sandbox();
    let mut undo = bench.undo();
    for (size, fits) in [
        (Bytes(image_size - BLOCK as u64), "too small"),
        (Bytes(image_size + 1), "uneven"),
        (Bytes(!4095), "beyond any file"),
    ] {
        sandbox.size = Some(size);
        let error = sandbox.try_attach(&mut undo).unwrap_err();
        assert!(matches!(error, DiskError::TooSmall { .. } | DiskError::BadSize { .. }), "{fits}: {error}");
        assert!(!sandbox.cow.exists(), "{fits}");
    }
    assert!(undo.is_empty());

    sandbox.size = None;
    sandbox.attach(&mut undo).detach(soon()).unwrap();
    let made = fs::metadata(&sandbox.cow).unwrap().len();
    sandbox.size = Some(Bytes(image_size * 2));
    let error = sandbox.try_attach(&mut undo).unwrap_err();
    assert!(matches!(error, DiskError::WrongLength { found, .. } if found == made), "{error}");
    sandbox.size = None;
    open(&sandbox.cow).set_len(made - 1).unwrap();
    let error = sandbox.try_attach(&mut undo).unwrap_err();
    assert!(matches!(error, DiskError::WrongLength { expected, .. } if expected == made), "{error}");
    assert_eq!(fs::metadata(&sandbox.cow).unwrap().len(), made - 1, "untouched");

    let id = SandboxId::random();
    let (image, cow) = (bench.dir.path().join("no-image"), bench.dir.path().join("no-cow"));
    let spec = DiskSpec { sandbox: &id, image: &image, cow: &cow, size: None };
    let error = bench.disks.attach(&spec, &mut undo).unwrap_err();
    assert!(error.to_string().contains("no-image"), "{error}");
    fs::write(&image, "x").unwrap();
    let error = bench.disks.attach(&spec, &mut undo).unwrap_err();
    assert!(matches!(error, DiskError::NotWholeBlocks { .. }), "{error}");
    assert!(!cow.exists());
    assert!(undo.run(Duration::from_secs(20)).is_empty());
}

fn undo_detaches_and_keeps_the_cow_file(bench: &Bench) {
    let sandbox = bench.sandbox();
    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    write_blocks(disk.device(), 7..8, 6);
    assert!(undo.run(Duration::from_secs(20)).is_empty());
    bench.assert_nothing_attached();
    // The handle outlived its disk: detaching what is gone is fine.
    disk.detach(soon()).unwrap();

    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    check_blocks(disk.device(), IMAGE_BLOCKS, |block| Some(if block == 7 { 6 } else { 0 }));
    assert!(undo.run(Duration::from_secs(20)).is_empty());
}

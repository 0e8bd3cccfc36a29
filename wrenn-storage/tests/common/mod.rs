//! What the tests of root disks share. `conformance` is what every backend has to do.
#![allow(dead_code, reason = "each test program uses its own part")]

mod conformance;

pub(crate) use conformance::conformance;

use std::fs::{self, File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wrenn_base::{Bytes, Deadline, HostId, Reaper, SandboxId, UndoList};
use wrenn_storage::{
    BackendChoice, DiskError, DiskSpec, Flattened, RootDisk, RootDisks, loop_devices_under, mapped_devices_of,
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
        Sandbox { bench: self, id, image: self.image(), cow, size: None }
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
    pub(crate) image: PathBuf,
    pub(crate) cow: PathBuf,
    pub(crate) size: Option<Bytes>,
}

impl Sandbox<'_> {
    pub(crate) fn spec(&self) -> DiskSpec<'_> {
        DiskSpec { sandbox: &self.id, image: &self.image, cow: &self.cow, size: self.size }
    }

    pub(crate) fn try_attach(&self, undo: &mut UndoList) -> Result<RootDisk, DiskError> {
        self.bench.disks.attach(&self.spec(), undo)
    }

    /// The disk as the new file `target`, and how many bytes were read for it.
    pub(crate) fn flatten(&self, target: &Path) -> Result<(Flattened, u64), DiskError> {
        let mut read = 0;
        let pace = |piece: Bytes| {
            read += piece.get();
            ControlFlow::Continue(())
        };
        self.bench.disks.flatten(&self.spec(), target, pace).map(|flat| (flat, read))
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

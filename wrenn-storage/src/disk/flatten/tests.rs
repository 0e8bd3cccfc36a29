//! Both ways to a flat file without a kernel that maps: stores are written as the kernel writes them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;

use proptest::prelude::*;
use wrenn_base::{HostId, SandboxId};

use super::super::cow::Geometry;
use super::super::store::Layout;
use super::super::store::tests::{encode, places};
use super::super::{BackendChoice, CowFault, DiskSpec, RootDisks, snapshot};
use super::*;

const CHUNK: usize = 16 << 10;
const BLOCK_LEN: usize = BLOCK as usize;

/// A directory with an image and what a device-mapper backend would keep of one sandbox.
struct Bench {
    dir: tempfile::TempDir,
    sandbox: SandboxId,
    size: u64,
}

impl Bench {
    /// An image of `image` blocks, of which `filled` are not holes, under a disk of `disk` blocks.
    fn new(image: usize, filled: impl IntoIterator<Item = usize>, disk: usize) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = File::create(dir.path().join("image")).unwrap();
        file.set_len((image * BLOCK_LEN) as u64).unwrap();
        for block in filled {
            file.write_all_at(&[block as u8 | 1; BLOCK_LEN], (block * BLOCK_LEN) as u64).unwrap();
        }
        Self { dir, sandbox: SandboxId::random(), size: (disk * BLOCK_LEN) as u64 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Writes the store of a disk with these chunks written, each in the place that the kernel gives it.
    fn write_store(&self, written: &[(u64, Vec<u8>)]) {
        let layout = Layout::new(CHUNK as u64, self.size);
        let list: Vec<_> = written.iter().map(|(chunk, _)| *chunk).zip(places(layout)).collect();
        let file = File::create(self.path("cow")).unwrap();
        file.set_len(layout.store_len()).unwrap();
        for (number, metadata) in encode(layout, &list).chunks(CHUNK).enumerate() {
            if !is_zero_all(metadata) {
                file.write_all_at(metadata, (number * CHUNK) as u64).unwrap();
            }
        }
        for ((_, content), (_, place)) in written.iter().zip(&list) {
            for (number, block) in content.chunks(BLOCK_LEN).enumerate() {
                file.write_all_at(block, place * CHUNK as u64 + (number * BLOCK_LEN) as u64).unwrap();
            }
        }
    }

    /// Flattens as the device-mapper backend does.
    fn flatten(&self, pace: &mut dyn FnMut(Bytes) -> ControlFlow<()>) -> Result<Flattened, DiskError> {
        let (image, cow, flat) = (self.path("image"), self.path("cow"), self.path("flat"));
        let spec =
            DiskSpec { sandbox: &self.sandbox, image: &image, cow: &cow, size: Some(Bytes(self.size)) };
        let geometry = Geometry::of(&spec)?;
        let mut flattening = Flattening::begin(&flat, geometry.disk, pace)?;
        snapshot::flatten(&spec, geometry, &mut flattening)?;
        flattening.finish()
    }

    /// What the disk shows.
    fn expected(&self, written: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let mut disk = fs::read(self.path("image")).unwrap();
        disk.resize(self.size as usize, 0);
        for (chunk, content) in written {
            let start = *chunk as usize * CHUNK;
            let len = content.len().min(disk.len() - start);
            disk[start..start + len].copy_from_slice(&content[..len]);
        }
        disk
    }
}

fn is_zero_all(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The allocated bytes that a file with this content needs.
fn needed(content: &[u8]) -> u64 {
    content.chunks(BLOCK_LEN).filter(|block| !is_zero_all(block)).count() as u64 * BLOCK
}

fn go_on(_: Bytes) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn filled(byte: u8) -> Vec<u8> {
    vec![byte; CHUNK]
}

#[test]
fn what_was_written_hides_the_image_and_zeros_become_holes() {
    let bench = Bench::new(64, (0..20).chain(40..45), 70);
    let mixed = [vec![0; BLOCK_LEN], vec![7; BLOCK_LEN], vec![0; 2 * BLOCK_LEN]].concat();
    // Zeros over data, data over a hole, at the image's end, and in the disk's last chunk, of which there is half.
    let written = [(16, filled(5)), (0, filled(0)), (17, filled(6)), (2, mixed), (6, filled(9))];
    bench.write_store(&written);
    let mut read = 0;
    let flat = bench
        .flatten(&mut |piece| {
            read += piece.get();
            ControlFlow::Continue(())
        })
        .unwrap();
    let content = fs::read(bench.path("flat")).unwrap();
    assert!(content == bench.expected(&written));
    assert_eq!((flat.size, flat.allocated), (Bytes(70 * BLOCK), Bytes(needed(&content))));
    // The image's blocks 4..8 and 12..20 and 40..45; 4 chunks and a half.
    assert_eq!(read, (4 + 8 + 5 + 4 * 4 + 2) * BLOCK, "holes and what is hidden are not read");
    assert_eq!(bench.names(), ["cow", "flat", "image"]);
}

#[test]
fn a_disk_that_nobody_wrote_to_is_its_image() {
    let bench = Bench::new(600, [0, 1, 599], 900);
    bench.write_store(&[]);
    for attached in [true, false] {
        let flat = bench.flatten(&mut go_on).unwrap();
        assert!(fs::read(bench.path("flat")).unwrap() == bench.expected(&[]), "attached once: {attached}");
        assert_eq!(flat.allocated, Bytes(3 * BLOCK));
        fs::remove_file(bench.path("flat")).unwrap();
        // The file as it is made, before the kernel has it for the first time.
        let len = fs::metadata(bench.path("cow")).unwrap().len();
        File::create(bench.path("cow")).unwrap().set_len(len).unwrap();
    }
}

#[test]
fn whoever_cancels_or_comes_second_leaves_nothing_new() {
    let bench = Bench::new(1024, 0..1024, 1024);
    bench.write_store(&[(3, filled(1))]);
    let whole = bench.expected(&[(3, filled(1))]);
    let mut pieces = 0;
    bench.flatten(&mut |_| (pieces += 1, ControlFlow::Continue(())).1).unwrap();
    fs::remove_file(bench.path("flat")).unwrap();
    assert!(pieces > 4);
    for last in 1..=pieces {
        let mut left = last;
        let error = bench.flatten(&mut |_| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(error, Err(DiskError::Cancelled)), "{error:?}");
        assert_eq!((left, bench.names()), (0, vec!["cow".to_owned(), "image".to_owned()]));
    }
    bench.flatten(&mut go_on).unwrap();
    let error = bench.flatten(&mut |_| panic!("nothing is read")).unwrap_err();
    assert!(
        matches!(&error, DiskError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists),
        "{error}"
    );
    // Somebody else gets the name while the disk is read.
    fs::remove_file(bench.path("flat")).unwrap();
    let error = bench.flatten(&mut |_| {
        fs::write(bench.path("flat"), "theirs").unwrap();
        ControlFlow::Continue(())
    });
    assert!(matches!(error, Err(DiskError::Io { .. })), "{error:?}");
    assert_eq!(fs::read(bench.path("flat")).unwrap(), b"theirs");
    assert_eq!(bench.names(), ["cow", "flat", "image"]);
    assert!(fs::read(bench.path("image")).unwrap().len() == whole.len());
}

#[test]
fn a_damaged_store_is_refused_unchanged_and_leaves_nothing() {
    let bench = Bench::new(64, 0..64, 64);
    bench.write_store(&[(3, filled(1)), (5, filled(2))]);
    let whole = fs::read(bench.path("cow")).unwrap();
    let nothing = vec![0; 2 * CHUNK];
    let refused = || {
        let before = fs::read(bench.path("cow")).unwrap();
        let error = bench.flatten(&mut go_on).unwrap_err();
        assert!(fs::read(bench.path("cow")).unwrap() == before);
        assert_eq!(bench.names(), ["cow", "image"]);
        error
    };
    for (at, bytes, fault) in [
        (0, &[0u8; 16][..], CowFault::HeaderLost),
        (0, &nothing, CowFault::HeaderLost),
        (4, &[0; 4], CowFault::Invalidated),
        (CHUNK, &[0; 16], CowFault::ListBroken),
        (CHUNK, &[16], CowFault::OutsideDisk { chunk: 16 }),
        (CHUNK + 8, &[1], CowFault::OutsideStore { chunk: 1 }),
        (CHUNK + 8, &[3], CowFault::Twice { chunk: 5 }),
    ] {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(bench.path("cow"), damaged).unwrap();
        let error = refused();
        assert!(
            matches!(&error, DiskError::Damaged { source, .. } if *source == fault),
            "{error}: {:?} for {fault:?}",
            std::error::Error::source(&error)
        );
    }
    fs::write(bench.path("cow"), &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(refused(), DiskError::WrongLength { .. }));
    fs::write(bench.path("cow"), &whole).unwrap();
    bench.flatten(&mut go_on).unwrap();
    assert!(fs::read(bench.path("flat")).unwrap() == bench.expected(&[(3, filled(1)), (5, filled(2))]));
}

#[test]
fn a_disk_without_changes_is_an_error_and_not_the_image() {
    let bench = Bench::new(64, 0..64, 64);
    let disks = RootDisks::probe(&HostId::random(), BackendChoice::Copy).unwrap();
    let (image, cow, flat) = (bench.path("image"), bench.path("cow"), bench.path("flat"));
    let spec = DiskSpec { sandbox: &bench.sandbox, image: &image, cow: &cow, size: None };
    for error in [disks.flatten(&spec, &flat, go_on).unwrap_err(), bench.flatten(&mut go_on).unwrap_err()] {
        assert!(
            matches!(&error, DiskError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound),
            "{error}"
        );
    }
    assert_eq!(bench.names(), ["image"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any image, any chunks written in any order, any of their blocks zero.
    #[test]
    fn a_flat_file_is_what_the_disk_shows(
        image in proptest::collection::btree_set(0..50usize, 0..50),
        beyond in 0..20usize,
        writes in proptest::collection::vec((0..18u64, any::<u8>(), 0..16u8), 0..18),
    ) {
        let bench = Bench::new(50, image, 50 + beyond);
        let chunks = (50 + beyond as u64).div_ceil(4);
        let mut order = Vec::new();
        let mut contents = BTreeMap::new();
        for (chunk, byte, zero) in writes.into_iter().filter(|(chunk, ..)| *chunk < chunks) {
            let blocks = (0..4).map(|block| vec![if zero >> block & 1 == 1 { 0 } else { byte }; BLOCK_LEN]);
            if contents.insert(chunk, blocks.collect::<Vec<_>>().concat()).is_none() {
                order.push(chunk);
            }
        }
        let written: Vec<_> = order.into_iter().map(|chunk| (chunk, contents[&chunk].clone())).collect();
        bench.write_store(&written);
        let flat = bench.flatten(&mut go_on).unwrap();
        let content = fs::read(bench.path("flat")).unwrap();
        prop_assert!(content == bench.expected(&written));
        prop_assert_eq!(flat.allocated, Bytes(needed(&content)));
    }
}

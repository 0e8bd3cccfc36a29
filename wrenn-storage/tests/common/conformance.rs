//! What every root-disk backend has to do, as one body of tests for all of them.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use wrenn_base::{Bytes, SandboxId};
use wrenn_storage::{
    BackendChoice, BackendKind, Collision, DiskError, DiskSpec, ImageDetails, ImageRegistry, clone_file,
};

use super::{BLOCK, Bench, IMAGE_BLOCKS, check_blocks, open, soon, write_blocks};

/// The one body: what it checks holds for every backend.
pub(crate) fn conformance(choice: BackendChoice) {
    let bench = Bench::new(choice);
    keeps_what_was_written(&bench);
    grows_beyond_its_image(&bench);
    takes_a_whole_rewrite(&bench);
    isolates_sandboxes(&bench);
    goes_on_with_a_copied_cow_file(&bench);
    cleans_up_what_was_never_detached(&bench);
    removes_what_is_attached(&bench);
    flattens_to_what_it_shows(&bench);
    flattens_wholly_or_not_at_all(&bench);
    refuses_damaged_changes(&bench);
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

fn goes_on_with_a_copied_cow_file(bench: &Bench) {
    let (first, second) = (bench.sandbox(), bench.sandbox());
    let mut undo = bench.undo();
    let disk = first.attach(&mut undo);
    write_blocks(disk.device(), 100..300, 1);
    disk.detach(soon()).unwrap();
    clone_file(&first.cow, &second.cow).unwrap();

    let (disk_one, disk_two) = (first.attach(&mut undo), second.attach(&mut undo));
    write_blocks(disk_one.device(), 290..310, 2);
    write_blocks(disk_two.device(), 90..110, 3);
    let beside = |range: std::ops::Range<usize>, version: u8, block: usize| match block {
        block if range.contains(&block) => Some(version),
        100..300 => Some(1),
        _ => Some(0),
    };
    check_blocks(disk_one.device(), IMAGE_BLOCKS, |block| beside(290..310, 2, block));
    check_blocks(disk_two.device(), IMAGE_BLOCKS, |block| beside(90..110, 3, block));
    assert!(undo.run(Duration::from_secs(20)).is_empty());
}

/// What a process leaves that died: whoever attaches the same sandbox's disk next never heard of it.
fn cleans_up_what_was_never_detached(bench: &Bench) {
    let mut sandbox = bench.sandbox();
    sandbox.size = Some(Bytes(((IMAGE_BLOCKS + 9) * BLOCK) as u64));
    let mut lost = bench.undo();
    let disk = sandbox.attach(&mut lost);
    write_blocks(disk.device(), 3..6, 4);
    drop(disk);
    lost.commit();

    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    check_blocks(disk.device(), IMAGE_BLOCKS + 9, |block| match block {
        3..6 => Some(4),
        _ => (block < IMAGE_BLOCKS).then_some(0),
    });
    write_blocks(disk.device(), 6..7, 4);
    disk.detach(soon()).unwrap();
    bench.assert_nothing_attached();
    assert!(undo.run(Duration::from_secs(20)).is_empty());
}

fn removes_what_is_attached(bench: &Bench) {
    let sandbox = bench.sandbox();
    let mut lost = bench.undo();
    let disk = sandbox.attach(&mut lost);
    assert!(disk.allocated().unwrap() <= Bytes(fs::metadata(&sandbox.cow).unwrap().len()));
    write_blocks(disk.device(), 0..512, 7);
    let allocated = disk.allocated().unwrap();
    assert_eq!(allocated, Bytes(fs::metadata(&sandbox.cow).unwrap().blocks() * 512));
    assert!(allocated >= Bytes((512 * BLOCK) as u64), "{allocated} for what was written");
    drop(disk);
    lost.commit();
    for _ in 0..2 {
        bench.disks.remove(&sandbox.id, soon()).unwrap();
        assert!(!bench.disks.attached().unwrap().contains(&sandbox.id));
    }
    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    check_blocks(disk.device(), IMAGE_BLOCKS, |block| Some(if block < 512 { 7 } else { 0 }));
    assert!(undo.run(Duration::from_secs(20)).is_empty());
    bench.disks.remove(&SandboxId::random(), soon()).unwrap();
}

/// Blocks of the image become others, and zeros; beyond it there is a little; attached, detached and as an image.
fn flattens_to_what_it_shows(bench: &Bench) {
    let blocks = IMAGE_BLOCKS + 7777;
    let mut sandbox = bench.sandbox();
    sandbox.size = Some(Bytes((blocks * BLOCK) as u64));
    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    write_blocks(disk.device(), (0..blocks).filter(|block| block % 211 == 5), 1);
    write_blocks(disk.device(), [blocks - 1].into_iter(), 2);
    let device = open(disk.device());
    for block in 300..900 {
        device.write_all_at(&[0; BLOCK], (block * BLOCK) as u64).unwrap();
    }
    // What the registry takes for a file system.
    device.write_all_at(&[0x53, 0xef], 1024 + 0x38).unwrap();
    device.sync_all().unwrap();
    drop(device);
    let shown = fs::read(disk.device()).unwrap();
    assert_eq!(shown.len(), blocks * BLOCK);
    let needed = shown.chunks(BLOCK).filter(|block| **block != [0; BLOCK]).count() as u64 * BLOCK as u64;

    let cow = fs::read(&sandbox.cow).unwrap();
    let while_attached = bench.dir.path().join("flat");
    let (flat, _) = sandbox.flatten(&while_attached).unwrap();
    assert!(fs::read(&while_attached).unwrap() == shown);
    assert_eq!(flat.size, Bytes(shown.len() as u64));
    disk.detach(soon()).unwrap();

    let registry = ImageRegistry::open(bench.dir.path()).unwrap();
    let staged = registry.stage(&"flat".parse().unwrap()).unwrap();
    let (flat, read) = sandbox.flatten(&staged.rootfs()).unwrap();
    assert!(fs::read(staged.rootfs()).unwrap() == shown);
    assert!(fs::read(&sandbox.cow).unwrap() == cow, "it is only read");
    // What file systems add to a file.
    let spare = 128 << 10;
    assert!(flat.allocated <= Bytes(needed + spare), "{} for {}", flat.allocated, Bytes(needed));
    let taken = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    assert!(read <= taken(&bench.image()) + taken(&sandbox.cow), "{read} bytes were read: holes too");

    let image = registry.register(staged, ImageDetails::default(), Collision::Refuse, &mut |_| ()).unwrap();
    assert_eq!(image.size, flat.size);
    assert!(image.allocated().unwrap() <= Bytes(needed + spare));
    let mut above = bench.sandbox();
    above.image = image.rootfs;
    let disk = above.attach(&mut undo);
    assert!(fs::read(disk.device()).unwrap() == shown);
    write_blocks(disk.device(), 4..5, 9);
    disk.detach(soon()).unwrap();
    assert!(fs::read(&above.image).unwrap() == shown, "an image like any other");
    assert!(undo.run(Duration::from_secs(20)).is_empty());
}

fn flattens_wholly_or_not_at_all(bench: &Bench) {
    let sandbox = bench.sandbox();
    let dir = bench.dir.path().join("flat-dir");
    fs::create_dir(&dir).unwrap();
    let target = dir.join("flat");
    let left = || fs::read_dir(&dir).unwrap().count();
    let error = sandbox.flatten(&target).unwrap_err();
    assert!(matches!(error, DiskError::Io { .. }), "there is no disk: {error}");
    let mut undo = bench.undo();
    sandbox.attach(&mut undo).detach(soon()).unwrap();
    let mut pieces = 0;
    let error = bench.disks.flatten(&sandbox.spec(), &target, |_| {
        pieces += 1;
        if pieces == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(error, Err(DiskError::Cancelled)), "{error:?}");
    assert_eq!((pieces, left()), (3, 0));
    fs::write(&target, "another").unwrap();
    let error = sandbox.flatten(&target).unwrap_err();
    assert!(error.to_string().contains("flat-dir"), "{error}");
    assert_eq!((fs::read(&target).unwrap(), left()), (b"another".to_vec(), 1));
    assert!(undo.run(Duration::from_secs(20)).is_empty());
}

fn refuses_damaged_changes(bench: &Bench) {
    let sandbox = bench.sandbox();
    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    write_blocks(disk.device(), 0..8, 3);
    disk.detach(soon()).unwrap();
    let whole = fs::read(&sandbox.cow).unwrap();

    let longer = [&whole[..], &[0]].concat();
    let mut damaged = vec![("shorter", whole[1..].to_vec()), ("longer", longer), ("empty", Vec::new())];
    if bench.disks.backend() == BackendKind::DeviceMapper {
        // The header is magic number, valid flag, version, chunk size: 32 bits each. Then comes the list of chunks.
        const CHUNK: usize = 16 << 10;
        for (what, at, bytes) in [
            ("another magic number", 0, [0xff; 4]),
            ("marked invalid", 4, [0; 4]),
            ("another version", 8, [2, 0, 0, 0]),
            ("smaller chunks", 12, [8, 0, 0, 0]),
            ("beyond the disk", CHUNK + 4, [1, 0, 0, 0]),
            ("beyond the store", CHUNK + 12, [1, 0, 0, 0]),
            ("in the header's place", CHUNK + 8, [0; 4]),
            ("in the list's place", CHUNK + 8, [1, 0, 0, 0]),
        ] {
            let mut content = whole.clone();
            content[at..at + 4].copy_from_slice(&bytes);
            damaged.push((what, content));
        }
        damaged.push(("no header", [&[0; CHUNK], &whole[CHUNK..]].concat()));
    }
    let target = bench.dir.path().join("flat-of-damaged");
    for (what, content) in damaged {
        fs::write(&sandbox.cow, &content).unwrap();
        let mut undo = bench.undo();
        for error in [sandbox.try_attach(&mut undo).unwrap_err(), sandbox.flatten(&target).unwrap_err()] {
            let expected = match content.len() == whole.len() {
                true => matches!(error, DiskError::Damaged { .. }),
                false => matches!(error, DiskError::WrongLength { .. }),
            };
            assert!(expected, "{what}: {error}");
        }
        assert!(fs::read(&sandbox.cow).unwrap() == content, "{what}: it is unchanged");
        assert!(!target.exists(), "{what}");
        bench.assert_nothing_attached();
        assert!(undo.run(Duration::from_secs(20)).is_empty());
    }

    fs::write(&sandbox.cow, &whole).unwrap();
    let disk = sandbox.attach(&mut undo);
    check_blocks(disk.device(), IMAGE_BLOCKS, |block| Some(if block < 8 { 3 } else { 0 }));
    assert!(undo.run(Duration::from_secs(20)).is_empty());
}

//! Root disks by device-mapper. Needs root and device-mapper: the lab, where the machine has none.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, IMAGE_BLOCKS, check_blocks, pattern, soon, write_blocks};
use devicemapper::{DM, DevId, DmName, DmOptions};
use wrenn_base::{Bytes, Deadline, SandboxId};
use wrenn_storage::{
    BackendChoice, BackendKind, DiskError, DiskSpec, RootDisks, loop_devices_under, mapped_devices_of,
};

/// A bench on device-mapper, or `None`, saying why.
fn bench() -> Option<Bench> {
    match RootDisks::probe(&wrenn_base::HostId::random(), BackendChoice::DeviceMapper) {
        Ok(_) => Some(Bench::new(BackendChoice::DeviceMapper)),
        Err(error) if std::env::var_os("WRENN_IN_LAB").is_none() => {
            eprintln!("SKIP: {error}");
            None
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

#[test]
fn device_mapper_does_what_a_backend_does() {
    if let Some(bench) = bench() {
        assert_eq!(bench.disks.backend(), BackendKind::DeviceMapper);
        common::conformance(BackendChoice::DeviceMapper);
    }
}

#[test]
fn sandboxes_over_one_image_share_one_loop_device() {
    let Some(bench) = bench() else { return };
    let sandboxes: Vec<_> = (0..4).map(|_| bench.sandbox()).collect();
    let mut lists: Vec<_> = sandboxes.iter().map(|_| bench.undo()).collect();
    // All at once: whoever comes second must find what the first one makes.
    std::thread::scope(|scope| {
        for (sandbox, undo) in sandboxes.iter().zip(&mut lists) {
            scope.spawn(|| sandbox.attach(undo));
        }
    });
    let of_the_image = || {
        let loops = loop_devices_under(bench.dir.path()).unwrap();
        loops.iter().filter(|(_, backing)| backing.ends_with("image")).count()
    };
    assert_eq!(of_the_image(), 1);
    let attached = bench.disks.attached().unwrap();
    assert_eq!(attached.len(), 4);
    assert!(sandboxes.iter().all(|sandbox| attached.contains(&sandbox.id)));
    for undo in lists {
        assert_eq!(of_the_image(), 1, "it stays for as long as it has a user");
        assert!(undo.run(Duration::from_secs(20)).is_empty());
    }
    bench.assert_nothing_attached();
}

#[test]
fn a_busy_disk_is_waited_for_until_the_deadline_and_stays_whole() {
    let Some(bench) = bench() else { return };
    let sandbox = bench.sandbox();
    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    let user = File::open(disk.device()).unwrap();
    let refused = disk.detach(Deadline::after(Duration::from_millis(300))).unwrap_err();
    assert!(
        matches!(&refused, DiskError::Busy { device, .. } if device.contains(sandbox.id.as_str())),
        "{refused}"
    );
    let mut first = [0; 8];
    user.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(u64::from_le_bytes(first), 1, "still there and readable");

    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        drop(user);
    });
    disk.detach(soon()).unwrap();
    release.join().unwrap();
    assert!(undo.run(Duration::from_secs(5)).is_empty());
    bench.assert_nothing_attached();
}

/// What the kernel says of a snapshot's store, in sectors: what is used of it and in all, and what of that is metadata.
fn usage(bench: &Bench, sandbox: &SandboxId) -> [u64; 3] {
    let name = format!("wrenn-{}-{sandbox}", bench.host);
    let id = DevId::Name(DmName::new(&name).unwrap());
    let (_, lines) = DM::new().unwrap().table_status(&id, DmOptions::default()).unwrap();
    let status = &lines[0].3;
    let numbers =
        status.split(['/', ' ']).map(|number| number.parse().unwrap_or_else(|_| panic!("{status}")));
    numbers.collect::<Vec<_>>().try_into().unwrap()
}

/// Blocks that a device is written with past the page cache: that wants them aligned.
fn aligned(len: usize) -> (Vec<u8>, usize) {
    let buf = vec![0; len + common::BLOCK];
    let start = buf.as_ptr().align_offset(common::BLOCK);
    (buf, start)
}

/// Writes every block of a disk, one by one and far from in order, by several threads: the kernel commits its changes in
/// yet another.
fn write_all_directly(device: &Path, blocks: usize, version: u8) {
    const THREADS: usize = 4;
    // Odd, so that it reaches each of a power of two of blocks once.
    const STEP: usize = 7919;
    assert!(blocks.is_power_of_two());
    let write = |first: usize| {
        let file = fs::OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(device).unwrap();
        let (mut buf, start) = aligned(common::BLOCK);
        for number in (first..blocks).step_by(THREADS) {
            let block = number * STEP % blocks;
            buf[start..start + common::BLOCK].copy_from_slice(&pattern(block, version));
            file.write_all_at(&buf[start..start + common::BLOCK], (block * common::BLOCK) as u64).unwrap();
        }
        file.sync_all().unwrap();
    };
    std::thread::scope(|scope| (0..THREADS).for_each(|first| drop(scope.spawn(move || write(first)))));
}

fn check_all_directly(device: &Path, blocks: usize, version: u8) {
    const AT_ONCE: usize = 256;
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(device).unwrap();
    let (mut buf, start) = aligned(AT_ONCE * common::BLOCK);
    for first in (0..blocks).step_by(AT_ONCE) {
        let piece = &mut buf[start..start + AT_ONCE * common::BLOCK];
        file.read_exact_at(piece, (first * common::BLOCK) as u64).unwrap();
        for (block, content) in (first..).zip(piece.chunks(common::BLOCK)) {
            assert!(content == pattern(block, version), "block {block}");
        }
    }
}

/// Each of its chunks has been written, and metadata ends exactly with an area: the most that a store ever has to hold.
#[test]
fn a_store_holds_every_chunk_of_its_disk() {
    const CHUNK_SECTORS: u64 = 32;
    let Some(bench) = bench() else { return };
    let blocks = 16 * 1024;
    let chunks = blocks as u64 / 4;
    assert_eq!(chunks % 1024, 0, "whole areas");
    let mut sandbox = bench.sandbox();
    sandbox.size = Some(Bytes((blocks * common::BLOCK) as u64));
    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    for version in [8, 9] {
        write_all_directly(disk.device(), blocks, version);
        check_all_directly(disk.device(), blocks, version);
        let [used, room, metadata] = usage(&bench, &sandbox.id);
        assert_eq!((used - metadata) / CHUNK_SECTORS, chunks, "every chunk has its place");
        assert!(used <= room, "{used} of {room} sectors");
    }
    disk.detach(soon()).unwrap();
    let disk = sandbox.attach(&mut undo);
    check_all_directly(disk.device(), blocks, 9);
    assert_eq!((usage(&bench, &sandbox.id)[0]) / CHUNK_SECTORS, 1 + chunks + chunks / 1024 + 1);
    let flat = bench.dir.path().join("flat");
    sandbox.flatten(&flat).unwrap();
    check_blocks(&flat, blocks, |_| Some(9));
    assert!(undo.run(Duration::from_secs(20)).is_empty());
}

/// The whole of a larger disk is rewritten through the snapshot, which must not overflow its store.
#[test]
fn a_guest_that_fills_its_whole_disk_keeps_its_snapshot() {
    let Some(bench) = bench() else { return };
    let blocks = 16 * 1024 + 5;
    let mut sandbox = bench.sandbox();
    sandbox.size = Some(Bytes((blocks * common::BLOCK) as u64));
    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    write_blocks(disk.device(), 0..blocks, 8);
    check_blocks(disk.device(), blocks, |_| Some(8));
    disk.detach(soon()).unwrap();
    let disk = sandbox.attach(&mut undo);
    check_blocks(disk.device(), blocks, |_| Some(8));
    assert!(undo.run(Duration::from_secs(20)).is_empty());
}

/// A process of its own with an attached disk, which it never detaches.
struct Holder(Child);

impl Holder {
    fn start(bench: &Bench, sandbox: &SandboxId) -> Self {
        #[allow(clippy::disallowed_methods, reason = "the process that is killed is this test's own program")]
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "attaches_and_waits_to_be_killed"])
            .env(HOST, bench.host.as_str())
            .env(DIR, bench.dir.path())
            .env(SANDBOX, sandbox.as_str())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn wait_until_attached(&mut self, bench: &Bench, sandbox: &SandboxId) {
        let start = Instant::now();
        while !attached_mark(bench.dir.path(), sandbox).exists() {
            assert!(start.elapsed() < Duration::from_secs(60), "the child never attached its disk");
            assert!(self.0.try_wait().unwrap().is_none(), "the child ended early");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const HOST: &str = "WRENN_TEST_HOST";
const DIR: &str = "WRENN_TEST_DIR";
const SANDBOX: &str = "WRENN_TEST_SANDBOX";

/// The file that a holder makes once its disk is attached.
fn attached_mark(dir: &Path, sandbox: &SandboxId) -> PathBuf {
    dir.join(format!("{sandbox}.attached"))
}

fn size() -> Option<Bytes> {
    Some(Bytes(((IMAGE_BLOCKS + 1) * common::BLOCK) as u64))
}

/// The process that other tests kill.
#[test]
#[ignore = "not a test: started, and killed, by others"]
fn attaches_and_waits_to_be_killed() {
    let dir = std::env::var_os(DIR).expect("started by the test that kills it");
    let (dir, host) = (Path::new(&dir), std::env::var(HOST).unwrap().parse().unwrap());
    let sandbox: SandboxId = std::env::var(SANDBOX).unwrap().parse().unwrap();
    let disks = RootDisks::probe(&host, BackendChoice::DeviceMapper).unwrap();
    let (image, cow) = (dir.join("image"), dir.join(format!("{sandbox}.cow")));
    let spec = DiskSpec { sandbox: &sandbox, image: &image, cow: &cow, size: size() };
    let reaper = wrenn_base::Reaper::start();
    let mut undo = wrenn_base::UndoList::new(&reaper);
    let disk = disks.attach(&spec, &mut undo).unwrap();
    write_blocks(disk.device(), 0..4, 7);
    fs::write(attached_mark(dir, &sandbox), "").unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn the_next_attach_cleans_up_after_a_killed_process() {
    let Some(bench) = bench() else { return };
    let mut sandbox = bench.sandbox();
    sandbox.size = size();
    let mut holder = Holder::start(&bench, &sandbox.id);
    holder.wait_until_attached(&bench, &sandbox.id);
    drop(holder);
    assert_eq!(bench.disks.attached().unwrap(), std::slice::from_ref(&sandbox.id));
    assert_eq!(mapped_devices_of(&bench.host).unwrap().len(), 2, "disk and base");

    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    check_blocks(disk.device(), IMAGE_BLOCKS + 1, |block| match block {
        0..4 => Some(7),
        IMAGE_BLOCKS => None,
        _ => Some(0),
    });
    disk.detach(soon()).unwrap();
    bench.assert_nothing_attached();
    assert!(undo.run(Duration::from_secs(5)).is_empty());
}

/// The kernel counts the users of an image's loop device, whichever processes they belong to and belonged to.
#[test]
fn processes_share_an_images_loop_device_and_it_goes_with_the_last_disk() {
    let Some(bench) = bench() else { return };
    let (own, first, second) = (bench.sandbox(), bench.sandbox(), bench.sandbox());
    // At once, so that they race for it.
    let mut holders = [&first, &second].map(|sandbox| Holder::start(&bench, &sandbox.id));
    let mut undo = bench.undo();
    let disk = own.attach(&mut undo);
    for (holder, sandbox) in holders.iter_mut().zip([&first, &second]) {
        holder.wait_until_attached(&bench, &sandbox.id);
    }
    let devices = || -> Vec<PathBuf> {
        let loops = loop_devices_under(bench.dir.path()).unwrap();
        loops
            .into_iter()
            .filter(|(_, backing)| backing.ends_with("image"))
            .map(|(device, _)| device)
            .collect()
    };
    let shared = devices();
    assert_eq!(shared.len(), 1, "{shared:?}");
    let sysfs = Path::new("/sys/block").join(shared[0].file_name().unwrap());
    assert_eq!(fs::read_to_string(sysfs.join("ro")).unwrap(), "1\n", "nobody can write to the image");

    disk.detach(soon()).unwrap();
    assert_eq!(devices(), shared, "others use it");
    drop(holders);
    assert_eq!(devices(), shared, "their disks are there still");
    bench.disks.remove(&first.id, soon()).unwrap();
    assert_eq!(devices(), shared, "one is");
    bench.disks.remove(&second.id, soon()).unwrap();
    bench.assert_nothing_attached();
    assert!(undo.run(Duration::from_secs(5)).is_empty());
}

#[test]
fn orphans_are_found_and_removed_by_sandbox() {
    let Some(bench) = bench() else { return };
    let (kept, orphan) = (bench.sandbox(), bench.sandbox());
    let mut undo = bench.undo();
    kept.attach(&mut undo);
    let mut lost = bench.undo();
    orphan.attach(&mut lost);
    lost.commit();
    bench.disks.remove(&orphan.id, soon()).unwrap();
    bench.disks.remove(&orphan.id, soon()).unwrap();
    assert_eq!(bench.disks.attached().unwrap(), std::slice::from_ref(&kept.id));
    assert!(orphan.cow.exists());
    assert!(undo.run(Duration::from_secs(20)).is_empty());
    bench.assert_nothing_attached();
}

//! Root disks by device-mapper. Needs root and device-mapper: the lab, where the machine has none.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, IMAGE_BLOCKS, check_blocks, soon, write_blocks};
use wrenn_base::{Bytes, Deadline};
use wrenn_storage::{
    BackendChoice, BackendKind, DiskError, RootDisks, loop_devices_under, mapped_devices_of,
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

#[test]
fn a_damaged_store_is_refused_and_leaves_nothing() {
    let Some(bench) = bench() else { return };
    let sandbox = bench.sandbox();
    let mut undo = bench.undo();
    let disk = sandbox.attach(&mut undo);
    write_blocks(disk.device(), 0..8, 3);
    disk.detach(soon()).unwrap();
    let whole = fs::read(&sandbox.cow).unwrap();

    // The header is magic number, valid flag, version, chunk size: 32 bits each.
    let refused = |at: u64, bytes: &[u8]| {
        fs::write(&sandbox.cow, &whole).unwrap();
        common::open(&sandbox.cow).write_all_at(bytes, at).unwrap();
        let mut undo = bench.undo();
        let error = sandbox.try_attach(&mut undo).unwrap_err();
        assert!(undo.run(Duration::from_secs(20)).is_empty());
        bench.assert_nothing_attached();
        error
    };
    let error = refused(4, &[0; 4]);
    assert!(matches!(error, DiskError::Damaged { .. }), "marked invalid: {error}");
    for (at, bytes) in [(0, [0xff; 4]), (8, [0xff; 4])] {
        let error = refused(at, &bytes);
        assert!(matches!(error, DiskError::Mapper { .. } | DiskError::Damaged { .. }), "at {at}: {error}");
    }

    fs::write(&sandbox.cow, &whole).unwrap();
    let disk = sandbox.attach(&mut undo);
    check_blocks(disk.device(), IMAGE_BLOCKS, |block| Some(if block < 8 { 3 } else { 0 }));
    assert!(undo.run(Duration::from_secs(20)).is_empty());
}

const HOST: &str = "WRENN_TEST_HOST";
const DIR: &str = "WRENN_TEST_DIR";
const SANDBOX: &str = "aaaabbbbccccdddd";

#[test]
fn the_next_attach_cleans_up_after_a_killed_process() {
    let Some(bench) = bench() else { return };
    let cow = bench.dir.path().join("cow");
    #[allow(clippy::disallowed_methods, reason = "the process that is killed is this test's own program")]
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "attaches_and_waits_to_be_killed"])
        .env(HOST, bench.host.as_str())
        .env(DIR, bench.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !bench.dir.path().join("attached").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "the child never attached its disk");
        assert!(child.try_wait().unwrap().is_none(), "the child ended early");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let sandbox = SANDBOX.parse().unwrap();
    assert_eq!(bench.disks.attached().unwrap(), [sandbox]);
    assert_eq!(mapped_devices_of(&bench.host).unwrap().len(), 2, "disk and base");

    let mut undo = bench.undo();
    let image = bench.image();
    let spec = wrenn_storage::DiskSpec {
        sandbox: &SANDBOX.parse().unwrap(),
        image: &image,
        cow: &cow,
        size: size(),
    };
    let disk = bench.disks.attach(&spec, &mut undo).unwrap();
    check_blocks(disk.device(), IMAGE_BLOCKS + 1, |block| match block {
        0..4 => Some(7),
        IMAGE_BLOCKS => None,
        _ => Some(0),
    });
    disk.detach(soon()).unwrap();
    bench.assert_nothing_attached();
    assert!(undo.run(Duration::from_secs(5)).is_empty());
}

fn size() -> Option<Bytes> {
    Some(Bytes(((IMAGE_BLOCKS + 1) * common::BLOCK) as u64))
}

/// The process that the test above kills.
#[test]
#[ignore = "not a test: started, and killed, by the_next_attach_cleans_up_after_a_killed_process"]
fn attaches_and_waits_to_be_killed() {
    let dir = std::env::var_os(DIR).expect("started by the test that kills it");
    let (dir, host) = (Path::new(&dir), std::env::var(HOST).unwrap().parse().unwrap());
    let disks = RootDisks::probe(&host, BackendChoice::DeviceMapper).unwrap();
    let (image, cow) = (dir.join("image"), dir.join("cow"));
    let spec = wrenn_storage::DiskSpec {
        sandbox: &SANDBOX.parse().unwrap(),
        image: &image,
        cow: &cow,
        size: size(),
    };
    let reaper = wrenn_base::Reaper::start();
    let mut undo = wrenn_base::UndoList::new(&reaper);
    let disk = disks.attach(&spec, &mut undo).unwrap();
    write_blocks(disk.device(), 0..4, 7);
    fs::write(dir.join("attached"), "").unwrap();
    loop {
        std::thread::park();
    }
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

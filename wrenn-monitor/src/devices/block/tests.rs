use std::fs;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use wrenn_vmm::api::{RateLimiter, TokenBucket};

use super::*;
use crate::devices::virtio::chaos::chaos;
use crate::devices::virtio::testing::{BUFFERS, Descriptor, Driver, NEXT, into, out};
use crate::devices::virtio::{VirtioMmio, VirtioMmioState};
use crate::memory::GuestMemory;

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const SECTORS: usize = 64;

fn content() -> Vec<u8> {
    (0..SECTORS * 512).map(|i| (i / 512 + i) as u8).collect()
}

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content()).unwrap();
    file
}

fn drive(path: &Path) -> Drive {
    Drive {
        drive_id: "root".into(),
        is_root_device: true,
        path_on_host: Some(path.to_owned()),
        cache_type: Some(CacheType::Writeback),
        ..Drive::default()
    }
}

fn driver(drive: &Drive) -> Driver {
    Driver::new(Block::open(drive).unwrap())
}

impl Driver {
    fn put_header(&self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.put(HEADER, &header);
    }

    /// Sends one request and returns its status byte.
    fn request(&mut self, kind: u32, sector: u64, data: &[Descriptor]) -> u8 {
        self.put_header(kind, sector);
        self.put(STATUS, &[0xee]);
        let mut chain = vec![out(HEADER, 16)];
        chain.extend(data);
        chain.push(into(STATUS, 1));
        self.post(0, &chain);
        self.notify(0);
        assert_eq!(self.answers(0).len(), 1);
        assert!(self.interrupted());
        self.get(STATUS, 1)[0]
    }
}

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

#[test]
fn what_is_written_is_read_back_in_pieces() {
    let image = image();
    let mut driver = driver(&drive(image.path()));
    let written: Vec<u8> = (0..1536).map(|i| (i * 7) as u8).collect();
    driver.put(DATA, &written);
    // Three sectors from pieces that are no sectors.
    let pieces = [out(DATA, 100), out(DATA + 100, 1000), out(DATA + 1100, 436)];
    assert_eq!(driver.request(OUT, 5, &pieces), OK);
    assert_eq!(fs::read(image.path()).unwrap()[5 * 512..8 * 512], written);
    let pieces = [into(0x8_0000, 1), into(0x9_0000, 1535)];
    assert_eq!(driver.request(IN, 5, &pieces), OK);
    let mut read = driver.get(0x8_0000, 1);
    read.extend(driver.get(0x9_0000, 1535));
    assert_eq!(read, written);
    assert_eq!(driver.request(FLUSH, 0, &[]), OK);
    assert_eq!(driver.request(IN, 0, &[]), OK, "nothing is read as asked");
}

#[test]
fn header_and_status_may_share_descriptors_with_data() {
    let image = image();
    let mut driver = driver(&drive(image.path()));
    driver.put_header(IN, 1);
    let chain = [out(HEADER, 7), out(HEADER + 7, 9), into(DATA, 513)];
    let head = driver.post(0, &chain);
    driver.notify(0);
    assert_eq!(driver.answers(0), [(head.into(), 513)]);
    assert_eq!(driver.get(DATA, 512), content()[512..1024]);
    assert_eq!(driver.get(DATA + 512, 1), [OK]);
}

#[test]
fn a_read_marks_exactly_its_pages_dirty() {
    let image = image();
    let mut driver = driver(&drive(image.path()));
    for region in driver.memory.iter() {
        region.get_mmap().bitmap().reset();
    }
    assert_eq!(driver.request(IN, 0, &[into(0x8_0000, 8192)]), OK);
    let dirty = |address: u64| {
        let (region, offset) = driver.memory.to_region_addr(GuestAddress(address)).unwrap();
        region.bitmap().dirty_at(offset.0 as usize)
    };
    let pages = [0x7_f000, 0x8_0000, 0x8_1000, 0x8_2000].map(dirty);
    assert_eq!(pages, [false, true, true, false]);
    assert!(dirty(STATUS), "the status byte");
    assert!(dirty(driver.rings(0)[2]), "the used ring");
}

#[test]
fn requests_that_make_no_sense_get_an_error_and_harm_nothing() {
    let image = image();
    let mut driver = driver(&drive(image.path()));
    let sectors = SECTORS as u64;
    for (kind, sector, data, status) in [
        (IN, sectors, &[into(DATA, 512)][..], IOERR),
        (IN, sectors - 1, &[into(DATA, 1024)], IOERR),
        (IN, u64::MAX, &[into(DATA, 512)], IOERR),
        (IN, u64::MAX / 512 + 1, &[into(DATA, 512)], IOERR),
        (IN, 0, &[into(DATA, 511)], IOERR),
        (OUT, sectors, &[out(DATA, 512)], IOERR),
        (OUT, u64::MAX, &[out(DATA, 512)], IOERR),
        (OUT, 0, &[out(DATA, 513)], IOERR),
        (GET_ID, 0, &[into(DATA, 19)], IOERR),
        (GET_ID, 0, &[into(DATA, 20)], OK),
        (11, 0, &[out(DATA, 16)], UNSUPP),
        (u32::MAX, 0, &[], UNSUPP),
        (IN, sectors - 1, &[into(DATA, 512)], OK),
    ] {
        assert_eq!(driver.request(kind, sector, data), status, "{kind} {sector} {data:?}");
    }
    assert_eq!(fs::read(image.path()).unwrap(), content());
    // A header that is cut short, in a chain that is otherwise whole.
    driver.post(0, &[out(HEADER, 15), into(STATUS, 1)]);
    driver.notify(0);
    assert_eq!((driver.answers(0).len(), driver.get(STATUS, 1)), (1, vec![IOERR]));
    assert!(!driver.stopped());
}

#[test]
fn the_guest_reads_the_drive_s_name_and_size() {
    let image = image();
    fs::write(image.path(), &content()[..1000]).unwrap();
    let long = Drive { drive_id: "a_very_long_name_of_a_drive".into(), ..drive(image.path()) };
    let mut driver = driver(&long);
    assert_eq!(driver.request(GET_ID, 0, &[into(DATA, 20)]), OK);
    assert_eq!(driver.get(DATA, 20), b"a_very_long_name_of_");
    // 1000 bytes are one whole sector.
    assert_eq!([driver.read(0x100), driver.read(0x104), driver.read(0x10c)], [1, 0, MAX_SEGMENTS]);
    assert_eq!(driver.request(IN, 1, &[into(DATA, 512)]), IOERR);
}

#[test]
fn a_read_only_drive_is_read_only() {
    let image = image();
    let mut permissions = fs::metadata(image.path()).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(image.path(), permissions).unwrap();
    let mut driver = driver(&Drive { is_read_only: Some(true), ..drive(image.path()) });
    assert_ne!(driver.offered() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(driver.request(OUT, 0, &[out(DATA, 512)]), IOERR);
    assert_eq!(driver.request(IN, 0, &[into(DATA, 512)]), OK);
    assert_eq!(driver.request(FLUSH, 0, &[]), OK);
    assert_eq!(fs::read(image.path()).unwrap(), content());
}

#[test]
fn flush_is_offered_where_it_is_meant() {
    let image = image();
    let flush = 1 << VIRTIO_BLK_F_FLUSH;
    assert_ne!(driver(&drive(image.path())).offered() & flush, 0);
    let unsafe_drive = Drive { cache_type: None, ..drive(image.path()) };
    let mut driver = driver(&unsafe_drive);
    assert_eq!(driver.offered() & flush, 0);
    assert_eq!(driver.request(FLUSH, 0, &[]), OK, "asked for all the same");
}

#[test]
fn a_file_that_shrinks_gives_errors() {
    let image = image();
    let mut driver = driver(&drive(image.path()));
    image.as_file().set_len(512).unwrap();
    assert_eq!(driver.request(IN, 0, &[into(DATA, 1024)]), IOERR);
    assert_eq!(driver.request(IN, 0, &[into(DATA, 512)]), OK);
}

#[test]
fn broken_chains_stop_the_device_until_it_is_reset() {
    let image = image();
    let mut driver = driver(&drive(image.path()));
    let header = out(HEADER, 16);
    let loops = Descriptor { flags: NEXT, next: 7, ..out(HEADER, 16) };
    let chains: [&[Descriptor]; 6] = [
        // No room for the status.
        &[header],
        // The device's part before the driver's.
        &[into(STATUS, 1), header],
        // Outside memory, across its end, and in its hole.
        &[header, into(u64::MAX - 1, 512), into(STATUS, 1)],
        &[header, into(0x20_0000 - 8, 512), into(STATUS, 1)],
        &[header, into(0x30_0000, 512), into(STATUS, 1)],
        // 4 GiB and more in one chain.
        &[header, into(0, u32::MAX), into(0, u32::MAX), into(STATUS, 1)],
    ];
    for chain in chains {
        driver.put_header(IN, 0);
        driver.post(0, chain);
        driver.notify(0);
        assert!(driver.stopped() && driver.interrupted(), "{chain:?}");
        // Nothing more is served.
        driver.post(0, &[header, into(DATA, 512), into(STATUS, 1)]);
        driver.notify(0);
        assert_eq!(driver.answers(0), []);
        driver.bring_up(u64::MAX);
        assert_eq!(driver.request(IN, 0, &[into(DATA, 512)]), OK);
        driver.bring_up(u64::MAX);
    }
    // A chain that never ends.
    driver.put_descriptor(0, 7, loops);
    driver.offer(0, 7);
    driver.notify(0);
    assert!(driver.stopped());
    assert_eq!(fs::read(image.path()).unwrap(), content());
}

#[test]
fn drives_that_cannot_be_had_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    let image = image();
    let with = |change: fn(&mut Drive)| {
        let mut drive = drive(image.path());
        change(&mut drive);
        drive
    };
    for (drive, part) in [
        (drive(&missing), "cannot be opened at"),
        (drive(dir.path()), "cannot be"),
        (drive(Path::new("/dev/null")), "neither a regular file nor a block device"),
        (with(|d| d.path_on_host = None), "has no path_on_host"),
        (with(|d| d.socket = Some("/s".into())), "vhost-user"),
        (with(|d| d.io_engine = Some(IoEngine::Async)), "Async"),
    ] {
        let error = Block::open(&drive).unwrap_err().to_string();
        assert!(error.starts_with("drive \"root\"") && error.contains(part), "{error}");
    }
}

fn restored(state: VirtioMmioState) -> impl FnOnce(GuestMemory, EventFd) -> VirtioMmio {
    move |memory, irq| VirtioMmio::restore(state, memory, irq, &[]).unwrap()
}

#[test]
fn a_request_that_waits_through_a_snapshot_is_served_after_it() {
    let image = image();
    let mut driver = driver(&drive(image.path()));
    assert_eq!(driver.request(IN, 0, &[into(DATA, 512)]), OK);
    driver.mmio.suspend();
    driver.put_header(IN, 2);
    let head = driver.post(0, &[out(HEADER, 16), into(DATA, 512), into(STATUS, 1)]);
    driver.notify(0);
    assert_eq!(driver.answers(0), [], "a suspended device touches nothing");
    let state = driver.mmio.save().unwrap();
    let json = serde_json::to_vec(&state).unwrap();

    let mut driver = driver.move_to(restored(serde_json::from_slice(&json).unwrap()));
    driver.turn();
    assert_eq!(driver.answers(0), []);
    driver.mmio.resume();
    driver.turn();
    assert_eq!(driver.answers(0), [(head.into(), 513)]);
    assert!(driver.interrupted());
    assert_eq!(driver.get(DATA, 512), content()[1024..1536]);
    assert_eq!(driver.request(OUT, 0, &[out(DATA, 512)]), OK);
}

#[test]
fn a_limit_holds_before_and_after_a_snapshot() {
    let image = image();
    let bucket = TokenBucket { size: 1024, refill_time: 200, one_time_burst: Some(1024) };
    let limit = RateLimiter { bandwidth: Some(bucket), ops: None };
    let mut driver = driver(&Drive { rate_limiter: Some(limit), ..drive(image.path()) });
    driver.put_header(IN, 0);
    let post = |driver: &mut Driver| {
        driver.post(0, &[out(HEADER, 16), into(DATA, 512), into(STATUS, 1)]);
        driver.notify(0);
        driver.answered(0)
    };
    // Of 529 bytes each: the burst and what the bucket holds are good for four.
    assert_eq!((0..5).map(|_| post(&mut driver)).collect::<Vec<_>>(), [1, 2, 3, 4, 4]);
    driver.mmio.suspend();
    let state = driver.mmio.save().unwrap();
    let mut driver = driver.move_to(restored(state));
    driver.mmio.resume();
    driver.turn();
    // It begins with a full bucket, and without the burst.
    assert_eq!((driver.answered(0), post(&mut driver), post(&mut driver)), (5, 6, 6));
    driver.turn_for(std::time::Duration::from_secs(20), |driver| driver.answered(0) == 7);
    assert_eq!(driver.get(STATUS, 1), [OK]);
}

#[test]
fn a_saved_drive_needs_its_file_as_large_as_it_was() {
    let image = image();
    let driver = driver(&drive(image.path()));
    let state = driver.mmio.save().unwrap();
    let restore = |state: &VirtioMmioState| {
        let irq = EventFd::new(0).unwrap();
        VirtioMmio::restore(state.clone(), driver.memory.clone(), irq, &[])
            .map(drop)
            .map_err(|e| e.to_string())
    };
    image.as_file().write_all_at(&[1; 512], (SECTORS * 512) as u64).unwrap();
    restore(&state).unwrap();
    image.as_file().set_len(512 * 63).unwrap();
    let error = restore(&state).unwrap_err();
    assert!(error.contains("had 64 sectors when its state was saved"), "{error}");
    image.close().unwrap();
    assert!(restore(&state).unwrap_err().contains("cannot be opened"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_driver_breaks_the_disk(chaos in chaos()) {
        let image = image();
        let mut driver = driver(&drive(image.path()));
        driver.suffer(&chaos, 1);
        prop_assert_eq!(driver.request(IN, 63, &[into(DATA, 512)]), OK);
        prop_assert_eq!(fs::metadata(image.path()).unwrap().len(), (SECTORS * 512) as u64);
    }
}

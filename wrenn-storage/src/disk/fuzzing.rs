//! What the fuzzer of cow files runs.

use super::store::{Changes, Layout};

/// Small chunks, so that a small input fills an area.
const CHUNK: u64 = 512;
const DISK: u64 = 70 * CHUNK - 100;
const HEADER: &[u8; 16] = b"SnAp\x01\0\0\0\x01\0\0\0\x01\0\0\0";

/// Decodes `bytes` as the header of a cow file and its lists of changes, one after the other.
///
/// Few bytes are a header, so an input is tried as it is and with a header that is right.
///
/// # Panics
/// Where the decoder accepts what it should not: that is what a fuzzer looks for.
pub fn cow_store(bytes: &[u8]) {
    let mut headed = bytes.to_vec();
    headed.resize(bytes.len().max(HEADER.len()), 0);
    headed[..HEADER.len()].copy_from_slice(HEADER);
    for bytes in [bytes, &headed] {
        let Some(changes) = read(bytes) else { continue };
        let list = check(&changes);
        assert!(list.is_empty() || !changes.are_new());
        let again = read(&encode(&list)).expect("it means one thing");
        assert!(!again.are_new() && again.runs().eq(changes.runs()));
    }
}

fn layout() -> Layout {
    Layout::new(CHUNK, DISK)
}

/// Reads what is left of an input as zeros, as the holes of a file are read.
fn read(bytes: &[u8]) -> Option<Changes> {
    let read = |chunk: u64, buf: &mut [u8]| {
        let place = if chunk == 0 { 0 } else { 1 + (chunk - 1) / (layout().area(1) - 1) };
        assert!(chunk == 0 || layout().area(place - 1) == chunk, "only areas are read");
        let rest = bytes.get((place * CHUNK) as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        buf[len..].fill(0);
        Ok(())
    };
    Changes::read(layout(), read).ok()
}

/// Holds changes against what whoever reads them relies on; returns them as chunks of the disk and of the store.
fn check(changes: &Changes) -> Vec<(u64, u64)> {
    let (mut list, mut end) = (Vec::new(), 0);
    for run in changes.runs() {
        assert!(run.disk.start >= end && run.disk.start < run.disk.end && run.disk.end <= DISK);
        end = run.disk.end;
        let chunks = (run.disk.end - run.disk.start).div_ceil(CHUNK);
        list.extend((0..chunks).map(|n| (run.disk.start / CHUNK + n, run.at / CHUNK + n)));
    }
    let mut places: Vec<_> = list.iter().map(|(_, place)| *place).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), list.len(), "each place is used once");
    let areas = [0, 1, 2].map(|index| layout().area(index));
    assert!(places.iter().all(|place| *place > 1 && !areas.contains(place)));
    assert!(places.iter().all(|place| (place + 1) * CHUNK <= layout().store_len()));
    list
}

fn encode(list: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = HEADER.to_vec();
    bytes.resize(CHUNK as usize, 0);
    for (disk, place) in list {
        bytes.extend_from_slice(&disk.to_le_bytes());
        bytes.extend_from_slice(&place.to_le_bytes());
    }
    bytes
}

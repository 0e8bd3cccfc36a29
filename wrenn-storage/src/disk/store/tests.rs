use proptest::prelude::*;
use proptest::sample::SizeRange;

use super::*;

const CHUNK: u64 = 512;
/// Two full areas and a part of a third, the last chunk a part of one.
const LAYOUT: Layout = Layout::new(CHUNK, 70 * CHUNK - 100);

/// The places that the kernel gives to what is written, in its order.
pub(in crate::disk) fn places(layout: Layout) -> impl Iterator<Item = u64> {
    let stride = layout.entries_per_area() + 1;
    (2..).filter(move |chunk| chunk % stride != 1)
}

/// A whole store as the kernel leaves it, each change a chunk of the disk and its place. Content is all zeros.
pub(in crate::disk) fn encode(layout: Layout, changes: &[(u64, u64)]) -> Vec<u8> {
    let mut store = vec![0; layout.store_len() as usize];
    store[..4].copy_from_slice(b"SnAp");
    for (at, number) in [(4, 1), (8, 1), (12, (layout.chunk / 512) as u32)] {
        store[at..at + 4].copy_from_slice(&u32::to_le_bytes(number));
    }
    for (index, (disk, place)) in changes.iter().enumerate() {
        let at = entry(layout, index);
        store[at..at + 8].copy_from_slice(&disk.to_le_bytes());
        store[at + 8..at + 16].copy_from_slice(&place.to_le_bytes());
    }
    store
}

/// Where entry number `index` is.
fn entry(layout: Layout, index: usize) -> usize {
    let per_area = layout.entries_per_area() as usize;
    layout.area((index / per_area) as u64) as usize * layout.chunk as usize + index % per_area * 16
}

fn read(layout: Layout, store: &[u8]) -> Result<Changes, CowFault> {
    let chunk = layout.chunk as usize;
    let read = |number: u64, buf: &mut [u8]| {
        buf.copy_from_slice(&store[number as usize * chunk..][..chunk]);
        Ok(())
    };
    Changes::read(layout, read).map_err(|error| match error {
        StoreError::Fault(fault) => fault,
        StoreError::Read(source) => panic!("{source}"),
    })
}

/// So many changes, of chunks 0, 1, 2, … in the kernel's places.
fn first(count: usize) -> Vec<(u64, u64)> {
    (0..).zip(places(LAYOUT)).take(count).collect()
}

/// What a store becomes where somebody writes `bytes` at `at`.
fn altered(changes: &[(u64, u64)], at: usize, bytes: &[u8]) -> Result<Changes, CowFault> {
    let mut store = encode(LAYOUT, changes);
    store[at..at + bytes.len()].copy_from_slice(bytes);
    read(LAYOUT, &store)
}

#[test]
fn the_format_is_the_kernels() {
    // `snapshot … P 8`, with chunks 5, 6 and 2 of 4 KiB written in that order.
    let layout = Layout::new(4096, 16 * 4096);
    let mut store = vec![0; layout.store_len() as usize];
    store[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    store[4096..4096 + 48].copy_from_slice(
        b"\x05\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0",
    );
    let runs: Vec<_> = read(layout, &store).unwrap().runs().collect();
    let run = |disk: Range<u64>, at: u64| Run { disk: disk.start * 4096..disk.end * 4096, at: at * 4096 };
    assert_eq!(runs, [run(2..3, 4), run(5..7, 2)]);
}

#[test]
fn a_store_of_zeros_is_a_new_one() {
    assert_eq!(read(LAYOUT, &vec![0; LAYOUT.store_len() as usize]).unwrap().runs().count(), 0);
    assert_eq!(read(LAYOUT, &encode(LAYOUT, &[])).unwrap().runs().count(), 0);
}

#[test]
fn runs_end_with_the_disk_and_at_areas() {
    let runs: Vec<_> = read(LAYOUT, &encode(LAYOUT, &first(70))).unwrap().runs().collect();
    // 32 chunks behind each area's entries.
    let expected = [(0, 32 * CHUNK, 2), (32 * CHUNK, 64 * CHUNK, 35), (64 * CHUNK, LAYOUT.disk, 68)]
        .map(|(start, end, place)| Run { disk: start..end, at: place * CHUNK });
    assert_eq!(runs, expected);
}

#[test]
fn headers_that_are_none_are_refused() {
    let (one, version, sectors) = (first(1), 2u32.to_le_bytes(), 2u32.to_le_bytes());
    for (at, bytes, fault) in [
        (0, &[0xff; 4][..], CowFault::Foreign),
        (0, &[0; 4], CowFault::Foreign),
        (4, &[0; 4], CowFault::Invalidated),
        (4, &[3, 0, 0, 0], CowFault::Foreign),
        (8, &version, CowFault::Version { found: 2 }),
        (12, &sectors, CowFault::ChunkSize { found: 2, expected: 1 }),
        (12, &[0xff; 4], CowFault::ChunkSize { found: u32::MAX, expected: 1 }),
        (0, &[0; 16], CowFault::HeaderLost),
    ] {
        assert_eq!(altered(&one, at, bytes), Err(fault), "at {at}");
    }
}

#[test]
fn lists_that_cannot_be_are_refused() {
    let changes = first(40);
    let place = |chunk: u64| [&1u64.to_le_bytes()[..], &chunk.to_le_bytes()].concat();
    let area = LAYOUT.area(1);
    let content = LAYOUT.store_chunks();
    for (what, index, bytes, fault) in [
        ("disk's end", 3, 70u64.to_le_bytes().to_vec(), CowFault::OutsideDisk { chunk: 70 }),
        ("far beyond it", 3, vec![0xff; 8], CowFault::OutsideDisk { chunk: u64::MAX }),
        ("first area", 1, place(1), CowFault::OutsideStore { chunk: 1 }),
        ("second area", 1, place(area), CowFault::OutsideStore { chunk: area }),
        ("store's end", 1, place(content), CowFault::OutsideStore { chunk: content }),
        ("far beyond it", 1, place(u64::MAX), CowFault::OutsideStore { chunk: u64::MAX }),
        ("same place", 1, place(2), CowFault::Twice { chunk: 1 }),
        ("same chunk", 35, 7u64.to_le_bytes().to_vec(), CowFault::Twice { chunk: 7 }),
        ("lost entry", 5, vec![0; 16], CowFault::ListBroken),
        ("lost area", 0, vec![0; 512], CowFault::ListBroken),
        ("stray entry", 41, place(50), CowFault::ListBroken),
        ("stray area", 64, place(50), CowFault::ListBroken),
    ] {
        assert_eq!(altered(&changes, entry(LAYOUT, index), &bytes), Err(fault), "{what}");
    }
}

#[test]
fn a_list_never_has_more_than_the_disk_has_chunks() {
    let small = Layout::new(CHUNK, 5 * CHUNK);
    // The only area full, of the same few chunks.
    let changes: Vec<_> = (0..32).map(|number| (number % 5, 2 + number % 5)).collect();
    assert_eq!(read(small, &encode(small, &changes)), Err(CowFault::Twice { chunk: 0 }));
}

#[test]
fn what_cannot_be_read_is_said() {
    let result = Changes::read(LAYOUT, |_, _| Err(io::ErrorKind::TimedOut.into()));
    assert!(matches!(result, Err(StoreError::Read(e)) if e.kind() == io::ErrorKind::TimedOut));
}

/// What the kernel's allocation takes of a store: chunk 0 is the header; chunk 1, and the first of every further area,
/// is metadata; content goes everywhere else, in order.
fn chunks_used_by(layout: Layout, exceptions: u64) -> u64 {
    let per_area = layout.entries_per_area();
    let last = places(layout).nth(exceptions as usize - 1).unwrap();
    // The area after the last full one is cleared as soon as that is full.
    let cleared = layout.area(exceptions / per_area);
    last.max(cleared) + 1
}

#[test]
fn a_store_has_room_for_every_chunk_of_its_disk() {
    const CHUNK: u64 = 16 << 10;
    for chunks in (1..5000).chain([262_144, 262_143, 262_145]) {
        let layout = Layout::new(CHUNK, chunks * CHUNK);
        let room = layout.store_len() / CHUNK;
        let used = chunks_used_by(layout, chunks);
        assert!(room >= used, "{chunks} chunks: {room} < {used}");
        assert!(room <= used + 2, "{chunks} chunks: {room} is wasteful for {used}");
        let part = Layout::new(CHUNK, chunks * CHUNK - 4096);
        assert_eq!(part.store_len(), room * CHUNK, "a part of a chunk takes one");
    }
}

/// Some of the disk's chunks in any order, each with the kernel's place; committed in another order.
fn written() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let chunks: Vec<u64> = (0..LAYOUT.disk_chunks()).collect();
    let some = proptest::sample::subsequence(chunks, SizeRange::from(0..=70)).prop_shuffle();
    some.prop_flat_map(|chunks| {
        Just(chunks.into_iter().zip(places(LAYOUT)).collect::<Vec<_>>()).prop_shuffle()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn runs_are_what_was_written(changes in written()) {
        let found = read(LAYOUT, &encode(LAYOUT, &changes)).unwrap();
        let mut expected = changes.clone();
        expected.sort_unstable();
        let mut seen = Vec::new();
        let mut last: Option<Run> = None;
        for run in found.runs() {
            let whole = run.disk.end - run.disk.start;
            let follows = |last: &Run| last.disk.end == run.disk.start && last.at + CHUNK * (last.disk.end - last.disk.start).div_ceil(CHUNK) == run.at;
            prop_assert!(!last.as_ref().is_some_and(follows), "runs are as long as possible");
            seen.extend((0..whole.div_ceil(CHUNK)).map(|n| (run.disk.start / CHUNK + n, run.at / CHUNK + n)));
            last = Some(run);
        }
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn any_change_of_a_byte_is_refused_or_within_bounds(changes in written(), area in 0..4u64, at in 0..512usize, byte: u8) {
        let mut store = encode(LAYOUT, &changes);
        let area = if area == 3 { 0 } else { LAYOUT.area(area) as usize * 512 };
        store[area + at] = byte;
        if let Ok(found) = read(LAYOUT, &store) {
            let room = LAYOUT.store_len();
            for run in found.runs() {
                prop_assert!(run.disk.start < run.disk.end && run.disk.end <= LAYOUT.disk);
                prop_assert!(run.at >= 2 * CHUNK && run.at + (run.disk.end - run.disk.start) <= room);
            }
        }
    }
}

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn run(first: u32, pages: u32) -> PageRun {
    PageRun { first, pages }
}

fn sample() -> WorkingSet {
    WorkingSet::new(Bytes(64 * PAGE_SIZE), [run(9, 3), run(3, 1), run(63, 1), run(3, 1)]).unwrap()
}

/// Sets bytes of the sample's encoding and makes its checksum right again.
fn forged(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = sample().encode();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    let end = file.len() - CRC;
    let crc = crc32c::crc32c(&file[..end]);
    file[end..].copy_from_slice(&crc.to_le_bytes());
    file
}

#[test]
fn runs_that_go_on_are_joined_and_impossible_ones_refused() {
    let size = Bytes(64 * PAGE_SIZE);
    let set = WorkingSet::new(size, [run(9, 1), run(10, 1), run(8, 1), run(9, 2)]).unwrap();
    assert_eq!(set.runs(), [run(9, 2), run(8, 3)]);
    assert_eq!((set.size(), set.guest_size()), (Bytes(5 * PAGE_SIZE), size));
    assert_eq!(WorkingSet::new(size, []).unwrap().size(), Bytes(0));
    for runs in [vec![run(0, 0)], vec![run(64, 1)], vec![run(1, 64)], vec![run(5, u32::MAX)]] {
        assert!(matches!(WorkingSet::new(size, runs), Err(WorkingSetFault::Invalid(_))));
    }
    let twice = [run(0, 64), run(0, 1)];
    assert!(matches!(WorkingSet::new(size, twice), Err(WorkingSetFault::Invalid(_))));
    for size in [0, 4097, u64::MAX] {
        assert!(WorkingSet::new(Bytes(size), []).is_err());
    }
}

#[test]
fn what_comes_after_the_most_runs_is_left_out() {
    let pages = (MAX_RUNS as u32 + 10) * 2;
    let touched = (0..MAX_RUNS as u32 + 10).map(|number| run(number * 2, 1));
    let set = WorkingSet::new(Bytes(u64::from(pages) * PAGE_SIZE), touched).unwrap();
    assert_eq!(set.runs().len(), MAX_RUNS);
    assert_eq!(WorkingSet::decode(&set.encode()).unwrap(), set);
    let mut more = set.encode();
    more.truncate(HEADER + MAX_RUNS * RUN);
    more[24..28].copy_from_slice(&(MAX_RUNS as u32 + 1).to_le_bytes());
    more.extend_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
    more.extend_from_slice(&crc32c::crc32c(&more).to_le_bytes());
    assert!(matches!(WorkingSet::decode(&more), Err(WorkingSetFault::Invalid(_))));
}

#[test]
fn every_cut_and_every_flipped_bit_is_noticed() {
    let file = sample().encode();
    assert_eq!(WorkingSet::decode(&file).unwrap(), sample());
    for length in 0..file.len() {
        let result = WorkingSet::decode(&file[..length]);
        assert!(matches!(result, Err(WorkingSetFault::Length { .. })), "cut to {length}: {result:?}");
    }
    for bit in 0..file.len() * 8 {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(WorkingSet::decode(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn right_checksums_do_not_excuse_wrong_content() {
    for (what, at, bytes) in [
        ("version 0", 8, &0u32.to_le_bytes()[..]),
        ("page size", 12, &8192u32.to_le_bytes()),
        ("guest size 0", 16, &0u64.to_le_bytes()),
        ("guest size of part pages", 16, &(64 * PAGE_SIZE + 1).to_le_bytes()),
        ("guest size past the bound", 16, &u64::MAX.to_le_bytes()),
        ("guest smaller than its pages", 16, &(63 * PAGE_SIZE).to_le_bytes()),
        ("empty run", HEADER + 4, &0u32.to_le_bytes()),
        ("run without end", HEADER + 4, &u32::MAX.to_le_bytes()),
        ("run far outside", HEADER, &u32::MAX.to_le_bytes()),
        ("more pages than the guest has", HEADER, &[0, 0, 0, 0, 64, 0, 0, 0]),
    ] {
        let result = WorkingSet::decode(&forged(at, bytes));
        assert!(matches!(result, Err(WorkingSetFault::Invalid(_))), "{what}: {result:?}");
    }
    assert_eq!(WorkingSet::decode(b"\x7fELF and so on"), Err(WorkingSetFault::Foreign));
    let newer = Err(WorkingSetFault::Newer { found: 9, supported: 1 });
    assert_eq!(WorkingSet::decode(b"WRENNWSE\x09\0\0\0whatever"), newer);
}

#[test]
fn files_are_saved_loaded_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    assert_eq!(WorkingSet::load(&path).unwrap(), None);
    sample().save(&path).unwrap();
    assert_eq!(WorkingSet::load(&path).unwrap(), Some(sample()));
    // A sparse file does not make the reader take memory for its length.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = WorkingSet::load(&path).unwrap_err();
    assert!(
        matches!(error, WorkingSetError::Unusable { source: WorkingSetFault::Length { .. }, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("working-set"), "{error}");
    let error = WorkingSet::load(dir.path()).unwrap_err();
    assert!(matches!(error, WorkingSetError::Unusable { source: WorkingSetFault::Foreign, .. }), "{error}");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(WorkingSet::load(&link), Err(WorkingSetError::Io { .. })));
    assert!(matches!(sample().save(Path::new("/nonexistent/x")), Err(WorkingSetError::Io { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn sets_read_back_and_damage_is_found(
        runs in vec((0..1000u32, 1..50u32), 0..20),
        bit in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let runs: Vec<_> = runs.into_iter().map(|(first, pages)| run(first, pages)).collect();
        let set = WorkingSet::new(Bytes(1050 * PAGE_SIZE), runs.clone()).unwrap();
        let touched = |runs: &[PageRun]| runs.iter().flat_map(|run| u64::from(run.first)..run.end()).collect::<Vec<_>>();
        prop_assert_eq!(touched(set.runs()), touched(&runs));
        let file = set.encode();
        prop_assert_eq!(WorkingSet::decode(&file).unwrap(), set);
        prop_assert!(WorkingSet::decode(&file[..cut.index(file.len())]).is_err());
        let (mut bad, bit) = (file.clone(), bit.index(file.len() * 8));
        bad[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(WorkingSet::decode(&bad).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), fix in any::<bool>()) {
        let mut bytes = bytes;
        if fix && bytes.len() >= HEADER + CRC {
            // Far enough into the decoder to reach the runs.
            let runs = (bytes.len() - HEADER - CRC) / RUN;
            bytes.truncate(HEADER + CRC + runs * RUN);
            bytes[..24].copy_from_slice(&sample().encode()[..24]);
            bytes[24..28].copy_from_slice(&(runs as u32).to_le_bytes());
            let end = bytes.len() - CRC;
            let crc = crc32c::crc32c(&bytes[..end]);
            bytes[end..].copy_from_slice(&crc.to_le_bytes());
        }
        if let Ok(set) = WorkingSet::decode(&bytes) {
            prop_assert_eq!(set.encode(), bytes);
        }
    }
}

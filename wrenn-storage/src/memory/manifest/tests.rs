use std::io::Cursor;

use proptest::prelude::*;

use super::*;

const GUEST_PAGES: u32 = 64;

fn sample() -> Manifest {
    let full = u64::from(GUEST_PAGES) * PAGE_SIZE;
    let layers = vec![
        LayerRecord { id: LayerId([1; 16]), length: full, sums_crc: 0x1111 },
        LayerRecord { id: LayerId([2; 16]), length: 3 * PAGE_SIZE, sums_crc: 0x2222 },
    ];
    let extents = vec![
        Extent { first: 0, pages: 10, place: Place::Layer { layer: 0, page: 0 } },
        Extent { first: 10, pages: 3, place: Place::Layer { layer: 1, page: 0 } },
        Extent { first: 13, pages: GUEST_PAGES - 13, place: Place::Zero },
    ];
    Manifest { layers, map: ExtentMap::new(extents, GUEST_PAGES).unwrap(), flat: false }
}

fn flat() -> Manifest {
    let length = u64::from(GUEST_PAGES) * PAGE_SIZE;
    let extents = vec![
        Extent { first: 0, pages: 9, place: Place::Zero },
        Extent { first: 9, pages: GUEST_PAGES - 9, place: Place::Layer { layer: 0, page: 9 } },
    ];
    let layers = vec![LayerRecord { id: LayerId([1; 16]), length, sums_crc: 3 }];
    Manifest { layers, map: ExtentMap::new(extents, GUEST_PAGES).unwrap(), flat: true }
}

fn decode(bytes: &[u8]) -> Result<Manifest, Fault> {
    Manifest::decode(Cursor::new(bytes))
}

/// Sets bytes of the sample's encoding and makes its checksum right again.
fn forged(at: usize, bytes: &[u8]) -> Vec<u8> {
    forge(&sample(), at, bytes)
}

fn forge(manifest: &Manifest, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = manifest.encode();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    let end = file.len() - CRC;
    let crc = crc32c::crc32c(&file[..end]);
    file[end..].copy_from_slice(&crc.to_le_bytes());
    file
}

#[test]
fn a_manifest_is_read_back() {
    let file = sample().encode();
    assert_eq!(file.len(), HEADER + 2 * LAYER + 3 * EXTENT + CRC);
    assert_eq!(decode(&file).unwrap(), sample());
    assert_eq!(decode(&flat().encode()).unwrap(), flat());
}

#[test]
fn every_cut_and_every_flipped_bit_is_noticed() {
    let file = sample().encode();
    for length in 0..file.len() {
        assert!(matches!(decode(&file[..length]), Err(Fault::Length { .. })), "cut to {length}");
    }
    let mut longer = file.clone();
    longer.push(0);
    assert!(matches!(decode(&longer), Err(Fault::Length { .. })));
    for bit in 0..file.len() * 8 {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn foreign_and_newer_files_are_told_apart() {
    assert!(matches!(decode(b"\x7fELF and so on, for longer than a header is"), Err(Fault::Foreign)));
    assert!(matches!(decode(b"x"), Err(Fault::Foreign)));
    assert!(matches!(decode(b""), Err(Fault::Length { .. })));
    assert!(matches!(decode(b"WRENNMEM\x02\0\0\0whatever"), Err(Fault::Newer(2))));
    assert!(matches!(decode(&forged(8, &7u32.to_le_bytes())), Err(Fault::Newer(7))));
}

#[test]
fn right_checksums_do_not_excuse_wrong_content() {
    let (layers, extents) = (HEADER, HEADER + 2 * LAYER);
    for (what, at, bytes) in [
        ("version 0", 8, &0u32.to_le_bytes()[..]),
        ("page size", 12, &8192u32.to_le_bytes()),
        ("guest size 0", 16, &0u64.to_le_bytes()),
        ("guest size of part pages", 16, &(64 * PAGE_SIZE + 1).to_le_bytes()),
        ("guest size past the bound", 16, &u64::MAX.to_le_bytes()),
        ("guest larger than its extents", 16, &(65 * PAGE_SIZE).to_le_bytes()),
        ("guest smaller than its extents", 16, &(63 * PAGE_SIZE).to_le_bytes()),
        ("one id twice", layers + LAYER, &[1; 16]),
        ("empty layer", layers + LAYER + 16, &0u64.to_le_bytes()),
        ("flat layer among others", layers + 28, &FLAT.to_le_bytes()),
        ("unknown kind", layers + 28, &2u32.to_le_bytes()),
        ("gap", extents + 16, &11u32.to_le_bytes()),
        ("overlap", extents + 16, &9u32.to_le_bytes()),
        ("empty extent", extents + 4, &0u32.to_le_bytes()),
        ("extent without end", extents + 4, &u32::MAX.to_le_bytes()),
        ("unlisted layer", extents + 8, &2u32.to_le_bytes()),
        ("past its layer", extents + 16 + 12, &1u32.to_le_bytes()),
        ("far past its layer", extents + 16 + 12, &u32::MAX.to_le_bytes()),
        ("zero with an offset", extents + 32 + 12, &1u32.to_le_bytes()),
        ("layer without use", extents + 16 + 8, &ZERO.to_le_bytes()),
    ] {
        let result = decode(&forged(at, bytes));
        assert!(matches!(result, Err(Fault::Invalid(_))), "{what}: {result:?}");
    }
}

#[test]
fn a_flat_image_is_one_layer_at_the_guests_own_offsets() {
    let extents = HEADER + LAYER;
    for (what, at, bytes) in [
        ("another size", HEADER + 16, &(65 * PAGE_SIZE).to_le_bytes()[..]),
        ("another offset", extents + EXTENT + 12, &8u32.to_le_bytes()),
    ] {
        let result = decode(&forge(&flat(), at, bytes));
        assert!(matches!(result, Err(Fault::Invalid(_))), "{what}: {result:?}");
    }
}

#[test]
fn counts_are_bounded_before_they_are_believed() {
    // A sparse file of the length that its counts ask for, with the right checksum: 64 GiB of extents.
    let mut header = sample().encode()[..HEADER].to_vec();
    header[16..24].copy_from_slice(&(MAX_PAGES * PAGE_SIZE).to_le_bytes());
    header[24..28].copy_from_slice(&0u32.to_le_bytes());
    header[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
    let length = (HEADER + CRC) as u64 + EXTENT as u64 * u64::from(u32::MAX);
    assert!(matches!(Header::decode(&header, length), Err(Fault::Invalid(_))));
    header[28..32].copy_from_slice(&1u32.to_le_bytes());
    header[24..28].copy_from_slice(&5000u32.to_le_bytes());
    let length = (HEADER + CRC + EXTENT + 5000 * LAYER) as u64;
    assert!(matches!(Header::decode(&header, length), Err(Fault::Invalid(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), header in any::<bool>()) {
        if header && bytes.len() > HEADER {
            // Far enough into the decoder to reach layers and extents.
            let start = sample().encode();
            bytes[..24].copy_from_slice(&start[..24]);
            let rest = bytes.len() - HEADER - CRC.min(bytes.len() - HEADER);
            bytes[24..28].copy_from_slice(&((rest % EXTENT / 4) as u32).to_le_bytes());
            bytes[28..32].copy_from_slice(&((rest / EXTENT) as u32).to_le_bytes());
            bytes.truncate(HEADER + rest / EXTENT * EXTENT + rest % EXTENT / 4 * LAYER + CRC);
            if bytes.len() > HEADER + CRC {
                let end = bytes.len() - CRC;
                let crc = crc32c::crc32c(&bytes[..end]);
                bytes[end..].copy_from_slice(&crc.to_le_bytes());
            }
        }
        if let Ok(manifest) = decode(&bytes) {
            prop_assert_eq!(manifest.encode(), bytes);
        }
    }
}

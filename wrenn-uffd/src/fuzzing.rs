//! What a fuzzer calls. Not a part of the interface.

use crate::handshake::parse;
use crate::regions::{PageSize, Regions};

/// Takes an input as the text of a peer's message: what it begins with, up to a line's end, is the size of the
/// image, in decimal digits, with an `h` before it where there may be huge pages.
///
/// # Panics
/// If regions are accepted that do not show the image once and whole, or are not found where they are.
pub fn handshake(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (size, text) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    let (largest, size) = match size.strip_prefix(b"h") {
        Some(size) => (PageSize::Huge, size),
        None => (PageSize::Base, size),
    };
    let size = std::str::from_utf8(size).ok().and_then(|size| size.parse().ok()).unwrap_or(0u64);
    // An image is as large as its owner makes it; what is noted of each page would take the fuzzer's memory.
    let image = size % (1 << 36);
    let Ok(Some(wire)) = parse(text) else { return };
    let Ok(regions) = Regions::new(&wire, image, largest) else { return };
    let mut offset = 0;
    while let Some(region) = regions.showing(offset) {
        assert_eq!(region.offset, offset);
        for address in [region.start, region.end() - 1] {
            assert!(regions.at(address).is_some_and(|found| found.start == region.start));
        }
        let (first, last) = (0, region.pages() - 1);
        assert_eq!((region.page_of(region.start), region.page_of(region.end() - 1)), (first, last));
        for page in [first, last] {
            let around = region.unspent_around(page, 64 * 4096);
            assert!(around.contains(&page) && around.end <= region.pages());
        }
        offset = region.image_offset(region.pages());
    }
    assert_eq!(offset, image);
    assert_eq!(regions.give_up(0, u64::MAX), regions.pages());
}

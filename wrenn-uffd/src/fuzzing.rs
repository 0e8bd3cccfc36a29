//! What a fuzzer calls. Not a part of the interface.

use crate::handshake::parse;
use crate::regions::{PageSize, Regions};

/// Takes the text of a peer's message, for an image of `source_len` bytes of memory in huge pages or not, as a
/// server does. True where such a process would be served.
///
/// # Panics
/// If the regions that were accepted do not show the image once and whole.
pub fn handshake(text: &[u8], source_len: u64, huge: bool) -> bool {
    let largest = if huge { PageSize::Huge } else { PageSize::Base };
    let Ok(Some(wire)) = parse(text) else { return false };
    let Ok(regions) = Regions::new(&wire, source_len, largest) else { return false };
    let mut offset = 0;
    while let Some(region) = regions.showing(offset) {
        assert_eq!(region.offset, offset);
        let last = region.address(region.pages() - 1);
        for address in [region.start, region.end() - 1] {
            assert!(regions.at(address).is_some_and(|found| found.start == region.start));
        }
        assert_eq!(region.page_of(last), region.pages() - 1);
        offset = region.image_offset(region.pages());
    }
    assert_eq!(offset, source_len);
    regions.give_up(0, u64::MAX) == regions.pages()
}

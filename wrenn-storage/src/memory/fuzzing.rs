//! What the fuzzer of manifests runs.

use std::io::Cursor;

use super::PAGE_SIZE;
use super::extents::Place;
use super::manifest::Manifest;
use crate::fuzzing::with_checksum;

/// Decodes `bytes` as a memory image's manifest.
///
/// # Panics
/// Where the decoder accepts what it should not: that is what a fuzzer looks for.
pub fn manifest(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), with_checksum(bytes)] {
        let Ok(manifest) = Manifest::decode(Cursor::new(&bytes)) else { continue };
        assert_eq!(manifest.encode(), bytes);
        check_places(&manifest);
        let last = manifest.map.pages() - 1;
        for page in [0, last / 2, last] {
            let extent = manifest.map.at(page);
            assert!(extent.first == page && extent.pages > 0 && extent.end() <= last + 1);
        }
        let whole = manifest.map.as_slice();
        assert!(manifest.map.overlaid(whole).as_slice().len() <= whole.len());
    }
}

/// What a reader relies on when it goes from an extent to a layer.
fn check_places(manifest: &Manifest) {
    assert!(!manifest.flat || manifest.layers.len() == 1);
    for extent in manifest.map.as_slice() {
        let Place::Layer { layer, page } = extent.place else { continue };
        let end = u64::from(page) + u64::from(extent.pages);
        assert!(end * PAGE_SIZE <= manifest.layers[layer as usize].length);
        assert!(!manifest.flat || page == extent.first);
    }
}

//! What fuzzers and the tests over their corpus run: hostile bytes into each decoder.
//!
//! A checksum keeps random bytes from getting anywhere, so each input that has one is tried as it is and with its
//! checksum made right. An input that is accepted has to mean exactly one thing: it is encoded back to the same bytes.

pub use crate::disk::fuzzing::cow_store;
pub use crate::memory::fuzzing::manifest;
use crate::working_set::WorkingSet;

/// Decodes `bytes` as a working set.
///
/// # Panics
/// Where the decoder accepts what it should not: that is what a fuzzer looks for.
pub fn working_set(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), with_checksum(bytes)] {
        let Ok(set) = WorkingSet::decode(&bytes) else { continue };
        assert_eq!(set.encode(), bytes);
        assert!(set.size() <= set.guest_size());
        assert!(set.runs().iter().all(|run| run.pages > 0));
        let again =
            WorkingSet::new(set.guest_size(), set.runs().iter().copied()).expect("its runs were admitted");
        assert!(again.runs().len() <= set.runs().len() && again.size() == set.size());
    }
}

pub(crate) fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(end) = bytes.len().checked_sub(4) {
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

//! One bit for each of many pages, set by several threads.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits that are all clear at first.
#[derive(Debug)]
pub(crate) struct Bitmap {
    words: Box<[AtomicU64]>,
}

impl Bitmap {
    pub(crate) fn new(bits: u64) -> Self {
        Self { words: (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(crate) fn get(&self, bit: u64) -> bool {
        self.words[(bit / 64) as usize].load(Ordering::Acquire) & (1 << (bit % 64)) != 0
    }

    /// Sets a range of bits and returns how many of them were clear.
    pub(crate) fn set(&self, range: Range<u64>) -> u64 {
        masks(range)
            .map(|(word, mask)| {
                let before = self.words[word].fetch_or(mask, Ordering::AcqRel);
                u64::from((mask & !before).count_ones())
            })
            .sum()
    }

    /// Clears a range of bits.
    pub(crate) fn clear(&self, range: Range<u64>) {
        for (word, mask) in masks(range) {
            self.words[word].fetch_and(!mask, Ordering::AcqRel);
        }
    }

    /// The clear bits around `bit`, which is among them whatever it is, within `range`, which holds it.
    pub(crate) fn clear_around(&self, bit: u64, range: Range<u64>) -> Range<u64> {
        let before = (range.start..bit).rev().take_while(|bit| !self.get(*bit)).count() as u64;
        let after = (bit + 1..range.end).take_while(|bit| !self.get(*bit)).count() as u64;
        bit - before..bit + 1 + after
    }

    /// The first clear bits in `range`, as far as they go.
    pub(crate) fn next_clear(&self, range: Range<u64>) -> Option<Range<u64>> {
        let first = range.clone().find(|bit| !self.get(*bit))?;
        let len = (first..range.end).take_while(|bit| !self.get(*bit)).count() as u64;
        Some(first..first + len)
    }
}

/// The words that a range of bits touches, with the bits of each.
fn masks(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        if next >= range.end {
            return None;
        }
        let (word, low) = (next / 64, next % 64);
        let len = (64 - low).min(range.end - next);
        next += len;
        Some((word as usize, (u64::MAX >> (64 - len)) << low))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_set_across_words_and_counted_once() {
        let bits = Bitmap::new(200);
        assert_eq!((bits.set(60..130), bits.set(100..140), bits.set(7..7)), (70, 10, 0));
        assert!(!bits.get(59) && bits.get(60) && bits.get(139) && !bits.get(140));
        bits.clear(64..128);
        assert!(bits.get(63) && !bits.get(64) && !bits.get(127) && bits.get(128));
        assert_eq!(bits.set(0..200), 200 - 4 - 12);
    }

    #[test]
    fn clear_bits_are_found() {
        let bits = Bitmap::new(200);
        bits.set(10..20);
        bits.set(130..131);
        assert_eq!(bits.clear_around(25, 0..200), 20..130);
        assert_eq!(bits.clear_around(25, 22..28), 22..28);
        assert_eq!(bits.clear_around(15, 5..30), 15..16, "a set bit stands alone");
        assert_eq!(bits.next_clear(12..200), Some(20..130));
        assert_eq!(bits.next_clear(0..5), Some(0..5));
        assert_eq!((bits.next_clear(10..20), bits.next_clear(9..9)), (None, None));
    }
}

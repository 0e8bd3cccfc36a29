//! Ranges of IPv4 addresses (and of ports), and the arithmetic of lists of them.

use std::net::Ipv4Addr;

/// A range of IPv4 addresses or of ports, first and last included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    pub(crate) first: u32,
    pub(crate) last: u32,
}

impl Range {
    /// The range of a CIDR block; what `base` has beyond `prefix` bits is ignored.
    pub(crate) const fn cidr(base: Ipv4Addr, prefix: u8) -> Self {
        let host_bits = if prefix == 0 { u32::MAX } else { !(u32::MAX << (32 - prefix)) };
        Self { first: base.to_bits() & !host_bits, last: base.to_bits() | host_bits }
    }

    pub(crate) const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    pub(crate) const fn contains(self, address: Ipv4Addr) -> bool {
        self.first <= address.to_bits() && address.to_bits() <= self.last
    }
}

/// Sorted, with overlapping and touching ranges made one: the kernel refuses intervals that overlap.
pub(crate) fn joined(ranges: impl IntoIterator<Item = Range>) -> Vec<Range> {
    let mut ranges: Vec<_> = ranges.into_iter().collect();
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if u64::from(range.first) <= u64::from(last.last) + 1 => {
                last.last = last.last.max(range.last)
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// What of `range` lies in none of `holes`, which are [`joined`].
pub(crate) fn without(range: Range, holes: &[Range]) -> Vec<Range> {
    let mut left = Vec::new();
    // In 64 bits, as the first address behind a hole may be the one that there is not.
    let mut first = u64::from(range.first);
    for hole in holes.iter().filter(|hole| hole.overlaps(range)) {
        if first < u64::from(hole.first) {
            left.push(Range { first: first as u32, last: hole.first - 1 });
        }
        first = u64::from(hole.last) + 1;
    }
    if first <= u64::from(range.last) {
        left.push(Range { first: first as u32, last: range.last });
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn range(first: u32, last: u32) -> Range {
        Range { first, last }
    }

    #[test]
    fn ranges_know_their_edges() {
        let ten = Range::cidr(Ipv4Addr::new(10, 9, 9, 9), 8);
        assert_eq!((ten.first, ten.last), (0x0a00_0000, 0x0aff_ffff));
        assert!(ten.overlaps(Range::cidr(Ipv4Addr::UNSPECIFIED, 0)));
        assert!(!ten.overlaps(Range::cidr(Ipv4Addr::new(11, 0, 0, 0), 32)));
        assert!(ten.contains(Ipv4Addr::new(10, 255, 255, 255)));
    }

    #[test]
    fn joining_keeps_what_lies_inside_another() {
        let joined = joined([range(5, 9), range(0, 20), range(21, 22), range(30, u32::MAX), range(40, 41)]);
        assert_eq!(joined, [range(0, 22), range(30, u32::MAX)]);
    }

    #[test]
    fn holes_are_cut_out_to_the_last_address() {
        let all = range(0, u32::MAX);
        assert_eq!(without(all, &[]), [all]);
        assert_eq!(without(all, &[all]), []);
        assert_eq!(without(range(5, 9), &[range(0, 4), range(10, 20)]), [range(5, 9)]);
        assert_eq!(without(range(5, 9), &[range(0, 5), range(9, 20)]), [range(6, 8)]);
        assert_eq!(without(range(5, 9), &[range(7, 7)]), [range(5, 6), range(8, 9)]);
        assert_eq!(without(all, &[range(0, 7), range(u32::MAX, u32::MAX)]), [range(8, u32::MAX - 1)]);
    }
}

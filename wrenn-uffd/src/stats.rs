//! What a fault server counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The number of latency buckets: the last one begins at about four seconds.
pub const LATENCY_BUCKETS: usize = 24;

/// A server's counters at one moment.
///
/// They are read one after the other while the server goes on, so they may differ by what it did meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FaultStats {
    /// Faults that were answered, those for pages that were there by then included.
    pub faults: u64,
    /// Distinct pages that got content, faulted, filled along or prefetched, in pages of the region they are in.
    /// Of a cache: those that this server put there, and zero pages of its process.
    pub pages: u64,
    /// Those of `pages` that were filled before anybody touched them or a neighbour.
    pub prefetched: u64,
    /// All pages of all regions; 0 until a process is connected.
    pub pages_total: u64,
    /// Bytes copied from the source, to the process or to its cache.
    pub bytes_copied: u64,
    /// Bytes filled with zero.
    pub bytes_zeroed: u64,
    /// Pages that were given up by the process (`MADV_DONTNEED`, unmapped) and are zero from then on.
    pub pages_removed: u64,
    /// Times the kernel asked to try again because the memory was being changed.
    pub retries: u64,
    /// How long faults took from being read to being answered: bucket 0 counts those below 1 µs, bucket `n`
    /// those of 2^(n-1) µs and more but below 2^n, the last one all that took longer.
    pub latency: [u64; LATENCY_BUCKETS],
}

impl FaultStats {
    /// The latency that a share of the faults did not exceed, rounded up to a bucket's end; zero without
    /// faults.
    ///
    /// `share` is between 0 and 1: 0.5 gives the median.
    pub fn latency_within(&self, share: f64) -> Duration {
        let total: u64 = self.latency.iter().sum();
        let wanted = (total as f64 * share.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.latency.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return Duration::from_micros(1 << bucket);
            }
        }
        Duration::ZERO
    }
}

/// The counters, written by the server's threads and read by anybody.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) faults: AtomicU64,
    pub(crate) pages: AtomicU64,
    pub(crate) prefetched: AtomicU64,
    pub(crate) pages_total: AtomicU64,
    pub(crate) bytes_copied: AtomicU64,
    pub(crate) bytes_zeroed: AtomicU64,
    pub(crate) pages_removed: AtomicU64,
    pub(crate) retries: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Relaxed);
    }

    /// Counts an answered fault.
    pub(crate) fn answered(&self, took: Duration) {
        Self::add(&self.faults, 1);
        Self::add(&self.latency[bucket_of(took)], 1);
    }

    pub(crate) fn snapshot(&self) -> FaultStats {
        FaultStats {
            faults: self.faults.load(Relaxed),
            pages: self.pages.load(Relaxed),
            prefetched: self.prefetched.load(Relaxed),
            pages_total: self.pages_total.load(Relaxed),
            bytes_copied: self.bytes_copied.load(Relaxed),
            bytes_zeroed: self.bytes_zeroed.load(Relaxed),
            pages_removed: self.pages_removed.load(Relaxed),
            retries: self.retries.load(Relaxed),
            latency: std::array::from_fn(|bucket| self.latency[bucket].load(Relaxed)),
        }
    }
}

fn bucket_of(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    ((u64::BITS - micros.leading_zeros()) as usize).min(LATENCY_BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_their_buckets() {
        for (nanos, bucket) in [(0, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2), (3999, 2), (4000, 3)] {
            assert_eq!(bucket_of(Duration::from_nanos(nanos)), bucket, "{nanos} ns");
        }
        assert_eq!(bucket_of(Duration::from_secs(5)), LATENCY_BUCKETS - 1);
        assert_eq!(bucket_of(Duration::MAX), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn shares_are_answered_by_the_end_of_a_bucket() {
        let counters = Counters::default();
        assert_eq!(counters.snapshot().latency_within(0.5), Duration::ZERO);
        for micros in [3, 3, 3, 100] {
            counters.answered(Duration::from_micros(micros));
        }
        let stats = counters.snapshot();
        assert_eq!(stats.faults, 4);
        assert_eq!(stats.latency_within(0.5), Duration::from_micros(4));
        assert_eq!(stats.latency_within(0.75), Duration::from_micros(4));
        assert_eq!(stats.latency_within(1.0), Duration::from_micros(128));
    }
}

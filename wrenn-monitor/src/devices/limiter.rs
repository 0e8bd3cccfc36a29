//! How fast a device may work: a bucket of tokens for bytes and one for requests, as Firecracker's `RateLimiter` has them.
//!
//! A request is begun when there is a token in each bucket, and then takes as many as it needs, on credit if need be: its
//! size is the guest's choice, and one larger than the bucket must not wait for ever. The next one waits the longer. So
//! over any time no more passes than the bucket's size, what has refilled it, and one request.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wrenn_vmm::api::{RateLimiter, TokenBucket};

/// The limits of one direction of a device; without limits at first.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    bytes: Option<Bucket>,
    requests: Option<Bucket>,
}

/// What a snapshot keeps of a limiter: not how full its buckets are. A restored device begins with full ones, and what was
/// to be given once has been given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LimiterState {
    bytes: Option<BucketState>,
    requests: Option<BucketState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct BucketState {
    size: u64,
    refill_millis: u64,
}

impl Limiter {
    /// The limits that were asked for. As with Firecracker, a bucket without size or without refill time limits nothing.
    pub(super) fn new(wanted: Option<&RateLimiter>) -> Self {
        let bucket = |wanted: Option<TokenBucket>| {
            let wanted = wanted?;
            Bucket::new(wanted.size, wanted.refill_time, wanted.one_time_burst.unwrap_or(0))
        };
        let wanted = wanted.copied().unwrap_or_default();
        Self { bytes: bucket(wanted.bandwidth), requests: bucket(wanted.ops) }
    }

    pub(super) fn restore(state: LimiterState) -> Self {
        let bucket =
            |saved: Option<BucketState>| saved.and_then(|it| Bucket::new(it.size, it.refill_millis, 0));
        Self { bytes: bucket(state.bytes), requests: bucket(state.requests) }
    }

    pub(super) fn save(&self) -> LimiterState {
        let state = |bucket: &Bucket| BucketState {
            size: bucket.size,
            refill_millis: u64::try_from(bucket.refill.as_millis()).unwrap_or(u64::MAX),
        };
        LimiterState { bytes: self.bytes.as_ref().map(state), requests: self.requests.as_ref().map(state) }
    }

    /// Whether it ever makes anybody wait.
    pub(super) fn limits(&self) -> bool {
        self.bytes.is_some() || self.requests.is_some()
    }

    /// How long the next request has to wait; `None` where it may begin.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        if !self.limits() {
            return None;
        }
        let now = Instant::now();
        let buckets = [&mut self.bytes, &mut self.requests];
        buckets.into_iter().flatten().filter_map(|bucket| bucket.pause(now)).max()
    }

    /// A request of so many bytes has begun.
    pub(super) fn take(&mut self, bytes: usize) {
        for (bucket, tokens) in [(&mut self.bytes, bytes as u64), (&mut self.requests, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
    }
}

/// Tokens that come back as time passes.
#[derive(Debug)]
struct Bucket {
    size: u64,
    /// How long an empty one takes to fill.
    refill: Duration,
    /// What is left of what was given once, on top of the size.
    burst: u64,
    /// Below zero where more was taken than there was.
    tokens: i128,
    /// The time up to which tokens have come back.
    filled: Instant,
}

impl Bucket {
    fn new(size: u64, refill_millis: u64, burst: u64) -> Option<Self> {
        let refill = Duration::from_millis(refill_millis);
        (size > 0 && !refill.is_zero()).then(|| Self {
            size,
            refill,
            burst,
            tokens: size.into(),
            filled: Instant::now(),
        })
    }

    fn take(&mut self, tokens: u64) {
        let once = tokens.min(self.burst);
        self.burst -= once;
        self.tokens -= i128::from(tokens - once);
    }

    /// How long until there is a token, if there is none.
    fn pause(&mut self, now: Instant) -> Option<Duration> {
        self.refill_until(now);
        if self.burst > 0 || self.tokens > 0 {
            return None;
        }
        let missing = self.tokens.unsigned_abs() + 1;
        let ready = self.time_of(missing, u128::div_ceil);
        Some(ready.saturating_sub(now.saturating_duration_since(self.filled)))
    }

    fn refill_until(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        let new = passed.as_nanos().saturating_mul(self.size.into()) / self.refill.as_nanos();
        self.tokens = self.tokens.saturating_add(i128::try_from(new).unwrap_or(i128::MAX));
        if self.tokens >= i128::from(self.size) {
            self.tokens = self.size.into();
            self.filled = now;
        } else {
            // What has passed of the next token's time goes on counting.
            self.filled += self.time_of(new, |nanos, size| nanos / size);
        }
    }

    /// How long so many tokens take to come back.
    fn time_of(&self, tokens: u128, divide: impl FnOnce(u128, u128) -> u128) -> Duration {
        let nanos = divide(tokens.saturating_mul(self.refill.as_nanos()), self.size.into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_bucket_gives_what_it_has_and_then_what_comes_back() {
        let mut bucket = Bucket::new(10, 1000, 5).unwrap();
        let start = bucket.filled;
        for _ in 0..15 {
            assert_eq!(bucket.pause(start), None);
            bucket.take(1);
        }
        assert_eq!(bucket.pause(start), Some(Duration::from_millis(100)));
        assert_eq!(bucket.pause(after(start, 60)), Some(Duration::from_millis(40)));
        assert_eq!(bucket.pause(after(start, 100)), None);
        bucket.take(1);
        assert_eq!(bucket.pause(after(start, 150)), Some(Duration::from_millis(50)));
        // No more than it holds, however long nobody asks, and the burst only once.
        assert_eq!(bucket.pause(after(start, 60_000)), None);
        bucket.take(10);
        assert!(bucket.pause(after(start, 60_000)).is_some());
    }

    #[test]
    fn what_is_larger_than_the_bucket_passes_on_credit() {
        let mut bucket = Bucket::new(10, 1000, 0).unwrap();
        let start = bucket.filled;
        assert_eq!(bucket.pause(start), None);
        bucket.take(40);
        assert_eq!(bucket.pause(start), Some(Duration::from_millis(3100)));
        assert_eq!(bucket.pause(after(start, 3100)), None);
    }

    #[test]
    fn a_bucket_without_size_or_time_limits_nothing() {
        let of = |size, refill_time| {
            let bucket = TokenBucket { size, refill_time, one_time_burst: None };
            Limiter::new(Some(&RateLimiter { bandwidth: Some(bucket), ops: None }))
        };
        assert!(!of(0, 100).limits() && !of(100, 0).limits() && of(100, 100).limits());
        let limited = of(100, 100);
        assert_eq!(Limiter::restore(limited.save()).save(), limited.save());
        assert!(!Limiter::new(None).limits());
    }

    proptest! {
        /// Whoever waits as long as he is told gets on, and no more passes than the size, what came back and one request.
        #[test]
        fn the_rate_holds(
            size in 1u64..1 << 40,
            refill in 1u64..100_000,
            requests in prop::collection::vec(0u64..1 << 24, 1..20),
        ) {
            let mut bucket = Bucket::new(size, refill, 0).unwrap();
            let start = bucket.filled;
            let (mut waited, mut before_last) = (Duration::ZERO, 0u128);
            for request in requests {
                if let Some(pause) = bucket.pause(start + waited) {
                    prop_assert!(pause > Duration::ZERO);
                    waited += pause;
                    prop_assert_eq!(bucket.pause(start + waited), None);
                }
                let back = waited.as_nanos().saturating_mul(size.into()) / bucket.refill.as_nanos();
                prop_assert!(before_last <= u128::from(size) + back, "{before_last} in {waited:?}");
                bucket.take(request);
                before_last += u128::from(request);
            }
        }
    }
}

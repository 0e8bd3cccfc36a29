//! How fast a sandbox may use its root disk.

use serde::{Deserialize, Serialize};
use wrenn_vmm::api::{RateLimiter, TokenBucket};

/// The time in which an empty bucket fills, in milliseconds: a second's worth may come at once.
const SECOND: u64 = 1000;

/// How fast a sandbox may read and write its root disk, both together.
///
/// A second's worth may come at once; what is beyond waits. The sandbox's monitor sees to it. It travels with snapshots.
///
/// ```
/// use wrenn_core::DiskLimit;
/// let slow = DiskLimit { bytes_per_second: Some(64 << 20), ..DiskLimit::default() };
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimit {
    /// Bytes per second; no limit where absent.
    pub bytes_per_second: Option<u64>,
    /// Requests per second, whatever their size; no limit where absent.
    pub requests_per_second: Option<u64>,
}

impl DiskLimit {
    /// As the monitor is told.
    pub(crate) fn limiter(self) -> RateLimiter {
        let bucket = |rate: u64| TokenBucket { size: rate, refill_time: SECOND, one_time_burst: None };
        RateLimiter {
            bandwidth: self.bytes_per_second.map(bucket),
            ops: self.requests_per_second.map(bucket),
        }
    }

    /// Whether it would leave no way to get on.
    pub(crate) fn is_zero(self) -> bool {
        [self.bytes_per_second, self.requests_per_second].contains(&Some(0))
    }
}

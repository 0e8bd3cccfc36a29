//! How long a sandbox may be idle, and what becomes of it then.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long the first pause after one that failed is put off; each further one twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(15);
const LAST_RETRY: Duration = Duration::from_secs(600);

/// What becomes of a sandbox that has been idle for its timeout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It is destroyed, its snapshots with it.
    #[default]
    Destroy,
    /// It is paused to disk.
    Pause,
}

/// What a sandbox was asked to live by. It travels with its snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lifetime {
    /// Absent: for ever.
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) on_timeout: OnTimeout,
}

impl Lifetime {
    pub(crate) fn new(timeout: Option<Duration>, on_timeout: OnTimeout) -> Self {
        let timeout_ms = timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        Self { timeout_ms, on_timeout }
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout_ms.map(Duration::from_millis)
    }
}

/// What is known of a running sandbox's idleness. Clones are the same clock.
#[derive(Debug, Clone)]
pub(crate) struct Clock(Arc<Mutex<Face>>);

#[derive(Debug)]
struct Face {
    lifetime: Lifetime,
    /// How many calls are under way.
    busy: usize,
    /// When the last of them ended.
    idle_since: Instant,
    /// Nothing expires before, and how long the pause is put off when it fails again.
    put_off: Option<(Instant, Duration)>,
}

impl Face {
    fn expires(&self) -> Option<Instant> {
        let timeout = self.lifetime.timeout().filter(|_| self.busy == 0)?;
        // One that cannot be represented is for ever.
        let due = self.idle_since.checked_add(timeout)?;
        Some(self.put_off.map_or(due, |(until, _)| due.max(until)))
    }
}

/// A call that is under way: as long as there is one, a sandbox is not idle.
#[derive(Debug)]
pub(crate) struct Activity(Clock);

impl Clock {
    pub(crate) fn new(lifetime: Lifetime) -> Self {
        Self(Arc::new(Mutex::new(Face { lifetime, busy: 0, idle_since: Instant::now(), put_off: None })))
    }

    /// Each change is whole, so a panic elsewhere leaves it sound.
    fn face(&self) -> MutexGuard<'_, Face> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lifetime(&self) -> Lifetime {
        self.face().lifetime
    }

    /// Sets how long it may be idle from now on, and what becomes of it then.
    pub(crate) fn set_timeout(&self, timeout: Option<Duration>, on_timeout: OnTimeout) {
        let mut face = self.face();
        face.lifetime = Lifetime::new(timeout, on_timeout);
        face.idle_since = Instant::now();
        face.put_off = None;
    }

    /// Begins a call.
    pub(crate) fn activity(&self) -> Activity {
        self.face().busy += 1;
        Activity(self.clone())
    }

    /// Notes that something happened just now.
    pub(crate) fn touch(&self) {
        self.face().idle_since = Instant::now();
    }

    /// When the sandbox expires, if nothing happens before; nothing while a call is under way.
    pub(crate) fn expires(&self) -> Option<Instant> {
        self.face().expires()
    }

    /// Puts the expiry off, as the pause that it led to failed; returns for how long.
    pub(crate) fn put_off(&self) -> Duration {
        let mut face = self.face();
        let pause = face.put_off.map_or(FIRST_RETRY, |(_, last)| (last * 2).min(LAST_RETRY));
        face.put_off = Some((Instant::now() + pause, pause));
        pause
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        let mut face = self.0.face();
        face.busy -= 1;
        face.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(seconds: u64) -> Clock {
        Clock::new(Lifetime::new(Some(Duration::from_secs(seconds)), OnTimeout::Pause))
    }

    #[test]
    fn a_clock_without_a_timeout_never_expires() {
        assert_eq!(Clock::new(Lifetime::default()).expires(), None);
        let ages = Lifetime::new(Some(Duration::MAX), OnTimeout::Destroy);
        let century = Instant::now() + Duration::from_secs(100 * 365 * 24 * 3600);
        assert!(Clock::new(ages).expires().is_none_or(|at| at > century));
    }

    #[test]
    fn activity_keeps_it_from_expiring_and_extends_it() {
        let clock = clock(60);
        let first = clock.expires().unwrap();
        let (one, two) = (clock.activity(), clock.activity());
        drop(one);
        assert_eq!(clock.expires(), None);
        std::thread::sleep(Duration::from_millis(2));
        drop(two);
        let second = clock.expires().unwrap();
        assert!(second > first);
        std::thread::sleep(Duration::from_millis(2));
        clock.touch();
        assert!(clock.expires().unwrap() > second);
    }

    #[test]
    fn a_pause_that_failed_is_put_off_longer_each_time_and_not_for_ever() {
        let clock = clock(0);
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            let pause = clock.put_off();
            assert!(pause >= last && pause <= LAST_RETRY, "{pause:?}");
            assert!(clock.expires().unwrap() > Instant::now());
            last = pause;
        }
        assert_eq!(last, LAST_RETRY);
        clock.set_timeout(Some(Duration::ZERO), OnTimeout::Destroy);
        assert!(clock.expires().unwrap() <= Instant::now());
    }
}

//! The undo list: what has to be taken back, in reverse order, if building something stops half way.
//!
//! Rules that make it hold under failure and cancellation alike:
//! - An undo is registered *before* its step. A future dropped between a step and its registration would leak.
//! - So an undo may run for a step that never happened: it is idempotent, and "not there" is success.
//! - One failing undo never keeps the others from running; every failure is reported.
//! - Dropping a list that still has steps hands it to the [`Reaper`]: a drop never blocks.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::reaper::Reaper;

/// An error of any kind, for callers who bring their own.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// The moment after which an undo should stop retrying and report.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline `time` from now.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// How much time is left; zero once it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.remaining().is_zero()
    }
}

type Undo = Box<dyn FnOnce(Deadline) -> Result<(), BoxError> + Send>;

struct Step {
    id: StepId,
    what: Cow<'static, str>,
    /// Never locked: the mutex makes a list of closures that are only `Send` shareable, and so what holds the list.
    undo: Mutex<Undo>,
}

/// Names one registered step of one list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepId(u64);

/// An undo that failed, with the step it belonged to.
#[derive(Debug, thiserror::Error)]
#[error("could not undo: {what}")]
pub struct UndoFailure {
    /// The step, as it was named when registered.
    pub what: Cow<'static, str>,
    /// Why it failed.
    pub source: BoxError,
}

/// The steps to take back, newest first.
///
/// ```
/// # use wrenn_base::{Reaper, UndoList};
/// let reaper = Reaper::start();
/// let mut undo = UndoList::new(&reaper);
/// # let dir = std::env::temp_dir().join("wrenn-undo-doc-example");
/// let path = dir.clone();
/// undo.push("the directory", move |_deadline| match std::fs::remove_dir(&path) {
///     Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
///     _ => Ok(()),
/// });
/// std::fs::create_dir(&dir)?;
/// assert!(undo.run(std::time::Duration::from_secs(5)).is_empty());
/// assert!(!dir.exists());
/// # std::io::Result::Ok(())
/// ```
pub struct UndoList {
    reaper: Reaper,
    steps: Vec<Step>,
    next: u64,
}

impl UndoList {
    /// An empty list whose steps, should it be dropped with any, run on `reaper`.
    pub fn new(reaper: &Reaper) -> Self {
        Self { reaper: reaper.clone(), steps: Vec::new(), next: 0 }
    }

    /// Registers the undo of the step that the caller is about to take.
    ///
    /// `undo` must be idempotent and must succeed where the step never happened.
    pub fn push(
        &mut self,
        what: impl Into<Cow<'static, str>>,
        undo: impl FnOnce(Deadline) -> Result<(), BoxError> + Send + 'static,
    ) -> StepId {
        let id = StepId(self.next);
        self.next += 1;
        self.steps.push(Step { id, what: what.into(), undo: Mutex::new(Box::new(undo)) });
        id
    }

    /// Forgets one step: its effect is to stay, or is already undone. Unknown ids are ignored.
    pub fn forget(&mut self, id: StepId) {
        self.steps.retain(|step| step.id != id);
    }

    /// Forgets every step: what was built stays.
    pub fn commit(mut self) {
        self.steps.clear();
    }

    /// Whether nothing is left to undo.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Undoes every step, newest first, on this thread, and returns the failures.
    ///
    /// Blocks for as long as the undos take: they share one deadline, `limit` from now.
    pub fn run(mut self, limit: Duration) -> Vec<UndoFailure> {
        let deadline = Deadline::after(limit);
        let mut failures = Vec::new();
        while let Some(step) = self.steps.pop() {
            let what = step.what;
            let undo = step.undo.into_inner().unwrap_or_else(PoisonError::into_inner);
            // An undo that panics is a bug, but not a reason to leak everything below it.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| undo(deadline)))
                .unwrap_or_else(|_| Err("the undo panicked".into()));
            match result {
                Ok(()) => tracing::trace!(step = %what, "undone"),
                Err(source) => {
                    tracing::warn!(step = %what, error = %source, "could not undo");
                    failures.push(UndoFailure { what, source });
                }
            }
        }
        failures
    }

    /// Hands the list to the reaper and returns at once; `done` gets the failures on the reaper's thread.
    pub fn run_in_background(self, limit: Duration, done: impl FnOnce(Vec<UndoFailure>) + Send + 'static) {
        let reaper = self.reaper.clone();
        reaper.submit(self, limit, Box::new(done));
    }
}

impl Drop for UndoList {
    fn drop(&mut self) {
        if self.steps.is_empty() {
            return;
        }
        let rest =
            Self { reaper: self.reaper.clone(), steps: std::mem::take(&mut self.steps), next: self.next };
        self.reaper.submit(rest, Reaper::DROP_LIMIT, Box::new(drop));
    }
}

impl fmt::Debug for UndoList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|step| &step.what)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn recording(list: &mut UndoList, name: &'static str, log: &mpsc::Sender<&'static str>) -> StepId {
        let log = log.clone();
        list.push(name, move |_| {
            log.send(name)?;
            Ok(())
        })
    }

    #[test]
    fn runs_newest_first_and_goes_on_after_failures() {
        let reaper = Reaper::start();
        let (log, seen) = mpsc::channel();
        let mut list = UndoList::new(&reaper);
        recording(&mut list, "first", &log);
        list.push("broken", |_| Err("stuck".into()));
        list.push("mad", |_| panic!("a bug"));
        recording(&mut list, "last", &log);
        let failures = list.run(LIMIT);
        let names: Vec<_> = failures.iter().map(|f| f.what.as_ref()).collect();
        assert_eq!(names, ["mad", "broken"]);
        assert_eq!(failures[1].source.to_string(), "stuck");
        drop(log);
        assert_eq!(seen.iter().collect::<Vec<_>>(), ["last", "first"]);
    }

    #[test]
    fn forgotten_and_committed_steps_do_not_run() {
        let reaper = Reaper::start();
        let (log, seen) = mpsc::channel();
        let mut list = UndoList::new(&reaper);
        recording(&mut list, "kept", &log);
        let id = recording(&mut list, "forgotten", &log);
        list.forget(id);
        assert!(list.run(LIMIT).is_empty());
        let mut list = UndoList::new(&reaper);
        recording(&mut list, "committed", &log);
        list.commit();
        drop(log);
        assert_eq!(seen.iter().collect::<Vec<_>>(), ["kept"]);
    }

    #[test]
    fn a_dropped_list_runs_on_the_reaper() {
        let reaper = Reaper::start();
        let (thread, seen) = mpsc::channel();
        let mut list = UndoList::new(&reaper);
        list.push("who", move |_| Ok(thread.send(std::thread::current().id())?));
        drop(list);
        assert_ne!(seen.recv_timeout(LIMIT).unwrap(), std::thread::current().id());
    }

    #[test]
    fn background_failures_reach_the_caller() {
        let reaper = Reaper::start();
        let (done, seen) = mpsc::channel();
        let mut list = UndoList::new(&reaper);
        list.push("broken", |_| Err("stuck".into()));
        list.run_in_background(LIMIT, move |failures| done.send(failures.len()).unwrap());
        assert_eq!(seen.recv_timeout(LIMIT).unwrap(), 1);
    }
}

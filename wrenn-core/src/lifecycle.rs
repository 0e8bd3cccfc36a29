//! The rules of a sandbox's life: which states follow which, and nothing else. No clock, no lock, no I/O.
//!
//! ```text
//!   at rest ──create──> Starting ──┐                    ┌── pause failed ──┐
//!      │                           ├─ started ─> Running ┴─ pause ─> Pausing ┘
//!      ├──resume──────> Resuming ──┘                │                 │
//!      └──work──> Working                           │                 │
//!                    └──────── stop, from any ──────┴─────────────────┴──> Stopping ── released ──> at rest
//! ```
//!
//! *At rest* a sandbox has no machine: it is a snapshot on disk, or nothing at all. Whatever made something of it
//! registered an undo first, and `released` is what the last of these undos says: no state but rest outlives what a
//! sandbox has on the machine.

use serde::{Deserialize, Serialize};

/// What a sandbox is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SandboxState {
    /// It is being booted.
    Starting,
    /// It is being resumed, or made from a template or of a running sandbox.
    Resuming,
    /// Its guest runs, and its agent has answered.
    Running,
    /// It is being paused to disk.
    Pausing,
    /// What it has on the machine is being removed.
    Stopping,
    /// It is paused, and its snapshot is being copied or removed.
    Working,
    /// It is paused: a snapshot on disk, and nothing on the machine.
    Paused,
}

impl SandboxState {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Resuming => "resuming",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Stopping => "stopping",
            Self::Working => "working",
            Self::Paused => "paused",
        }
    }
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Create,
    Resume,
    Work,
    Started,
    Pause,
    PauseFailed,
    Stop,
    Released,
}

/// A step that the state of a sandbox does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{step:?} does not follow {state:?}")]
pub(crate) struct Denied {
    pub(crate) state: Option<SandboxState>,
    pub(crate) step: Step,
}

/// The state that follows; `None` is rest.
pub(crate) fn next(state: Option<SandboxState>, step: Step) -> Result<Option<SandboxState>, Denied> {
    use SandboxState::{Pausing, Resuming, Running, Starting, Stopping, Working};
    Ok(match (state, step) {
        (None, Step::Create) => Some(Starting),
        (None, Step::Resume) => Some(Resuming),
        (None, Step::Work) => Some(Working),
        (Some(Starting | Resuming), Step::Started) => Some(Running),
        (Some(Running), Step::Pause) => Some(Pausing),
        (Some(Pausing), Step::PauseFailed) => Some(Running),
        (Some(_), Step::Stop) => Some(Stopping),
        (Some(_), Step::Released) => None,
        _ => return Err(Denied { state, step }),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEPS: [Step; 8] = [
        Step::Create,
        Step::Resume,
        Step::Work,
        Step::Started,
        Step::Pause,
        Step::PauseFailed,
        Step::Stop,
        Step::Released,
    ];

    /// All that a sandbox can come to, whatever is asked of it.
    fn walk(steps: &[usize], mut each: impl FnMut(Option<SandboxState>, Step, Option<SandboxState>)) {
        let mut state = None;
        for step in steps.iter().map(|step| STEPS[*step]) {
            if let Ok(after) = next(state, step) {
                each(state, step, after);
                state = after;
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_runs_that_was_not_started(steps in prop::collection::vec(0..STEPS.len(), 0..60)) {
            walk(&steps, |before, step, after| {
                if after == Some(SandboxState::Running) {
                    let begun = matches!(before, Some(SandboxState::Starting | SandboxState::Resuming));
                    let failed = before == Some(SandboxState::Pausing) && step == Step::PauseFailed;
                    assert!((begun && step == Step::Started) || failed, "{before:?} {step:?}");
                }
            });
        }

        #[test]
        fn what_stops_comes_to_rest_and_only_that(steps in prop::collection::vec(0..STEPS.len(), 0..60)) {
            walk(&steps, |before, step, after| {
                if before == Some(SandboxState::Stopping) {
                    assert!(matches!(after, None | Some(SandboxState::Stopping)), "{step:?} {after:?}");
                }
                assert_eq!(after.is_none(), step == Step::Released, "{before:?} {step:?}");
                assert_ne!(after, Some(SandboxState::Paused), "that is rest");
            });
        }

        #[test]
        fn from_anywhere_there_is_a_way_to_rest(steps in prop::collection::vec(0..STEPS.len(), 0..60)) {
            walk(&steps, |_, _, after| {
                if after.is_some() {
                    let stopping = next(after, Step::Stop).unwrap();
                    assert_eq!(next(stopping, Step::Released), Ok(None));
                }
            });
        }

        #[test]
        fn one_machine_at_a_time(steps in prop::collection::vec(0..STEPS.len(), 0..60)) {
            walk(&steps, |before, step, _| {
                if matches!(step, Step::Create | Step::Resume | Step::Work) {
                    assert_eq!(before, None);
                }
            });
        }
    }

    #[test]
    fn every_state_says_what_it_refuses() {
        let denied = next(Some(SandboxState::Pausing), Step::Pause).unwrap_err();
        assert_eq!(denied, Denied { state: Some(SandboxState::Pausing), step: Step::Pause });
        assert_eq!(next(None, Step::Stop), Err(Denied { state: None, step: Step::Stop }));
    }
}

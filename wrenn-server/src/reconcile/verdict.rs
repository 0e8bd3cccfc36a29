//! What is to become of a sandbox, given what the database and its host say. No I/O.

use wrenn_host::SandboxState;

use crate::db::sandboxes::Sandbox;
use crate::sandboxes::State;

/// Why a sandbox is over that its team removed. If its host has it still, it is removed there too.
pub(crate) const REQUESTED: &str = "it was removed";

/// What a host says of a sandbox that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Live {
    Running,
    Paused,
    /// Something is being done with it; an event says when that is over.
    Busy,
}

impl From<SandboxState> for Live {
    fn from(state: SandboxState) -> Self {
        match state {
            SandboxState::Running => Self::Running,
            SandboxState::Paused | SandboxState::Working => Self::Paused,
            _ => Self::Busy,
        }
    }
}

/// What is to become of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Leave,
    /// The database is to say this, and why.
    Set(State, Option<String>),
    /// The host is to remove it.
    Remove,
    /// It is over, and the host has nothing of it.
    Clear,
}

/// Decides about one sandbox. `end` is how its end was heard of, where it was.
pub(super) fn judge(row: &Sandbox, live: Option<Live>, end: Option<&str>) -> Verdict {
    let state = row.state();
    if state.is_leased() && !row.is_abandoned() {
        return Verdict::Leave;
    }
    let Some(live) = live else { return absent(state, end) };
    let says = match live {
        Live::Busy => return Verdict::Leave,
        Live::Running => State::Running,
        Live::Paused => State::Paused,
    };
    match state {
        State::Destroying => Verdict::Remove,
        State::Failed => Verdict::Remove,
        State::Destroyed if row.reason.as_deref() == Some(REQUESTED) => Verdict::Remove,
        // Its host was without it for a while: another disk was mounted there, say.
        State::Destroyed => Verdict::Set(says, None),
        state if state == says => Verdict::Leave,
        _ => Verdict::Set(says, end.map(ToOwned::to_owned)),
    }
}

/// Decides about a sandbox that its host does not have.
fn absent(state: State, end: Option<&str>) -> Verdict {
    match state {
        State::Destroyed | State::Failed => Verdict::Clear,
        State::Creating => Verdict::Set(State::Failed, Some("it was not made".to_owned())),
        State::Destroying => Verdict::Set(State::Destroyed, Some(REQUESTED.to_owned())),
        _ => {
            let why = end.unwrap_or("its host has it no longer");
            Verdict::Set(State::Destroyed, Some(why.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};
    use uuid::Uuid;

    use super::*;

    fn row(state: State, lease: Option<i64>, reason: Option<&str>) -> Sandbox {
        let now = OffsetDateTime::now_utc();
        Sandbox {
            id: "0123456789abcdef".to_owned(),
            team_id: Uuid::nil(),
            host: "h".to_owned(),
            state: state.as_str().to_owned(),
            version: 1,
            lease_until: lease.map(|seconds| now + Duration::seconds(seconds)),
            reason: reason.map(ToOwned::to_owned),
            template: "debian".to_owned(),
            parent: None,
            vcpus: 1,
            memory_mib: 256,
            metadata: serde_json::json!({}),
            timeout_ms: None,
            on_timeout: "destroy".to_owned(),
            created_at: now,
            changed_at: now,
            expires_at: None,
        }
    }

    #[test]
    fn what_a_living_task_works_on_is_left_to_it() {
        for state in State::ALL.iter().filter(|state| state.is_leased()) {
            for live in [None, Some(Live::Running), Some(Live::Paused), Some(Live::Busy)] {
                assert_eq!(
                    judge(&row(*state, Some(10), None), live, None),
                    Verdict::Leave,
                    "{state} {live:?}"
                );
            }
        }
    }

    #[test]
    fn what_a_dead_task_left_becomes_what_the_host_says() {
        for state in [State::Creating, State::Pausing, State::Resuming] {
            let row = row(state, Some(-1), None);
            assert_eq!(judge(&row, Some(Live::Running), None), Verdict::Set(State::Running, None));
            assert_eq!(judge(&row, Some(Live::Paused), None), Verdict::Set(State::Paused, None));
            assert_eq!(judge(&row, Some(Live::Busy), None), Verdict::Leave);
            assert!(matches!(judge(&row, None, None), Verdict::Set(state, Some(_)) if state.is_over()));
        }
        let destroying = row(State::Destroying, Some(-1), None);
        assert_eq!(judge(&destroying, Some(Live::Running), None), Verdict::Remove);
        assert!(matches!(judge(&destroying, None, None), Verdict::Set(State::Destroyed, _)));
    }

    #[test]
    fn a_paused_sandbox_that_is_there_is_left_and_one_that_was_reaped_or_crashed_is_over() {
        assert_eq!(judge(&row(State::Paused, None, None), Some(Live::Paused), None), Verdict::Leave);
        let over = judge(&row(State::Running, None, None), None, Some("it expired"));
        assert_eq!(over, Verdict::Set(State::Destroyed, Some("it expired".to_owned())));
        let paused = judge(&row(State::Running, None, None), Some(Live::Paused), Some("it expired"));
        assert_eq!(paused, Verdict::Set(State::Paused, Some("it expired".to_owned())));
    }

    #[test]
    fn a_missing_sandbox_comes_back_as_what_it_is() {
        let missing = row(State::Missing, None, Some("its host does not answer"));
        assert_eq!(judge(&missing, Some(Live::Running), None), Verdict::Set(State::Running, None));
        assert_eq!(judge(&missing, Some(Live::Paused), None), Verdict::Set(State::Paused, None));
    }

    #[test]
    fn only_what_its_team_removed_or_never_got_is_removed_from_a_host() {
        let removed = row(State::Destroyed, None, Some(REQUESTED));
        assert_eq!(judge(&removed, Some(Live::Running), None), Verdict::Remove);
        assert_eq!(judge(&row(State::Failed, None, None), Some(Live::Paused), None), Verdict::Remove);
        let lost = row(State::Destroyed, None, Some("its host has it no longer"));
        assert_eq!(judge(&lost, Some(Live::Paused), None), Verdict::Set(State::Paused, None));
        assert_eq!(judge(&lost, None, None), Verdict::Clear);
    }
}

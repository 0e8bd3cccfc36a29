//! What has to be done without being asked: guests that end by themselves are let go of, and what timeouts have
//! seen to is forgotten.

use std::sync::Weak;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wrenn_core::{EventKind, Events, SandboxState};

use super::sandboxes::Sandboxes;

/// How often that is done at the least: calls for what is not there leave empty slots, and no event.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// Follows what happens, until the service ends.
pub(super) async fn tend(sandboxes: Weak<Sandboxes>, mut events: Events, ending: CancellationToken) {
    let mut tidying = tokio::time::interval(TIDY_EVERY);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tidying.tick() => {
                let Some(sandboxes) = sandboxes.upgrade() else { return };
                sandboxes.tidy();
                continue;
            }
            () = ending.cancelled() => return,
        };
        let Some(sandboxes) = sandboxes.upgrade() else { return };
        match event {
            Ok(Some(event)) => match event.kind {
                EventKind::GuestEnded { .. } => {
                    // Whoever works on it may take a while.
                    tokio::spawn(async move { sandboxes.let_go_if_ended(&event.sandbox).await });
                }
                EventKind::State { to: None | Some(SandboxState::Paused), .. } => sandboxes.tidy(),
                _ => {}
            },
            Ok(None) => return,
            Err(_) => {
                tokio::spawn(async move {
                    for id in sandboxes.held() {
                        sandboxes.let_go_if_ended(&id).await;
                    }
                });
            }
        }
    }
}

//! What has to be done without being asked: guests that end by themselves are let go of, and what timeouts have
//! seen to is forgotten.

use std::sync::Weak;

use tokio_util::sync::CancellationToken;
use wrenn_core::{EventKind, Events, SandboxState};

use super::sandboxes::Sandboxes;

/// Follows what happens, until the service ends.
pub(super) async fn tend(sandboxes: Weak<Sandboxes>, mut events: Events, ending: CancellationToken) {
    loop {
        let event = tokio::select! {
            event = events.next() => event,
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

//! What happens to sandboxes, told to whoever watches.

use std::sync::Arc;
use std::time::Duration;

use connectrpc::ConnectError;
use futures_util::{Stream, stream};
use tokio_util::sync::CancellationToken;
use wrenn_core::{EventKind as Core, Events, SandboxState as State};

use super::sandboxes::Sandboxes;
use crate::pb;
use crate::pb::__buffa::oneof::watch_response::Event;
use crate::types::{EventKind, OnTimeout, SandboxEvent};

/// How long a stream is silent before it gives a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

struct Watch {
    sandboxes: Arc<Sandboxes>,
    events: Events,
    ending: CancellationToken,
    /// Whether it was said that nothing is missed any more.
    ready: bool,
}

/// Begins to listen, and tells of what is heard.
pub(super) fn watch(
    sandboxes: Arc<Sandboxes>,
    ending: CancellationToken,
) -> impl Stream<Item = Result<pb::WatchResponse, ConnectError>> + Send + 'static {
    let events = sandboxes.events();
    let watch = Watch { sandboxes, events, ending, ready: false };
    stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((Ok(pb::WatchResponse { event: Some(event) }), watch))
    })
}

impl Watch {
    async fn next(&mut self) -> Option<Event> {
        if !self.ready {
            self.ready = true;
            return Some(Event::Ready(Box::default()));
        }
        loop {
            let drawn = tokio::select! {
                drawn = tokio::time::timeout(KEEP_ALIVE, self.events.next()) => drawn,
                () = self.ending.cancelled() => return None,
            };
            match drawn {
                Err(_) => return Some(Event::KeepAlive(Box::default())),
                Ok(Ok(None)) => return None,
                Ok(Err(lost)) => {
                    return Some(Event::Lost(Box::new(pb::watch_response::Lost { count: lost.count })));
                }
                Ok(Ok(Some(event))) => {
                    let Some(kind) = self.kind(&event.sandbox, event.kind).await else { continue };
                    let event = SandboxEvent { sandbox: event.sandbox, at: event.at, kind };
                    return Some(Event::Sandbox(Box::new(event.into_wire())));
                }
            }
        }
    }

    /// What is told of an event, if anything.
    async fn kind(&self, id: &wrenn_base::SandboxId, kind: Core) -> Option<EventKind> {
        Some(match kind {
            Core::State { to: Some(State::Starting | State::Resuming), .. } => EventKind::Starting,
            Core::State { to: Some(State::Running), .. } => EventKind::Running,
            Core::State { to: Some(State::Pausing), .. } => EventKind::Pausing,
            Core::State { to: Some(State::Stopping), .. } => EventKind::Stopping,
            // It is at rest: on disk, or no more.
            Core::State { to: None, .. } => match self.sandboxes.missing(id).await {
                Ok(true) => EventKind::Destroyed,
                _ => EventKind::Paused,
            },
            Core::Expired { then } => EventKind::Expired {
                then: match then {
                    wrenn_core::OnTimeout::Destroy => OnTimeout::Destroy,
                    wrenn_core::OnTimeout::Pause => OnTimeout::Pause,
                },
            },
            Core::ExpiryFailed { error, .. } => EventKind::ExpiryFailed { error },
            Core::GuestEnded { status } => EventKind::GuestEnded { status },
            _ => return None,
        })
    }
}

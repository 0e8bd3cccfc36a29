//! `wrenn events`

use std::time::UNIX_EPOCH;

use serde::Serialize;
use wrenn_core::SandboxId;
use wrenn_host::{EventKind, SandboxEvent, WatchEvent};

use super::{Context, Result};

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum View {
    Sandbox { id: SandboxId, event: &'static str, at_ms: u64, detail: Option<String> },
    Lost { lost: u64 },
}

/// Prints one line for each, until interrupted.
pub(crate) async fn run(context: &Context) -> Result<()> {
    let mut events = context.host().watch().await?;
    loop {
        let event = tokio::select! {
            event = events.next() => event?.ok_or("the host process has ended")?,
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
        };
        let view = match event {
            WatchEvent::Sandbox(event) => view(event),
            WatchEvent::Lost { count } => View::Lost { lost: count },
            _ => continue,
        };
        context.format.print(&view, text)?;
    }
}

fn view(event: SandboxEvent) -> View {
    let at = event.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (word, detail) = match event.kind {
        EventKind::Starting => ("starting", None),
        EventKind::Running => ("running", None),
        EventKind::Pausing => ("pausing", None),
        EventKind::Paused => ("paused", None),
        EventKind::Stopping => ("stopping", None),
        EventKind::Destroyed => ("destroyed", None),
        EventKind::Expired { .. } => ("expired", None),
        EventKind::ExpiryFailed { error } => ("expiry failed", Some(error)),
        EventKind::GuestEnded { status } => ("guest ended", Some(status)),
        _ => ("unknown", None),
    };
    View::Sandbox {
        id: event.sandbox,
        event: word,
        at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
        detail,
    }
}

fn text(view: &View) -> String {
    match view {
        View::Sandbox { id, event, detail: Some(detail), .. } => {
            format!("{id}  {event}: {}\n", crate::printable(detail))
        }
        View::Sandbox { id, event, .. } => format!("{id}  {event}\n"),
        View::Lost { lost } => format!("{lost} events were lost\n"),
    }
}

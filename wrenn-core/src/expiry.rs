//! The watch over timeouts: one task per host, which looks once a second, and one for each sandbox that expires.
//!
//! A sandbox that is at work has no time at which it expires. One that was to be paused, and could not, runs on: it is
//! tried again, later each time, and never destroyed instead.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use wrenn_base::SandboxId;

use crate::events::EventKind;
use crate::host::HostInner;
use crate::instance::pause_held;
use crate::lifecycle::SandboxState;
use crate::lifetime::OnTimeout;
use crate::registry::{Entry, Held, Registry};

/// How late an expiry may be seen.
const TICK: Duration = Duration::from_secs(1);

/// Expires sandboxes until the host is gone.
pub(crate) async fn watch(host: Weak<HostInner>, registry: Registry) {
    let mut expiring: JoinSet<SandboxId> = JoinSet::new();
    let mut under_way: Vec<SandboxId> = Vec::new();
    loop {
        let mut times_out = false;
        for (state, entry) in registry.entries() {
            times_out |= entry.clock.lifetime().timeout_ms.is_some();
            // Until it runs, and once it stops, there is nothing to be had.
            let has_machine = matches!(state, SandboxState::Running | SandboxState::Pausing);
            if has_machine && is_due(&entry) && !under_way.contains(&entry.id) {
                let Some(host) = host.upgrade() else { return };
                under_way.push(entry.id.clone());
                expiring.spawn(async move {
                    expire(&host, &entry).await;
                    entry.id.clone()
                });
            }
        }
        if host.strong_count() == 0 {
            return;
        }
        let tick = async {
            match times_out {
                true => tokio::time::sleep(TICK).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(done) = expiring.join_next() => match done {
                Ok(id) => under_way.retain(|other| *other != id),
                // A bug: nobody knows whose it was, so all may be tried again.
                Err(_) => under_way.clear(),
            },
            () = registry.changed() => {}
            () = tick => {}
        }
    }
}

fn is_due(entry: &Entry) -> bool {
    entry.is_abandoned() || entry.clock.expires().is_some_and(|at| at <= Instant::now())
}

async fn expire(host: &Arc<HostInner>, entry: &Arc<Entry>) {
    let mut held = entry.hold().await;
    if entry.take_up() {
        drop(held.take());
        return;
    }
    // Somebody may have come while this waited.
    if held.is_none() || !is_due(entry) {
        return;
    }
    let then = entry.clock.lifetime().on_timeout;
    host.registry.tell(&entry.id, EventKind::Expired { then });
    match then {
        OnTimeout::Pause => pause(host, entry, &mut held).await,
        OnTimeout::Destroy => destroy(host, entry, &mut held).await,
    }
}

async fn pause(host: &Arc<HostInner>, entry: &Entry, held: &mut Held) {
    if let Err(cause) = pause_held(host, entry, held, Some(OnTimeout::Pause)).await {
        let again_in = held.is_some().then(|| entry.clock.put_off());
        tracing::warn!(sandbox = %entry.id, error = %cause, "a pause at a timeout failed");
        host.registry.tell(&entry.id, EventKind::ExpiryFailed { error: cause.to_string(), again_in });
    }
}

async fn destroy(host: &Arc<HostInner>, entry: &Entry, held: &mut Held) {
    let Some(instance) = held.take() else { return };
    let error = match instance.destroy(host, Some(OnTimeout::Destroy)).await {
        Ok(failures) => failures.first().map(ToString::to_string),
        Err(cause) => Some(cause.to_string()),
    };
    if let Some(error) = error {
        host.registry.tell(&entry.id, EventKind::ExpiryFailed { error, again_in: None });
    }
}

//! Attending to a host: asking it how it is, hearing what happens to its sandboxes, and comparing what it has with what
//! the database says.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use wrenn_host::{Description, HostClient, HostError, WatchEvent};

use super::NoClient;
use crate::app::App;
use crate::db;
use crate::reconcile::{self, Ends};

/// How often hosts that were added or removed are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often a host is asked how it is.
const BEAT_EVERY: Duration = Duration::from_secs(10);
/// How often everything is compared, though nothing was heard.
const COMPARE_EVERY: Duration = Duration::from_secs(30);
/// How long a host may take to say how it is.
const BEAT_LIMIT: Duration = Duration::from_secs(10);
/// After so long without an answer to any control plane, a host's sandboxes are missing.
const SILENCE: Duration = Duration::from_secs(20);
/// How long to wait before a host that does not answer is asked again.
const RETRY: Duration = Duration::from_secs(2);

/// Why a host is left for a while.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("it does not answer")]
    Host(#[from] HostError),
    #[error("it has no client")]
    Client(#[from] NoClient),
    #[error("the database cannot be used")]
    Database(#[from] sqlx::Error),
    #[error("it took too long to say how it is")]
    Slow,
    #[error("its data directory is another than the one that its sandboxes are in")]
    Another,
    #[error("it ended its events")]
    Closed,
}

impl From<reconcile::Failed> for Lost {
    fn from(failed: reconcile::Failed) -> Self {
        match failed {
            reconcile::Failed::Host(error) => Self::Host(error),
            reconcile::Failed::Database(error) => Self::Database(error),
        }
    }
}

/// Attends to every host that the database knows, for as long as it is polled.
pub(crate) async fn attend_to_all(app: App) {
    let mut attended: HashMap<String, (String, AbortOnDropHandle<()>)> = HashMap::new();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let hosts = match db::hosts::all(&app.db).await {
            Ok(hosts) => hosts,
            Err(error) => {
                tracing::warn!(%error, "hosts could not be looked for");
                continue;
            }
        };
        attended.retain(|name, (endpoint, _)| {
            hosts.iter().any(|host| host.name == *name && host.endpoint == *endpoint)
        });
        for host in hosts {
            attended.entry(host.name.clone()).or_insert_with(|| {
                let task = tokio::spawn(attend(app.clone(), host.name, host.endpoint.clone()));
                (host.endpoint, AbortOnDropHandle::new(task))
            });
        }
    }
}

/// Attends to one host, for as long as it is polled.
async fn attend(app: App, name: String, endpoint: String) {
    loop {
        let lost = match follow(&app, &name, &endpoint).await {
            Err(Lost::Client(NoClient::Elsewhere)) => {
                // Whoever has it attends to it.
                sleep(COMPARE_EVERY).await;
                continue;
            }
            Err(lost) => lost,
            Ok(never) => match never {},
        };
        let cause = std::error::Error::source(&lost).map(ToString::to_string).unwrap_or_default();
        tracing::warn!(host = name, %lost, cause, "lost a host");
        if let Err(error) = note_silence(&app, &name).await {
            tracing::warn!(host = name, %error, "a host's silence could not be noted");
        }
        sleep(RETRY).await;
    }
}

/// Makes the sandboxes of a host missing that nobody heard of for a while.
async fn note_silence(app: &App, name: &str) -> sqlx::Result<()> {
    if !db::hosts::miss(&app.db, name, SILENCE.as_secs_f64()).await? {
        return Ok(());
    }
    let missing = db::sandboxes::miss(&app.db, name).await?;
    if !missing.is_empty() {
        tracing::warn!(host = name, count = missing.len(), "sandboxes are missing until their host answers");
    }
    Ok(())
}

/// Follows a host until it is lost.
async fn follow(app: &App, name: &str, endpoint: &str) -> Result<std::convert::Infallible, Lost> {
    let client = app.hosts.client(name, endpoint)?;
    beat(app, name, &client).await?;
    // Watched before it is compared, so that nothing falls between the two.
    let mut events = client.watch().await?;
    let mut ends = Ends::default();
    reconcile::host(app, name, &client, &ends).await?;
    tracing::info!(host = name, "attending to a host");
    let (mut beats, mut comparisons) = (ticks(BEAT_EVERY), ticks(COMPARE_EVERY));
    loop {
        tokio::select! {
            event = events.next() => match event?.ok_or(Lost::Closed)? {
                WatchEvent::Sandbox(event) => {
                    if ends.note(&event) {
                        reconcile::one(app, name, &client, &event.sandbox, &ends).await?;
                    }
                }
                // Events were lost, or are of a kind that only a newer host knows.
                _ => comparisons.reset_immediately(),
            },
            _ = beats.tick() => beat(app, name, &client).await?,
            _ = comparisons.tick() => {
                reconcile::host(app, name, &client, &ends).await?;
                ends.forget_old();
            }
        }
    }
}

/// Ticks from the next one on: the first would come at once.
fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Asks a host how it is and notes what it says.
async fn beat(app: &App, name: &str, client: &HostClient) -> Result<(), Lost> {
    let said = timeout(BEAT_LIMIT, client.describe()).await.map_err(|_| Lost::Slow)??;
    let images: Vec<String> = said.images.iter().map(|image| image.as_str().to_owned()).collect();
    let heartbeat = heartbeat(&said, &images);
    if !db::hosts::beat(&app.db, name, &heartbeat).await? {
        return Err(Lost::Another);
    }
    // Whether it drains is decided in the database; a host that was away when it changed is told now.
    let wanted = db::hosts::find(&app.db, name).await?.is_some_and(|host| host.draining);
    if wanted != said.draining {
        client.drain(wanted).await?;
    }
    Ok(())
}

fn heartbeat<'a>(said: &'a Description, images: &'a [String]) -> db::hosts::Heartbeat<'a> {
    db::hosts::Heartbeat {
        host_id: said.host_id.as_str(),
        version: &said.version,
        vcpus: i32::try_from(said.vcpus_total).unwrap_or(i32::MAX),
        memory_mib: said.memory_total.0.into(),
        available_mib: said.memory_available.0.into(),
        disk_free_bytes: i64::try_from(said.disk_free.get()).unwrap_or(i64::MAX),
        images,
    }
}

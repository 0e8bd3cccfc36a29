//! Watches and those who watch: a stream, or a caller that asks from time to time.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use connectrpc::ConnectError;
use futures_util::{Stream, StreamExt, stream};
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use wrenn_agent_api::proto::filesystem as pb;
use wrenn_agent_api::proto::filesystem::__buffa::oneof::watch_dir_response::Event;

use super::blocking;
use super::watch::{Subject, Watch};
use crate::rpc;

/// The most watchers at once that are asked from time to time: clients may forget theirs.
const MAX_WATCHERS: usize = 100;

/// How many events are read ahead for a stream: more wait in the kernel.
const READ_AHEAD: usize = 256;

/// The watchers that are asked from time to time.
#[derive(Default)]
pub(crate) struct Watchers(Mutex<Table>);

#[derive(Default)]
struct Table {
    last: u64,
    watchers: HashMap<String, Watcher>,
}

/// A watch, and the task that takes its events over as they come.
struct Watcher {
    watch: Arc<Mutex<Watch>>,
    task: AbortHandle,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watchers {
    /// Makes a watcher, and returns what it is called.
    pub(super) async fn create(&self, subject: Subject) -> Result<String, ConnectError> {
        let watch = blocking(move || Watch::begin(subject)).await?;
        let inotify = watch.inotify();
        let watch = Arc::new(Mutex::new(watch));
        let mut table = self.lock();
        if table.watchers.len() >= MAX_WATCHERS {
            return Err(ConnectError::resource_exhausted(format!(
                "there are {MAX_WATCHERS} watchers already: remove some"
            )));
        }
        let task = tokio::spawn(carry(watch.clone(), inotify)).abort_handle();
        table.last += 1;
        let id = format!("w{}", table.last);
        table.watchers.insert(id.clone(), Watcher { watch, task });
        Ok(id)
    }

    /// What the watcher saw since it was asked last.
    pub(super) async fn events(&self, id: &str) -> Result<Vec<pb::FilesystemEvent>, ConnectError> {
        let watch = self.lock().watchers.get(id).map(|watcher| watcher.watch.clone());
        let watch = watch.ok_or_else(|| no_watcher(id))?;
        // What was done before the call is in the kernel's queue, even if the task did not get to it.
        blocking(move || {
            let mut watch = lock(&watch);
            watch.pump(usize::MAX);
            watch.queue.drain()
        })
        .await
    }

    /// Removes a watcher.
    pub(super) fn remove(&self, id: &str) -> Result<(), ConnectError> {
        self.lock().watchers.remove(id).map(drop).ok_or_else(|| no_watcher(id))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_watcher(id: &str) -> ConnectError {
    ConnectError::not_found(format!("there is no watcher '{id}'"))
}

/// Takes events over as they come: new directories must be watched at once.
async fn carry(watch: Arc<Mutex<Watch>>, inotify: Arc<AsyncFd<OwnedFd>>) {
    while pump(&watch, &inotify, usize::MAX).await.is_ok() {}
}

/// Waits until there is something, and takes it over.
async fn pump(
    watch: &Arc<Mutex<Watch>>,
    inotify: &AsyncFd<OwnedFd>,
    limit: usize,
) -> Result<(), ConnectError> {
    let mut ready = inotify.readable().await.map_err(|e| ConnectError::internal(e.to_string()))?;
    let watch = watch.clone();
    if blocking(move || Ok(lock(&watch).pump(limit))).await? {
        // Does nothing if more has come since it was ready.
        ready.clear_ready();
    }
    Ok(())
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The events of a stream: the start, what comes, keepalives in the pauses. It ends where events were lost.
///
/// A stream that nobody reads leaves what comes in the kernel's queue.
pub(super) async fn watch(
    subject: Subject,
    keepalive: Duration,
    deadline: Option<Instant>,
) -> Result<impl Stream<Item = Result<pb::WatchDirResponse, ConnectError>> + Send + 'static, ConnectError> {
    let watch = blocking(move || Watch::begin(subject)).await?;
    let inotify = watch.inotify();
    let state = Some((Arc::new(Mutex::new(watch)), inotify));
    let rest = stream::unfold(state, move |state| async move {
        let (watch, inotify) = state?;
        loop {
            let next = lock(&watch).queue.pop();
            match next {
                Some(Ok(event)) => return Some((Ok(answer(event)), Some((watch, inotify)))),
                Some(Err(error)) => return Some((Err(error), None)),
                None => {}
            }
            let pumped = tokio::select! {
                pumped = tokio::time::timeout(keepalive, pump(&watch, &inotify, READ_AHEAD)) => pumped,
                () = rpc::passed(deadline) => return Some((Err(rpc::too_late("the call")), None)),
            };
            match pumped {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Some((Err(error), None)),
                Err(_) => {
                    let alive = answer(pb::watch_dir_response::KeepAlive::default());
                    return Some((Ok(alive), Some((watch, inotify))));
                }
            }
        }
    });
    let start = Ok(answer(pb::watch_dir_response::StartEvent::default()));
    Ok(stream::iter([start]).chain(rest))
}

fn answer(event: impl Into<Option<Event>>) -> pb::WatchDirResponse {
    pb::WatchDirResponse { event: event.into() }
}

//! Blocking work on behalf of an async call, with the undo list at hand and cancellation taken care of.

use std::io;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{JoinError, spawn_blocking};
use wrenn_base::{Reaper, UndoFailure, UndoList};

use crate::error::Cause;

/// Runs `work` on a blocking thread and waits for it.
///
/// # Cancel safety
/// A dropped future does not stop `work`: it runs to its end, and its value is dropped there.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap_or_else(go_on_panicking)
}

/// Runs `work` as a task of its own and waits for it.
///
/// # Cancel safety
/// A dropped future does not stop `work`: it runs to its end.
pub(crate) async fn to_its_end<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    runtime.spawn(work).await.unwrap_or_else(go_on_panicking)
}

/// Runs `work` on a blocking thread with `undo`, to which it adds what it makes.
///
/// # Cancel safety
/// The list travels with the work. If the future is dropped, the work ends, and then everything in the list, the
/// steps from before this one included, is undone by the reaper.
pub(crate) async fn building<T: Send + 'static>(
    undo: &mut UndoList,
    reaper: &Reaper,
    work: impl FnOnce(&mut UndoList) -> T + Send + 'static,
) -> T {
    let mut list = std::mem::replace(undo, UndoList::new(reaper));
    let (value, list) = blocking(move || {
        let value = work(&mut list);
        (value, list)
    })
    .await;
    *undo = list;
    value
}

/// Undoes everything in `undo` on the reaper's thread and waits for the failures.
///
/// # Cancel safety
/// A dropped future does not stop the undoing.
pub(crate) async fn undo_all(undo: UndoList, limit: Duration) -> Vec<UndoFailure> {
    let (done, failures) = oneshot::channel();
    undo.run_in_background(limit, move |list| drop(done.send(list)));
    failures.await.expect("the reaper answers every list")
}

/// The result of a removal: what was not there has been removed.
pub(crate) fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// A place at which tests make calls fail or the process die; see [`wrenn_base::fault`].
pub(crate) fn checkpoint(name: &'static str) -> Result<(), Cause> {
    wrenn_base::fault::point(name).map_err(|source| Cause::io("pass", name, source))
}

fn go_on_panicking<T>(error: JoinError) -> T {
    // None of these tasks is ever aborted, so the only other way to end is a panic: it is the caller's.
    std::panic::resume_unwind(error.into_panic())
}

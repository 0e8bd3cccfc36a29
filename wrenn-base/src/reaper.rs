//! The thread that runs undo lists for those who must not block.

use std::sync::mpsc;
use std::time::Duration;

use crate::undo::{UndoFailure, UndoList};

type Done = Box<dyn FnOnce(Vec<UndoFailure>) + Send>;

enum Job {
    Undo { list: UndoList, limit: Duration, done: Done },
    Barrier(mpsc::Sender<()>),
}

/// A handle to the reaper thread; clones share the thread, which ends with its last handle.
///
/// Lists run one after the other in the order they were handed over.
#[derive(Debug, Clone)]
pub struct Reaper {
    jobs: mpsc::Sender<Job>,
}

impl Reaper {
    /// How long a dropped list may take: nobody waits for it, but the next list does.
    pub(crate) const DROP_LIMIT: Duration = Duration::from_secs(30);

    /// Starts the thread.
    ///
    /// # Panics
    /// Where the operating system refuses a thread.
    pub fn start() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("wrenn-reaper".into())
            .spawn(move || {
                for job in queue {
                    match job {
                        Job::Undo { list, limit, done } => done(list.run(limit)),
                        Job::Barrier(reached) => drop(reached.send(())),
                    }
                }
            })
            .expect("the operating system grants a thread");
        Self { jobs }
    }

    pub(crate) fn submit(&self, list: UndoList, limit: Duration, done: Done) {
        if let Err(mpsc::SendError(Job::Undo { list, .. })) = self.jobs.send(Job::Undo { list, limit, done })
        {
            // The thread can only be gone if `done` panicked. Never block a drop: a thread of its own serves.
            std::thread::spawn(move || list.run(limit));
        }
    }

    /// Blocks until every list handed over so far has run, at most `limit`; false if it was not enough.
    pub fn wait_idle(&self, limit: Duration) -> bool {
        let (reached, wait) = mpsc::channel();
        self.jobs.send(Job::Barrier(reached)).is_err() || wait.recv_timeout(limit).is_ok()
    }
}

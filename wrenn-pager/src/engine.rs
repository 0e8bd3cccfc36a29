//! All sandboxes whose memory this process pages in, and who keeps it alive.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wrenn_base::{BoxError, SandboxId, in_one_line};

use crate::caches::PageCaches;
use crate::protocol::{Reply, Request};
use crate::session::Session;

/// How long a program may take to connect to the pager that it started.
const FIRST_KEEPER: Duration = Duration::from_secs(30);
/// How often it is looked whether anybody is served still, once no program is there to say so.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(crate) struct Engine {
    caches: PageCaches,
    state: Mutex<State>,
    /// A program has come or gone.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<SandboxId, Arc<Session>>,
    /// How many programs keep this process alive.
    keepers: usize,
    /// There has been one.
    was_kept: bool,
}

/// As long as there is one, the process does not end.
pub(crate) struct Keeper(Arc<Engine>);

impl State {
    fn serves(&self) -> bool {
        self.sessions.values().any(|session| session.serves())
    }
}

impl Engine {
    /// Every change is one insert, remove or assignment, so a panic elsewhere leaves it sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a program that keeps this process alive.
    pub(crate) fn keep(self: &Arc<Self>) -> Keeper {
        let mut state = self.state();
        state.keepers += 1;
        state.was_kept = true;
        Keeper(Arc::clone(self))
    }

    /// Blocks until there is no program and nobody who is served.
    pub(crate) fn wait_until_idle(&self) {
        let begun = Instant::now();
        let mut state = self.state();
        loop {
            let wanted = if state.was_kept { state.keepers > 0 } else { begun.elapsed() < FIRST_KEEPER };
            if !wanted && !state.serves() {
                return;
            }
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn answer(&self, request: Request) -> Reply {
        self.try_to(request).unwrap_or_else(|error| Reply::Failed { why: in_one_line(&*error) })
    }

    fn try_to(&self, request: Request) -> Result<Reply, BoxError> {
        match request {
            Request::Keep => return Err("a program keeps the pager by a connection of its own".into()),
            Request::Begin { sandbox, image, options } => {
                // Outside of the lock, as it reads files. Of one sandbox there is one restore at a time.
                let session = Arc::new(Session::begin(image, options, &self.caches)?);
                let before = self.state().sessions.insert(sandbox, session);
                if let Some(before) = before {
                    before.end();
                }
            }
            Request::Serve { sandbox, socket, cached } => self.session(&sandbox)?.serve(&socket, cached)?,
            Request::Answered { sandbox } => self.session(&sandbox)?.answered()?,
            Request::Status { sandbox } => {
                return Ok(Reply::Status(self.find(&sandbox).map(|session| Box::new(session.status()))));
            }
            Request::End { sandbox } => {
                let ended = self.state().sessions.remove(&sandbox);
                return Ok(Reply::Status(ended.map(|session| Box::new(session.end()))));
            }
            Request::List => return Ok(Reply::Sandboxes(self.state().sessions.keys().cloned().collect())),
        }
        Ok(Reply::Done)
    }

    fn find(&self, sandbox: &SandboxId) -> Option<Arc<Session>> {
        self.state().sessions.get(sandbox).cloned()
    }

    fn session(&self, sandbox: &SandboxId) -> Result<Arc<Session>, BoxError> {
        self.find(sandbox).ok_or_else(|| format!("nothing was begun for sandbox {sandbox}").into())
    }
}

impl Keeper {
    /// Lets go; whether the process goes on all the same.
    pub(crate) fn leave(self) -> bool {
        let mut state = self.0.state();
        state.keepers -= 1;
        self.0.changed.notify_all();
        state.keepers > 0 || state.serves()
    }
}

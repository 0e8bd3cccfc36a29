//! Slots made ahead, so that a sandbox that needs one need not wait.
//!
//! ```text
//!   refill thread: claim a free index ─> make ─> ready ─┐      take: ready, or else make one now
//!                       ^                               │             │
//!                       '── wakes when one is taken <───┴─────────────┘
//! ```
//!
//! A slot that is ready has an undo list of its own. When it is taken, the same undos go to the taker's list before
//! the slot's own is given up: at no time does a slot belong to no list.
//!
//! The end of a pool is one job: stop the thread, wait for it, undo what is ready. [`SlotPool::close`] does it at
//! once; a drop leaves it to the reaper, as it must not block.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wrenn_base::{Deadline, Reaper, UndoFailure, UndoList};

use crate::egress::EgressPolicy;
use crate::error::NetError;
use crate::host::HostNet;
use crate::link::Links;
use crate::slot::{Plan, Slot, register_undo};

/// How long the thread leaves the host in peace after a failure, or while no index is free.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the undo of a slot that could not be made may take.
const UNDO_LIMIT: Duration = Duration::from_secs(30);

/// Slots of one host, made ahead by a thread of the pool's own.
///
/// Slots of a pool are named by their index, as nobody knows yet whose they will be. The pool has to end before the
/// undo list of its [`HostNet`] runs.
///
/// ```no_run
/// # use std::time::Duration;
/// # use wrenn_base::{HostId, Reaper, UndoList};
/// # use wrenn_net::{EgressPolicy, HostNet, HostNetSpec, SlotPool};
/// # let reaper = Reaper::start();
/// # let mut host_undo = UndoList::new(&reaper);
/// # let net = HostNet::open(HostNetSpec::new(HostId::random(), "/run/wrenn-netns"), &mut host_undo)?;
/// let pool = SlotPool::start(&net, 1..=1000, 8, &reaper)?;
/// let mut undo = UndoList::new(&reaper);
/// let slot = pool.take(&EgressPolicy::default(), &mut undo)?;
/// assert!(pool.close(Duration::from_secs(10)).is_empty());
/// # Ok::<(), wrenn_net::NetError>(())
/// ```
#[derive(Debug)]
pub struct SlotPool {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
    reaper: Reaper,
}

struct Inner {
    net: HostNet,
    indices: RangeInclusive<u16>,
    target: usize,
    reaper: Reaper,
    state: Mutex<State>,
    /// A slot was taken, or the pool ends.
    wake: Condvar,
    /// Is told how many are ready, whenever that changes.
    tell: Box<dyn Fn(usize) + Send + Sync>,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Ready>,
    /// The index to try next: one that was used a moment ago is left alone as long as there are others.
    next: Option<u16>,
    ending: bool,
}

/// A slot that nobody has yet.
#[derive(Debug)]
struct Ready {
    slot: Slot,
    plan: Plan,
    undo: UndoList,
}

impl SlotPool {
    /// Starts making `ready` slots with indices from `indices`, which the pool shares with whoever else makes slots:
    /// what is in use is passed over. There are fewer while indices are lacking.
    ///
    /// # Errors
    /// [`NetError::IndexOutOfRange`] for an index that the address pool has not; [`NetError::Step`] where the
    /// operating system refuses a thread. Nothing is started then.
    pub fn start(
        net: &HostNet,
        indices: RangeInclusive<u16>,
        ready: usize,
        reaper: &Reaper,
    ) -> Result<Self, NetError> {
        Self::start_telling(net, indices, ready, reaper, |_| {})
    }

    /// As [`Self::start`], and `tell` is called with the number of slots that are ready whenever that has changed. It must
    /// not block.
    ///
    /// # Errors
    /// Those of [`Self::start`].
    pub fn start_telling(
        net: &HostNet,
        indices: RangeInclusive<u16>,
        ready: usize,
        reaper: &Reaper,
        tell: impl Fn(usize) + Send + Sync + 'static,
    ) -> Result<Self, NetError> {
        for &end in [indices.start(), indices.end()] {
            net.shared.pool.pair(end)?;
        }
        let inner = Arc::new(Inner {
            net: net.clone(),
            indices,
            target: ready,
            reaper: reaper.clone(),
            state: Mutex::default(),
            wake: Condvar::new(),
            tell: Box::new(tell),
        });
        let refilled = Arc::clone(&inner);
        let thread = thread::Builder::new()
            .name("wrenn-slots".into())
            .spawn(move || refilled.refill())
            .map_err(|e| NetError::step("start the thread that makes slots ahead", e))?;
        Ok(Self { inner, thread: Some(thread), reaper: reaper.clone() })
    }

    /// Takes a slot: one that is ready, or else one made now. From here on `undo` removes it.
    ///
    /// Blocks for some 10 milliseconds if none is ready, and for a millisecond if the policy is not the default.
    ///
    /// # Errors
    /// [`NetError::NoFreeIndex`] and the errors of [`HostNet::slot`] with nothing left of the attempt; those of
    /// [`Slot::set_egress`] with the slot's undo in `undo`.
    pub fn take(&self, egress: &EgressPolicy, undo: &mut UndoList) -> Result<Slot, NetError> {
        let ready = self.inner.change(VecDeque::pop_front);
        self.inner.wake.notify_one();
        let Ready { slot, plan, undo: own } = ready.map_or_else(|| self.inner.make(), Ok)?;
        register_undo(&self.inner.net.shared, &plan, undo);
        own.commit();
        slot.set_egress(egress)?;
        Ok(slot)
    }

    /// Takes over the slot of an earlier process that a [sweep](HostNet::sweep) kept, and gives it this policy. From here on
    /// `undo` removes it. Until then its guest may have been cut off, if it had a policy of its own.
    ///
    /// # Errors
    /// [`NetError::SlotGone`] where no sweep kept it, or somebody has taken it over; others with the slot's undo in `undo`: [`NetError::Step`] where it is
    /// not whole, and those of [`Slot::set_egress`].
    pub fn take_over(
        &self,
        index: u16,
        egress: &EgressPolicy,
        undo: &mut UndoList,
    ) -> Result<Slot, NetError> {
        let shared = &self.inner.net.shared;
        let plan = self.inner.plan(index, shared.claim_kept(index)?)?;
        register_undo(shared, &plan, undo);
        let missing =
            |what: String| NetError::step(format!("take over {what}"), io::ErrorKind::NotFound.into());
        let found = shared.on_host(|| {
            Links::open()
                .find(&plan.link)
                .map_err(|e| NetError::step(format!("find the link {}", plan.link), e))
        })?;
        if found.is_none() {
            return Err(missing(format!("the link {}", plan.link)));
        }
        if !plan.netns.exists() {
            return Err(missing(format!("the namespace {}", plan.netns.display())));
        }
        let slot = Slot::of(shared, &plan);
        slot.set_egress(egress)?;
        Ok(slot)
    }

    /// The name of the namespace of the slot with an index.
    pub fn namespace_name(index: u16) -> String {
        // No sandbox has this name: their ids are letters and digits.
        format!("slot-{index}")
    }

    /// How many slots are ready.
    pub fn ready(&self) -> usize {
        self.inner.state().ready.len()
    }

    /// Ends the pool and removes the slots that nobody took, within `limit`; slots that were taken stay.
    ///
    /// Returns what could not be removed.
    pub fn close(mut self, limit: Duration) -> Vec<UndoFailure> {
        match self.thread.take() {
            Some(thread) => self.inner.end(thread, Deadline::after(limit)),
            None => Vec::new(),
        }
    }

    /// As [`Self::close`], where slots that were taken are left to a later process: what answers their guests' questions
    /// for names ends as well, and the undo list of the [`HostNet`] must not run.
    pub fn leave(self, limit: Duration) -> Vec<UndoFailure> {
        let net = self.inner.net.clone();
        let mut failures = self.close(limit);
        if let Err(source) = net.shared.end_resolver(Deadline::after(limit)) {
            failures.push(UndoFailure { what: "the resolver for names".into(), source: source.into() });
        }
        failures
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("net", &self.net)
            .field("indices", &self.indices)
            .finish_non_exhaustive()
    }
}

impl Drop for SlotPool {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.inner.stop();
        let inner = Arc::clone(&self.inner);
        let mut undo = UndoList::new(&self.reaper);
        undo.push("the slots made ahead", move |deadline| {
            inner.end(thread, deadline).into_iter().next().map_or(Ok(()), |failure| Err(failure.into()))
        });
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is ready, and tells of it.
    fn change<T>(&self, change: impl FnOnce(&mut VecDeque<Ready>) -> T) -> T {
        let mut state = self.state();
        let changed = change(&mut state.ready);
        (self.tell)(state.ready.len());
        changed
    }

    fn stop(&self) {
        self.state().ending = true;
        self.wake.notify_all();
    }

    /// Ends the thread first: what it was at is ready, or undone, by then.
    fn end(&self, thread: JoinHandle<()>, deadline: Deadline) -> Vec<UndoFailure> {
        self.stop();
        if thread.join().is_err() {
            tracing::error!("the thread that makes slots ahead panicked");
        }
        let ready = self.change(std::mem::take);
        ready.into_iter().flat_map(|ready| ready.undo.run(deadline.remaining())).collect()
    }

    /// The thread's work, until the pool ends.
    fn refill(&self) {
        loop {
            let mut state = self.state();
            while !state.ending && state.ready.len() >= self.target {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.ending {
                return;
            }
            drop(state);
            match self.make() {
                Ok(ready) => self.change(|slots| slots.push_back(ready)),
                Err(e) => {
                    tracing::warn!(error = %e, "no slot could be made ahead");
                    let state = self.state();
                    if !state.ending {
                        drop(self.wake.wait_timeout(state, PAUSE));
                    }
                }
            }
        }
    }

    /// Makes a slot with the first index that is free on the whole machine.
    fn make(&self) -> Result<Ready, NetError> {
        // Their undos free the indices, and wait so that none is tried twice. Failures are logged by the lists.
        let mut refused: Vec<UndoList> = Vec::new();
        let made = loop {
            let mut undo = UndoList::new(&self.reaper);
            let (index, claim) = match self.claim_free() {
                Ok(claimed) => claimed,
                Err(e) => break Err(e),
            };
            let plan = self.plan(index, claim)?;
            match self.net.make(&plan, &EgressPolicy::default(), &mut undo) {
                Ok(slot) => break Ok(Ready { slot, plan, undo }),
                Err(NetError::IndexTaken { .. }) => refused.push(undo),
                Err(e) => {
                    refused.push(undo);
                    break Err(e);
                }
            }
        };
        for undo in refused {
            undo.run(UNDO_LIMIT);
        }
        made
    }

    fn plan(&self, index: u16, claim: u64) -> Result<Plan, NetError> {
        let shared = &self.net.shared;
        Ok(Plan {
            note: format!("wrenn slot {index}"),
            index,
            claim,
            pair: shared.pool.pair(index)?,
            link: shared.link_name(index),
            netns: shared.pool_namespace(index),
        })
    }

    fn claim_free(&self) -> Result<(u16, u64), NetError> {
        let (first, last) = (*self.indices.start(), *self.indices.end());
        let next = self.state().next.filter(|next| self.indices.contains(next)).unwrap_or(first);
        for index in (next..=last).chain(first..next) {
            // The pool's state stays unlocked meanwhile: a claim waits for changes of the host's table.
            if let Ok(claim) = self.net.shared.claim(index) {
                self.state().next = index.checked_add(1);
                return Ok((index, claim));
            }
        }
        Err(NetError::NoFreeIndex { first, last })
    }
}

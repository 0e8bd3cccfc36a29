//! The gate that vCPU threads run past or park at: how the machine is paused, resumed and ended.
//!
//! The main thread gives an order, kicks the vCPU threads out of the guest, and waits until all are parked. A
//! thread looks at the order before it enters the guest and after each kick; nothing else does it leave for, so an
//! access to a port or to device memory that is half done is completed first (`KVM_RUN` does that before it
//! notices the kick).

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What vCPU threads are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Stay out of the guest.
    Park,
    /// Run the guest.
    Run,
    /// End the thread.
    End,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// Threads that are parked or have ended.
    parked: usize,
}

/// One gate for all vCPUs of a machine.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// A closed gate.
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State { order: Order::Park, parked: 0 }), changed: Condvar::new() }
    }

    /// The order that counts now.
    pub(crate) fn order(&self) -> Order {
        self.lock().order
    }

    /// Gives an order; threads inside the guest must be kicked to see it.
    pub(crate) fn give(&self, order: Order) {
        self.lock().order = order;
        self.changed.notify_all();
    }

    /// Parks the calling vCPU thread until it is to run (true) or end (false, still counted as parked).
    pub(crate) fn park(&self) -> bool {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |state| state.order == Order::Park)
            .unwrap_or_else(PoisonError::into_inner);
        let run = state.order == Order::Run;
        if run {
            state.parked -= 1;
        }
        run
    }

    /// Counts the calling vCPU thread, which will not run again, as parked for good.
    pub(crate) fn retire(&self) {
        self.lock().parked += 1;
        self.changed.notify_all();
    }

    /// Waits until `count` threads are parked, at most for `limit`; whether they are.
    pub(crate) fn wait_parked(&self, count: usize, limit: Duration) -> bool {
        let state = self.lock();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, limit, |state| state.parked < count)
            .unwrap_or_else(PoisonError::into_inner);
        state.parked >= count
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A plain pair of numbers: it is whole whatever happened to a thread that held the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn threads_park_run_and_end_as_ordered() {
        let gate = Arc::new(Gate::new());
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let gate = gate.clone();
                thread::spawn(move || {
                    let mut laps = 0;
                    while gate.park() {
                        laps += 1;
                        while gate.order() == Order::Run {
                            thread::yield_now();
                        }
                    }
                    laps
                })
            })
            .collect();
        assert!(gate.wait_parked(2, LONG));
        gate.give(Order::Run);
        while !threads.is_empty() && gate.lock().parked > 0 {
            thread::yield_now();
        }
        assert!(!gate.wait_parked(2, Duration::ZERO));
        gate.give(Order::Park);
        assert!(gate.wait_parked(2, LONG));
        gate.give(Order::End);
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 1);
        }
        assert!(gate.wait_parked(2, Duration::ZERO));
    }

    #[test]
    fn a_thread_that_will_not_run_again_counts_as_parked() {
        let gate = Gate::new();
        gate.give(Order::Run);
        gate.retire();
        assert!(gate.wait_parked(1, Duration::ZERO));
        assert!(!gate.wait_parked(2, Duration::ZERO));
    }
}

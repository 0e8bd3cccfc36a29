//! A device at work: its queues, served on the main thread.
//!
//! ```text
//!  idle ──start (DRIVER_OK)──► serving ──suspend──► suspended ──resume──► serving
//!   ▲                             │
//!   └───── stop (reset) ◄─────────┴── protocol broken: serves nothing, says DEVICE_NEEDS_RESET
//! ```
//!
//! `start` comes from a vCPU thread and only leaves the queues here; the device itself is told on the main
//! thread, where the system calls that this may need are allowed.
//!
//! Woken by four kinds of descriptor: a notifier for each queue (the driver has added requests), the
//! device's backend (a frame has come in), a timer (a device that may work only so fast may go on), and `kick`, by which other threads, and the worker itself when it
//! resumes, ask for every queue to be looked at.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::registers::Progress;
use super::ring::{Ring, RingError, Served};
use super::signals::Signals;
use super::{DeviceState, VirtioDevice};
use crate::action::Fault;
use crate::logger::GUEST;

/// One device and its queues.
pub(crate) struct Worker {
    device: Box<dyn VirtioDevice>,
    /// Empty while the driver has not set the device up; `None` for a queue that it does not use.
    rings: Vec<Option<Ring>>,
    /// The negotiated features, while the device has not been told of them.
    activation: Option<u64>,
    kick: EventFd,
    /// Of a device that has limits.
    timer: Option<TimerFd>,
    /// When the timer goes off, if it does.
    due: Option<Instant>,
    notifiers: Arc<[EventFd]>,
    signals: Arc<Signals>,
    suspended: bool,
}

impl Worker {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        kick: EventFd,
        timer: Option<TimerFd>,
        notifiers: Arc<[EventFd]>,
        signals: Arc<Signals>,
    ) -> Self {
        let (rings, activation, due, suspended) = (Vec::new(), None, None, false);
        Self { device, rings, activation, kick, timer, due, notifiers, signals, suspended }
    }

    /// Takes the queues into service as soon as the main loop can.
    pub(super) fn start(&mut self, features: u64, rings: Vec<Option<Ring>>) {
        self.rings = rings;
        self.activation = Some(features);
        self.wake();
    }

    /// Takes the queues into service. For the main thread.
    ///
    /// # Errors
    /// If the device cannot work with these features; it stays idle.
    pub(super) fn start_at_once(&mut self, features: u64, rings: Vec<Option<Ring>>) -> io::Result<()> {
        self.device.activate(features)?;
        self.rings = rings;
        self.wake();
        Ok(())
    }

    /// Gives the queues up: on return the device touches guest memory no more.
    pub(super) fn stop(&mut self) {
        self.rings.clear();
        self.activation = None;
    }

    /// Serves nothing until [`resume`](Self::resume).
    pub(super) fn suspend(&mut self) {
        self.suspended = true;
    }

    /// Serves on, beginning with what came in meanwhile.
    pub(super) fn resume(&mut self) {
        self.suspended = false;
        self.wake();
    }

    /// How far each queue has got.
    pub(super) fn progress(&self) -> Vec<Progress> {
        let progress = |ring: &Option<Ring>| {
            let state = ring.as_ref().map(Ring::state).unwrap_or_default();
            Progress { next_avail: state.next_avail, next_used: state.next_used }
        };
        self.rings.iter().map(progress).collect()
    }

    pub(super) fn save_device(&self) -> io::Result<DeviceState> {
        self.device.save()
    }

    fn wake(&self) {
        // Fails only if the counter is at its limit, and then the loop is awake already.
        let _ = self.kick.write(1);
    }

    fn serve_all(&mut self) {
        if let Some(Err(error)) = self.activation.take().map(|features| self.device.activate(features)) {
            log::warn!(target: GUEST, "virtio device {} cannot start: {error}", self.device.device_id());
            return self.signals.stopped();
        }
        // A notification, an interrupt or a frame may have been lost to a pause or to a snapshot.
        self.signals.repeat();
        for index in 0..self.rings.len() {
            self.serve(index);
        }
    }

    fn serve(&mut self, index: usize) {
        if self.suspended || self.activation.is_some() || self.signals.needs_reset() {
            return;
        }
        let Some(Some(ring)) = self.rings.get_mut(index) else { return };
        match serve_one(&mut *self.device, index, ring) {
            Ok((served, interrupt)) => {
                if interrupt {
                    self.signals.answered();
                }
                match served {
                    Served::All => {}
                    Served::Some => drop(self.notifiers[index].write(1)),
                    Served::Later(pause) => self.go_on_in(pause),
                }
            }
            Err(error) => {
                log::warn!(
                    target: GUEST,
                    "virtio device {} needs a reset: {}",
                    self.device.device_id(),
                    Fault::from_error(&error)
                );
                self.signals.stopped();
            }
        }
    }
}

impl Worker {
    /// Has every queue looked at in so much time, unless that is to happen earlier.
    fn go_on_in(&mut self, pause: Duration) {
        let due = Instant::now() + pause;
        let Some(timer) = self.timer.as_mut().filter(|_| self.due.is_none_or(|earlier| due < earlier)) else {
            return;
        };
        match timer.reset(pause.max(Duration::from_nanos(1)), None) {
            Ok(()) => self.due = Some(due),
            Err(error) => log::error!("a device's timer cannot be set: {error}"),
        }
    }

    /// The timer went off, unless it was set anew after that.
    fn timer_went_off(&mut self) {
        if self.due.is_some_and(|due| Instant::now() < due) {
            return;
        }
        // It is put back rather than read, which would block where it was set anew.
        let _ = self.timer.as_mut().map(TimerFd::clear);
        self.due = None;
        for index in 0..self.rings.len() {
            self.serve(index);
        }
    }
}

fn serve_one(
    device: &mut dyn VirtioDevice,
    index: usize,
    ring: &mut Ring,
) -> Result<(Served, bool), RingError> {
    let served = device.serve(index, ring)?;
    Ok((served, ring.wants_interrupt()?))
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let fd = events.fd();
        if fd == self.kick.as_raw_fd() {
            let _ = self.kick.read();
            if !self.suspended {
                self.serve_all();
            }
        } else if let Some(index) = self.notifiers.iter().position(|event| event.as_raw_fd() == fd) {
            let _ = self.notifiers[index].read();
            self.serve(index);
        } else if self.timer.as_ref().is_some_and(|timer| timer.as_raw_fd() == fd) {
            self.timer_went_off();
        } else if let Some(backend) = self.device.backend() {
            self.serve(backend.queue);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut watch = |events: Events| {
            if let Err(error) = ops.add(events) {
                log::error!("virtio device {} cannot be watched: {error}", self.device.device_id());
            }
        };
        watch(Events::new(&self.kick, EventSet::IN));
        for notifier in self.notifiers.iter() {
            watch(Events::new(notifier, EventSet::IN));
        }
        if let Some(timer) = &self.timer {
            watch(Events::new(timer, EventSet::IN));
        }
        if let Some(backend) = self.device.backend() {
            // By edge: a backend that stays readable because no buffer is free must not keep the loop busy.
            watch(Events::new_raw(backend.fd, EventSet::IN | EventSet::EDGE_TRIGGERED));
        }
    }
}

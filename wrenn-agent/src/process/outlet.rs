//! Where a command's output goes: to every attached stream, at the pace of the slowest; while there is none, into a
//! bounded buffer for whoever comes and asks for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::mpsc;

use super::missed::Missed;
use crate::reaper::Exit;

/// How many events may wait for one stream: times 32 KiB, what a slow reader costs in memory.
const DEPTH: usize = 4;

/// Which of a command's outputs something came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    Stdout,
    Stderr,
    Terminal,
}

/// What streams are told.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Output(Channel, Bytes),
    /// So many bytes that were missed were not kept.
    Lost(Channel, u64),
    /// The last one.
    End(Exit),
}

/// The streams of one command. Clones are the same.
#[derive(Clone)]
pub(super) struct Outlet(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    streams: Vec<mpsc::Sender<Event>>,
    missed: Missed,
    end: Option<Exit>,
}

impl State {
    /// The streams that somebody still reads.
    fn open(&mut self) -> &[mpsc::Sender<Event>] {
        self.streams.retain(|stream| !stream.is_closed());
        &self.streams
    }
}

/// One attached stream. Dropping it detaches; what it had not drawn counts as missed, unless somebody else got it.
pub(super) struct Follower {
    /// What comes first.
    missed: VecDeque<Event>,
    events: mpsc::Receiver<Event>,
    outlet: Outlet,
}

impl Outlet {
    pub(super) fn with_stream() -> (Self, Follower) {
        let outlet = Self(Arc::default());
        let stream = outlet.attach(false);
        (outlet, stream)
    }

    /// A new stream: of what comes from now on, or of just the end if that has come; with `missed`, of what nobody
    /// got so far before that.
    pub(super) fn attach(&self, missed: bool) -> Follower {
        let (sender, events) = mpsc::channel(DEPTH);
        let mut state = self.lock();
        let missed = if missed { state.missed.take() } else { VecDeque::new() };
        match state.end {
            None => state.streams.push(sender),
            // The channel is empty, so there is room.
            Some(exit) => drop(sender.try_send(Event::End(exit))),
        }
        Follower { missed, events, outlet: self.clone() }
    }

    /// Gives output to every attached stream, and waits until each has taken it or is detached. Where nobody took it,
    /// it is kept.
    pub(super) async fn send(&self, channel: Channel, bytes: Bytes) {
        loop {
            let streams = {
                let mut state = self.lock();
                if state.end.is_some() {
                    return;
                }
                if state.open().is_empty() {
                    state.missed.push(channel, &bytes);
                    return;
                }
                state.streams.clone()
            };
            let event = Event::Output(channel, bytes.clone());
            let sent = join_all(streams.iter().map(|stream| stream.send(event.clone()))).await;
            if sent.iter().any(Result::is_ok) {
                return;
            }
        }
    }

    /// Tells every stream the end, and keeps it for those that come later.
    pub(super) async fn end(&self, exit: Exit) {
        let streams = {
            let mut state = self.lock();
            state.end = Some(exit);
            std::mem::take(&mut state.streams)
        };
        join_all(streams.iter().map(|stream| stream.send(Event::End(exit)))).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// The next event; nothing after the end. Cancel safe.
    pub(super) async fn recv(&mut self) -> Option<Event> {
        match self.missed.pop_front() {
            Some(event) => Some(event),
            None => self.events.recv().await,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Before anything is closed: what is kept after this must come after it.
        let mut state = self.outlet.lock();
        self.events.close();
        if !state.open().is_empty() {
            return;
        }
        let undrawn = std::iter::from_fn(|| self.events.try_recv().ok());
        for event in self.missed.drain(..).chain(undrawn) {
            match event {
                Event::Output(channel, bytes) => state.missed.push(channel, &bytes),
                Event::Lost(channel, bytes) => state.missed.lose(channel, bytes),
                Event::End(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(event: Option<Event>) -> Bytes {
        match event {
            Some(Event::Output(_, bytes)) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_slowest_stream_sets_the_pace_and_a_detached_one_does_not() {
        let (outlet, mut fast) = Outlet::with_stream();
        let mut slow = outlet.attach(false);
        let sending = async {
            for n in 0..20u8 {
                outlet.send(Channel::Stdout, Bytes::from(vec![n])).await;
            }
        };
        let reading = async {
            for n in 0..DEPTH as u8 {
                assert_eq!(bytes(fast.recv().await), [n][..]);
            }
            // The slow stream is full now: the next send hangs, and reaches the fast one no more than once.
            assert_eq!(bytes(fast.recv().await), [DEPTH as u8][..]);
            tokio::task::yield_now().await;
            assert!(fast.events.try_recv().is_err());
            assert_eq!(bytes(slow.recv().await), [0][..]);
            drop(slow);
            for n in DEPTH as u8 + 1..20 {
                assert_eq!(bytes(fast.recv().await), [n][..]);
            }
        };
        tokio::join!(sending, reading);
    }

    #[tokio::test]
    async fn the_end_reaches_those_who_are_there_and_those_who_come_late() {
        let (outlet, mut early) = Outlet::with_stream();
        outlet.send(Channel::Stderr, Bytes::from_static(b"x")).await;
        outlet.end(Exit::Code(3)).await;
        outlet.send(Channel::Stderr, Bytes::from_static(b"late")).await;
        assert_eq!(bytes(early.recv().await), b"x"[..]);
        for mut stream in [early, outlet.attach(false)] {
            assert!(matches!(stream.recv().await, Some(Event::End(Exit::Code(3)))));
            assert!(stream.recv().await.is_none());
        }
    }

    #[tokio::test]
    async fn what_nobody_drew_is_kept_for_who_asks() {
        let (outlet, mut first) = Outlet::with_stream();
        for text in ["seen", "undrawn 1 ", "undrawn 2 "] {
            outlet.send(Channel::Stdout, Bytes::from(text)).await;
        }
        assert_eq!(bytes(first.recv().await), b"seen"[..]);
        drop(first);
        outlet.send(Channel::Stdout, Bytes::from("alone")).await;
        // One that does not ask changes nothing.
        let second = outlet.attach(false);
        outlet.send(Channel::Stderr, Bytes::from("undrawn, too")).await;
        drop(second);
        let mut third = outlet.attach(true);
        outlet.send(Channel::Stdout, Bytes::from("live")).await;
        assert_eq!(bytes(third.recv().await), b"undrawn 1 undrawn 2 alone"[..]);
        assert_eq!(bytes(third.recv().await), b"undrawn, too"[..]);
        assert_eq!(bytes(third.recv().await), b"live"[..]);
        // It was taken, but for what another stream did not draw of it.
        let mut fourth = outlet.attach(true);
        assert!(fourth.events.try_recv().is_err() && fourth.missed.is_empty());
        drop((third, fourth));
        outlet.send(Channel::Stdout, Bytes::from("last")).await;
        outlet.end(Exit::Code(0)).await;
        drop(outlet.attach(true));
        let mut late = outlet.attach(true);
        assert_eq!(bytes(late.recv().await), b"last"[..]);
        assert!(matches!(late.recv().await, Some(Event::End(Exit::Code(0)))));
        assert!(late.recv().await.is_none());
    }

    #[tokio::test]
    async fn what_hung_on_a_stream_that_went_is_not_lost() {
        let (outlet, first) = Outlet::with_stream();
        for n in 0..DEPTH {
            outlet.send(Channel::Stdout, Bytes::from(vec![n as u8])).await;
        }
        let hanging = outlet.send(Channel::Stdout, Bytes::from_static(&[9]));
        tokio::join!(hanging, async { drop(first) });
        assert_eq!(bytes(outlet.attach(true).recv().await), [0, 1, 2, 3, 9][..]);
    }
}

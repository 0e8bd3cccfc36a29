//! Where a command's output goes: to every attached stream, at the pace of the slowest.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::mpsc;

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
    /// The last one.
    End(Exit),
}

/// The streams of one command.
pub(super) struct Outlet(Mutex<State>);

enum State {
    Open(Vec<mpsc::Sender<Event>>),
    Ended(Exit),
}

impl Outlet {
    pub(super) fn with_stream() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(DEPTH);
        (Self(Mutex::new(State::Open(vec![sender]))), receiver)
    }

    /// A new stream: of what comes from now on, or of just the end if that has come.
    ///
    /// Dropping the receiver detaches.
    pub(super) fn attach(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(DEPTH);
        match &mut *self.lock() {
            State::Open(streams) => streams.push(sender),
            // The channel is empty, so there is room.
            State::Ended(exit) => drop(sender.try_send(Event::End(*exit))),
        }
        receiver
    }

    /// Gives output to every attached stream, and waits until each has taken it or is detached.
    pub(super) async fn send(&self, channel: Channel, bytes: Bytes) {
        let streams = match &*self.lock() {
            State::Open(streams) => streams.clone(),
            State::Ended(_) => return,
        };
        let event = Event::Output(channel, bytes);
        let sent = join_all(streams.iter().map(|stream| stream.send(event.clone()))).await;
        if sent.iter().any(Result::is_err)
            && let State::Open(streams) = &mut *self.lock()
        {
            streams.retain(|stream| !stream.is_closed());
        }
    }

    /// Tells every stream the end, and keeps it for those that come later.
    pub(super) async fn end(&self, exit: Exit) {
        let before = std::mem::replace(&mut *self.lock(), State::Ended(exit));
        if let State::Open(streams) = before {
            join_all(streams.iter().map(|stream| stream.send(Event::End(exit)))).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut slow = outlet.attach();
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
            assert!(fast.try_recv().is_err());
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
        for mut stream in [early, outlet.attach()] {
            assert!(matches!(stream.recv().await, Some(Event::End(Exit::Code(3)))));
            assert!(stream.recv().await.is_none());
        }
    }
}

//! A process's events taken apart: each output into a queue of its own, which whoever reads it empties.
//!
//! A task draws the events. Where a queue is full it waits, and so does the process in the end. It ends with the
//! process, or when nobody is left who could read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use wrenn_agent_api::{Channel, ProcessEvent};

use crate::error::Error;

/// How many bytes of an output wait for its reader before no more is drawn.
const WAITING: usize = 256 * 1024;

/// Where events come from: one after the other, an end or an error last, and nothing after that.
pub(crate) trait Events: Send + 'static {
    /// The next event. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Result<Option<ProcessEvent>, Error>> + Send;
}

/// One output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// The terminal's, too.
    Stdout,
    Stderr,
}

/// See above.
pub(crate) struct Division {
    shared: Arc<Shared>,
    terminal: bool,
    task: AbortHandle,
}

/// What the task and the readers have in common.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Tells the task that a queue has room.
    room: Notify,
    /// Tells whoever reads what was not taken that there is something.
    news: Notify,
}

#[derive(Default)]
struct State {
    queues: [Queue; 2],
    end: End,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Bytes>,
    size: usize,
    /// Bytes that the guest did not keep, and whether an event has told so.
    lost: u64,
    lost_told: bool,
    taken: bool,
    /// Nobody will read it.
    abandoned: bool,
    reader: Option<Waker>,
}

#[derive(Default)]
enum End {
    #[default]
    Open,
    /// With the end event, until it was drawn.
    Ended(Option<ProcessEvent>),
    /// With the error, until it was drawn, and its text.
    Failed(Option<Error>, String),
}

impl Division {
    /// Takes the events apart from now on. Must be called within a tokio runtime.
    pub(crate) fn begin(events: impl Events, terminal: bool) -> Self {
        let shared = Arc::<Shared>::default();
        let task = tokio::spawn(carry(events, Arc::clone(&shared))).abort_handle();
        Self { shared, terminal, task }
    }

    /// Gives an output to a reader of its own; whether it was still there.
    pub(crate) fn take(&self, lane: Lane) -> bool {
        !std::mem::replace(&mut self.shared.lock().queues[lane as usize].taken, true)
    }

    /// The next event of what was not taken.
    pub(crate) async fn next(&self) -> Result<Option<ProcessEvent>, Error> {
        loop {
            let news = self.shared.news.notified();
            if let Some(result) = self.try_next() {
                return result;
            }
            news.await;
        }
    }

    fn try_next(&self) -> Option<Result<Option<ProcessEvent>, Error>> {
        let mut state = self.shared.lock();
        for lane in [Lane::Stdout, Lane::Stderr] {
            let queue = &mut state.queues[lane as usize];
            if queue.taken {
                continue;
            }
            if queue.lost > 0 && !std::mem::replace(&mut queue.lost_told, true) {
                return Some(Ok(Some(ProcessEvent::lost(self.channel(lane), queue.lost))));
            }
            if let Some(piece) = queue.pieces.pop_front() {
                queue.size -= piece.len();
                self.shared.room.notify_one();
                return Some(Ok(Some(match self.channel(lane) {
                    Channel::Stderr => ProcessEvent::Stderr(piece),
                    Channel::Terminal => ProcessEvent::Terminal(piece),
                    _ => ProcessEvent::Stdout(piece),
                })));
            }
        }
        match &mut state.end {
            End::Open => None,
            End::Ended(event) => Some(Ok(event.take())),
            End::Failed(error, _) => Some(error.take().map_or(Ok(None), Err)),
        }
    }

    fn channel(&self, lane: Lane) -> Channel {
        match lane {
            Lane::Stdout if self.terminal => Channel::Terminal,
            Lane::Stdout => Channel::Stdout,
            Lane::Stderr => Channel::Stderr,
        }
    }

    /// At most `limit` bytes of an output; none at its end. The error is that of the whole process.
    pub(crate) fn poll_piece(
        &self,
        lane: Lane,
        limit: usize,
        context: &mut Context<'_>,
    ) -> Poll<Result<Bytes, String>> {
        let mut state = self.shared.lock();
        let State { queues, end } = &mut *state;
        let queue = &mut queues[lane as usize];
        if let Some(piece) = queue.pieces.front_mut() {
            let part = piece.split_to(piece.len().min(limit));
            if piece.is_empty() {
                queue.pieces.pop_front();
            }
            queue.size -= part.len();
            self.shared.room.notify_one();
            return Poll::Ready(Ok(part));
        }
        match end {
            End::Open => {
                queue.reader = Some(context.waker().clone());
                Poll::Pending
            }
            End::Ended(_) => Poll::Ready(Ok(Bytes::new())),
            End::Failed(_, text) => Poll::Ready(Err(text.clone())),
        }
    }

    /// How many bytes of an output the guest did not keep.
    pub(crate) fn lost(&self, lane: Lane) -> u64 {
        self.shared.lock().queues[lane as usize].lost
    }

    /// Throws away what an output brings from now on.
    pub(crate) fn abandon(&self, lane: Lane) {
        self.shared.abandon(&mut self.shared.lock().queues[lane as usize]);
    }

    /// The same for what was not taken.
    pub(crate) fn abandon_untaken(&self) {
        for queue in self.shared.lock().queues.iter_mut().filter(|queue| !queue.taken) {
            self.shared.abandon(queue);
        }
    }
}

impl Drop for Division {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abandon(&self, queue: &mut Queue) {
        queue.abandoned = true;
        queue.pieces.clear();
        queue.size = 0;
        self.room.notify_one();
    }

    /// Adds to a queue, once that has room.
    async fn put(&self, lane: Lane, piece: Bytes) {
        loop {
            let room = self.room.notified();
            {
                let mut state = self.lock();
                let queue = &mut state.queues[lane as usize];
                if queue.abandoned {
                    return;
                }
                if queue.size < WAITING {
                    queue.size += piece.len();
                    queue.pieces.push_back(piece);
                    self.tell(queue);
                    return;
                }
            }
            room.await;
        }
    }

    fn lose(&self, lane: Lane, bytes: u64) {
        let mut state = self.lock();
        let queue = &mut state.queues[lane as usize];
        queue.lost = queue.lost.saturating_add(bytes);
        self.tell(queue);
    }

    fn finish(&self, end: End) {
        let mut state = self.lock();
        state.end = end;
        for queue in &mut state.queues {
            self.tell(queue);
        }
    }

    fn tell(&self, queue: &mut Queue) {
        if let Some(reader) = queue.reader.take() {
            reader.wake();
        }
        self.news.notify_one();
    }
}

/// Draws events until the end.
async fn carry(mut events: impl Events, shared: Arc<Shared>) {
    let end = loop {
        match events.next().await {
            Ok(Some(ProcessEvent::Stdout(piece) | ProcessEvent::Terminal(piece))) => {
                shared.put(Lane::Stdout, piece).await;
            }
            Ok(Some(ProcessEvent::Stderr(piece))) => shared.put(Lane::Stderr, piece).await,
            Ok(Some(ProcessEvent::Lost { channel, bytes, .. })) => {
                let lane = if channel == Channel::Stderr { Lane::Stderr } else { Lane::Stdout };
                shared.lose(lane, bytes);
            }
            Ok(Some(end @ ProcessEvent::End { .. })) => break End::Ended(Some(end)),
            Ok(Some(_)) => {}
            // All was drawn before it was taken apart.
            Ok(None) => break End::Ended(None),
            Err(error) => {
                let text = error.to_string();
                break End::Failed(Some(error), text);
            }
        }
    };
    drop(events);
    shared.finish(end);
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::Cause;

    /// Events that a test makes up, counted as they are drawn.
    struct Made(VecDeque<Result<ProcessEvent, Error>>, Arc<AtomicUsize>);

    impl Events for Made {
        async fn next(&mut self) -> Result<Option<ProcessEvent>, Error> {
            tokio::task::yield_now().await;
            self.1.fetch_add(1, Ordering::SeqCst);
            self.0.pop_front().transpose()
        }
    }

    fn divide(events: Vec<Result<ProcessEvent, Error>>) -> (Arc<Division>, Arc<AtomicUsize>) {
        let drawn = Arc::<AtomicUsize>::default();
        (Arc::new(Division::begin(Made(events.into(), Arc::clone(&drawn)), false)), drawn)
    }

    fn out(text: &'static str) -> Result<ProcessEvent, Error> {
        Ok(ProcessEvent::Stdout(text.into()))
    }

    fn err(text: &'static str) -> Result<ProcessEvent, Error> {
        Ok(ProcessEvent::Stderr(text.into()))
    }

    fn end() -> Result<ProcessEvent, Error> {
        Ok(ProcessEvent::end(3, None))
    }

    /// Lets the task get as far as it can, on this test's own thread.
    async fn settle() {
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
    }

    async fn read(division: &Division, lane: Lane) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        loop {
            let piece = poll_fn(|context| division.poll_piece(lane, 2, context)).await?;
            if piece.is_empty() {
                return Ok(all);
            }
            assert!(piece.len() <= 2);
            all.extend_from_slice(&piece);
        }
    }

    #[tokio::test]
    async fn each_output_is_read_by_itself_and_the_rest_comes_as_events() {
        let (division, _) = divide(vec![out("one "), err("noise "), out("two"), err("more"), end()]);
        assert!(division.take(Lane::Stdout) && !division.take(Lane::Stdout));
        assert_eq!(read(&division, Lane::Stdout).await.unwrap(), b"one two");
        assert_eq!(division.next().await.unwrap(), Some(ProcessEvent::Stderr("noise ".into())));
        // Even now: nothing of it is gone but what came as an event.
        assert!(division.take(Lane::Stderr));
        assert_eq!(read(&division, Lane::Stderr).await.unwrap(), b"more");
        assert_eq!(division.next().await.unwrap(), Some(ProcessEvent::end(3, None)));
        assert_eq!(division.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn who_does_not_read_stops_the_drawing_and_who_is_gone_does_not() {
        const PIECE: usize = 32 * 1024;
        let piece = || Ok(ProcessEvent::Stdout(vec![0; PIECE].into()));
        let mut events: Vec<_> = (0..100).map(|_| piece()).collect();
        events.extend([err("late"), end()]);
        let (division, drawn) = divide(events);
        assert!(division.take(Lane::Stdout) && division.take(Lane::Stderr));
        settle().await;
        // One more is drawn and waits.
        assert_eq!(drawn.load(Ordering::SeqCst), WAITING / PIECE + 1);
        let mut first =
            poll_fn(|context| division.poll_piece(Lane::Stdout, usize::MAX, context)).await.unwrap();
        assert_eq!(first.split_off(0).len(), PIECE);
        settle().await;
        assert_eq!(drawn.load(Ordering::SeqCst), WAITING / PIECE + 2);
        division.abandon(Lane::Stdout);
        assert_eq!(read(&division, Lane::Stderr).await.unwrap(), b"late");
        assert_eq!(division.next().await.unwrap(), Some(ProcessEvent::end(3, None)));
    }

    #[tokio::test]
    async fn a_failure_comes_after_what_was_there_and_to_all() {
        let failure = || Err(Cause::OutputTooLarge { limit: 7 }.into());
        let (division, _) = divide(vec![out("x"), failure()]);
        assert!(division.take(Lane::Stdout));
        let piece = poll_fn(|context| division.poll_piece(Lane::Stdout, 9, context)).await.unwrap();
        assert_eq!(piece, b"x"[..]);
        for lane in [Lane::Stdout, Lane::Stderr] {
            assert!(read(&division, lane).await.unwrap_err().contains("more than 7 bytes"));
        }
        assert!(matches!(division.next().await.unwrap_err().cause(), Cause::OutputTooLarge { limit: 7 }));
        assert!(division.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_was_lost_is_told() {
        let lost = || Ok(ProcessEvent::lost(Channel::Stderr, 12));
        let (division, _) = divide(vec![lost(), err("rest"), end()]);
        assert_eq!(division.next().await.unwrap(), Some(ProcessEvent::lost(Channel::Stderr, 12)));
        assert_eq!((division.lost(Lane::Stderr), division.lost(Lane::Stdout)), (12, 0));
        assert_eq!(division.next().await.unwrap(), Some(ProcessEvent::Stderr("rest".into())));
    }

    #[tokio::test]
    async fn nobody_left_ends_the_drawing() {
        let (division, drawn) = divide((0..1000).map(|_| out("x")).collect());
        settle().await;
        assert_eq!(drawn.load(Ordering::SeqCst), 1001);
        let (division2, drawn) = divide(vec![out("x"), out("y"), end()]);
        drop((division, division2));
        settle().await;
        assert_eq!(drawn.load(Ordering::SeqCst), 0);
    }
}

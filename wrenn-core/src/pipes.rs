//! A process's standard streams as readers and writers.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use wrenn_agent_api::AgentError;

use crate::division::{Division, Lane};
use crate::error::{Cause, Error};
use crate::machine::Live;

/// The most that one write takes over, in bytes.
const PIECE: usize = 64 * 1024;

/// How long a command may leave its input unread: as long as it likes. Should the guest end, that is noticed at once.
const PATIENCE: Duration = Duration::from_secs(10 * 365 * 86_400);

/// One of a process's outputs: from [`Process::take_stdout`](crate::Process::take_stdout) and
/// [`take_stderr`](crate::Process::take_stderr).
///
/// It reads to the end when the process is over, and fails where the process was lost sight of: its guest ended or was
/// paused, or it ran into its time limit. Dropping it throws away what comes; the process never notices.
pub struct ProcessReader {
    division: Arc<Division>,
    lane: Lane,
}

impl ProcessReader {
    pub(crate) fn new(division: Arc<Division>, lane: Lane) -> Self {
        Self { division, lane }
    }

    /// The next piece, uncopied: 1 byte to 32 KiB, cut anywhere; nothing at the end.
    ///
    /// # Errors
    /// As reading.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let piece =
            std::future::poll_fn(|context| self.division.poll_piece(self.lane, usize::MAX, context)).await;
        let piece = piece.map_err(io::Error::other)?;
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// How many bytes came before what is read first, while nobody was attached, and were not kept. Known once something
    /// was read; always 0 for a command that was not attached to later.
    pub fn lost(&self) -> u64 {
        self.division.lost(self.lane)
    }
}

impl AsyncRead for ProcessReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let piece = ready!(self.division.poll_piece(self.lane, buffer.remaining(), context));
        buffer.put_slice(&piece.map_err(io::Error::other)?);
        Poll::Ready(Ok(()))
    }
}

impl Drop for ProcessReader {
    fn drop(&mut self) {
        self.division.abandon(self.lane);
    }
}

impl std::fmt::Debug for ProcessReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessReader").field("lane", &self.lane).finish_non_exhaustive()
    }
}

/// The input of a process: from [`Process::take_stdin`](crate::Process::take_stdin).
///
/// A write takes over up to 64 KiB, and from then on these are on their way, whether or not anything else is called; the
/// next write waits until they are in the pipe, or the terminal, however long the process leaves them there. `flush` waits
/// for that alone; `shutdown` closes the pipe as well, but not a terminal, whose end of input is a character (Ctrl-D, the
/// byte 4). What goes wrong with a piece is told by the call after.
///
/// Writing fails with [`BrokenPipe`](io::ErrorKind::BrokenPipe) where the process has ended or closed its input.
///
/// It is to be written to within a tokio runtime, whose task sends.
///
/// **Dropping** it closes a pipe in the background, after what was taken over, if that is done within the tokio runtime;
/// the pipe of a process that was attached to stays open, as it may be another's as well.
///
/// **Cancel safety**: a `write` whose future is dropped has taken nothing over; after `write_all` it is unknown how much
/// was.
pub struct ProcessStdin {
    input: Box<dyn Input>,
    /// Whether it is closed with this.
    owned: bool,
    closed: bool,
    /// The task that sends what was taken over last.
    sending: Option<JoinHandle<io::Result<()>>>,
}

type Sending = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Where a process's input goes.
trait Input: Send + Sync {
    /// Sends a piece, and waits until all of it was taken.
    fn send(&self, piece: Bytes) -> Sending;

    /// Ends the input; nothing, where it has no end.
    fn close(&self) -> Option<Sending>;
}

/// The input of a process in a guest.
struct GuestInput {
    live: Arc<Live>,
    pid: u32,
    terminal: bool,
}

impl Input for GuestInput {
    fn send(&self, piece: Bytes) -> Sending {
        let (live, pid, terminal) = (Arc::clone(&self.live), self.pid, self.terminal);
        Box::pin(async move {
            let agent = live.agent.clone().with_time_limit(PATIENCE);
            match terminal {
                true => live.ask(agent.send_terminal_input(pid, piece)).await,
                false => live.ask(agent.send_input(pid, piece)).await,
            }
            .map_err(broken)
        })
    }

    fn close(&self) -> Option<Sending> {
        let (live, pid) = (Arc::clone(&self.live), self.pid);
        let close = async move {
            match live.ask(live.agent.close_stdin(pid)).await {
                // What has ended reads nothing any more.
                Err(error) if matches!(error.cause(), Cause::Agent(AgentError::NotFound { .. })) => Ok(()),
                result => result.map_err(broken),
            }
        };
        if self.terminal { None } else { Some(Box::pin(close)) }
    }
}

impl ProcessStdin {
    pub(crate) fn new(live: Arc<Live>, pid: u32, terminal: bool, owned: bool) -> Self {
        Self::of(Box::new(GuestInput { live, pid, terminal }), owned)
    }

    fn of(input: Box<dyn Input>, owned: bool) -> Self {
        Self { input, owned, closed: false, sending: None }
    }

    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(sending) = &mut self.sending {
            let sent = ready!(Pin::new(sending).poll(context));
            self.sending = None;
            return Poll::Ready(sent.unwrap_or_else(|error| Err(io::Error::other(error))));
        }
        Poll::Ready(Ok(()))
    }

    /// Begins a step, which goes on by itself.
    fn begin(&mut self, step: Sending) -> io::Result<()> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        self.sending = Some(runtime.spawn(step));
        Ok(())
    }
}

fn broken(error: Error) -> io::Error {
    let kind = match error.cause() {
        Cause::Agent(AgentError::NotFound { .. } | AgentError::Failed { .. }) => io::ErrorKind::BrokenPipe,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl AsyncWrite for ProcessStdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(context))?;
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let piece = Bytes::copy_from_slice(&bytes[..bytes.len().min(PIECE)]);
        let len = piece.len();
        let step = self.input.send(piece);
        Poll::Ready(self.begin(step).map(|()| len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(context))?;
        if !std::mem::replace(&mut self.closed, true)
            && let Some(step) = self.input.close()
        {
            self.begin(step)?;
        }
        self.poll_sent(context)
    }
}

impl Drop for ProcessStdin {
    fn drop(&mut self) {
        let sending = self.sending.take();
        let close = if self.owned && !self.closed { self.input.close() } else { None };
        if let (true, Ok(runtime)) = (sending.is_some() || close.is_some(), Handle::try_current()) {
            runtime.spawn(async move {
                let sent = match sending {
                    Some(sending) => sending.await.is_ok_and(|sent| sent.is_ok()),
                    None => true,
                };
                if let (true, Some(close)) = (sent, close) {
                    // There is nobody to tell.
                    let _ = close.await;
                }
            });
        }
    }
}

impl std::fmt::Debug for ProcessStdin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessStdin").field("closed", &self.closed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::AsyncWriteExt as _;
    use tokio::sync::Notify;

    use super::*;

    /// An input that notes what it was sent, when it is let.
    #[derive(Clone, Default)]
    struct Noted(Arc<Notes>);

    #[derive(Default)]
    struct Notes {
        texts: Mutex<Vec<String>>,
        go: Notify,
    }

    impl Noted {
        fn done(&self) -> Vec<String> {
            self.0.texts.lock().unwrap().clone()
        }

        fn step(&self, text: String) -> Sending {
            let notes = Arc::clone(&self.0);
            Box::pin(async move {
                notes.go.notified().await;
                if text == "refused" {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                notes.texts.lock().unwrap().push(text);
                Ok(())
            })
        }
    }

    impl Input for Noted {
        fn send(&self, piece: Bytes) -> Sending {
            let short = String::from_utf8_lossy(&piece[..piece.len().min(20)]).into_owned();
            self.step(if piece.len() > 20 { format!("{} bytes", piece.len()) } else { short })
        }

        fn close(&self) -> Option<Sending> {
            Some(self.step("closed".into()))
        }
    }

    /// Whether a future is not done yet.
    async fn waits(future: impl Future) -> bool {
        tokio::time::timeout(Duration::from_millis(20), future).await.is_err()
    }

    #[tokio::test]
    async fn a_write_waits_for_the_one_before_and_a_flush_for_all() {
        let noted = Noted::default();
        let mut stdin = ProcessStdin::of(Box::new(noted.clone()), true);
        assert_eq!(stdin.write(b"one").await.unwrap(), 3);
        assert!(waits(stdin.write(b"never taken over")).await);
        assert!(waits(stdin.flush()).await);
        noted.0.go.notify_one();
        stdin.flush().await.unwrap();
        assert_eq!(noted.done(), ["one"]);
        assert_eq!(stdin.write(&[b'x'; 200_000]).await.unwrap(), PIECE);
        noted.0.go.notify_one();
        assert_eq!(stdin.write(b"two").await.unwrap(), 3);
        noted.0.go.notify_one();
        assert!(waits(stdin.shutdown()).await);
        noted.0.go.notify_one();
        stdin.shutdown().await.unwrap();
        assert_eq!(noted.done(), ["one", "65536 bytes", "two", "closed"]);
        assert_eq!(stdin.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(stdin);
        tokio::task::yield_now().await;
        assert_eq!(noted.done().len(), 4, "it is closed once");
    }

    #[tokio::test]
    async fn what_is_written_is_sent_though_nothing_else_is_called() {
        let noted = Noted::default();
        let mut stdin = ProcessStdin::of(Box::new(noted.clone()), true);
        stdin.write_all(b"typed").await.unwrap();
        noted.0.go.notify_one();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(noted.done(), ["typed"]);
    }

    #[tokio::test]
    async fn a_refusal_comes_with_the_next_call() {
        let noted = Noted::default();
        let mut stdin = ProcessStdin::of(Box::new(noted.clone()), true);
        stdin.write_all(b"refused").await.unwrap();
        noted.0.go.notify_one();
        assert_eq!(stdin.flush().await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn what_is_dropped_is_closed_after_what_was_taken_over() {
        for (owned, all) in [(true, vec!["last", "closed"]), (false, vec!["last"])] {
            let noted = Noted::default();
            let mut stdin = ProcessStdin::of(Box::new(noted.clone()), owned);
            stdin.write_all(b"last").await.unwrap();
            drop(stdin);
            for _ in 0..2 {
                noted.0.go.notify_one();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(noted.done(), all);
        }
    }
}

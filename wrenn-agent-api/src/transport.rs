//! Connections that a closure makes, for clients of Connect services: over anything, pooled, and watched for how they fail.
//!
//! The client of the guest's agent is made of this, and that of the host agent, whose guests' agents are reached through it.
//!
//! A request goes to an idle pooled connection or to a fresh one. If a pooled connection turns out to be closed
//! before any byte of the request was written, the pool dials afresh and sends it there: nothing of it can have
//! been processed. In every other failure the request is not repeated.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// An error of whatever made or broke a connection.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// A connection of any make: TCP, TLS, a Unix socket, memory.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>>;

/// Makes a connection; called for each new one.
pub type Dial = Arc<dyn Fn() -> Connecting + Send + Sync>;

/// Wraps a closure that connects, whatever it connects to.
pub fn dial<D, F, S>(connect: D) -> Dial
where
    D: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: Connection,
{
    Arc::new(move || {
        let connected = connect();
        Box::pin(async move { Ok(Box::new(connected.await?) as Box<dyn Connection>) })
    })
}

/// A pool's connector: asks the closure, whatever the URI says.
#[derive(Clone)]
pub struct Dialer(Dial);

impl Dialer {
    /// Connects by that closure.
    pub fn new(dial: Dial) -> Self {
        Self(dial)
    }
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

/// A connection as the pool wants it.
pub struct Pooled(TokioIo<Box<dyn Connection>>);

impl std::fmt::Debug for Pooled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pooled").finish_non_exhaustive()
    }
}

impl legacy::connect::Connection for Pooled {
    fn connected(&self) -> legacy::connect::Connected {
        legacy::connect::Connected::new()
    }
}

impl hyper::rt::Read for Pooled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Pooled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl tower_service::Service<Uri> for Dialer {
    type Response = Pooled;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Pooled>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let socket = (self.0)();
        Box::pin(async move { Ok(Pooled(TokioIo::new(socket.await?))) })
    }
}

/// How the connection of one call failed, seen from below the protocol.
#[derive(Debug)]
pub enum Fault {
    /// Nothing was sent.
    Dial(BoxError),
    /// Something may have been sent.
    Broken(BoxError),
    /// The answer's body ended: a fault only where the protocol still expected something.
    Ended,
}

/// What is noted of one call's connection. Clones are the same note.
///
/// The RPC library reports transport failures and errors that the peer sent alike; this tells them apart.
#[derive(Debug, Clone, Default)]
pub struct Note(Arc<Mutex<Option<Fault>>>);

impl Note {
    /// What was noted first, once.
    pub fn take(&self) -> Option<Fault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, what: Fault) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    /// Sends a request over a pooled connection, and notes how that fails.
    ///
    /// # Errors
    /// The pool's, whose meaning is noted.
    pub async fn send<B>(
        &self,
        pool: &legacy::Client<Dialer, B>,
        request: Request<B>,
    ) -> Result<Response<WatchedBody>, legacy::Error>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        match pool.request(request).await {
            Ok(response) => Ok(response.map(|inner| WatchedBody { inner, note: self.clone() })),
            Err(error) => {
                let text: BoxError = describe(&error).into();
                self.put(if error.is_connect() { Fault::Dial(text) } else { Fault::Broken(text) });
                Err(error)
            }
        }
    }
}

/// An error's causes in one line; the outer text alone says little more than "client error".
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    if causes.is_empty() { error.to_string() } else { causes.join(": ") }
}

/// An answer's body that notes how it ends.
#[derive(Debug)]
pub struct WatchedBody {
    inner: Incoming,
    note: Note,
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        match &polled {
            Poll::Ready(None) => self.note.put(Fault::Ended),
            Poll::Ready(Some(Err(error))) => self.note.put(Fault::Broken(error.to_string().into())),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

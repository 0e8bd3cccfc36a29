//! Connections: dialed by the caller's closure, pooled, and watched for how they fail.
//!
//! A request goes to an idle pooled connection or to a fresh one. If a pooled connection turns out to be closed
//! before any byte of the request was written, the pool dials afresh and sends it there: nothing of it can have
//! been processed. In every other failure the request is not repeated.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use connectrpc::client::{BoxFuture, ClientBody, ClientTransport};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::AgentError;
use crate::{ACCESS_TOKEN_HEADER, AccessToken};

/// Makes a connection to the agent; called for each new one.
///
/// The socket may come from anywhere, say from inside a network namespace. A dial that takes too long is cut off
/// by the time limit of the call that needs it.
pub type Dial = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> + Send + Sync>;

/// A connection of any make.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Socket = TokioIo<Box<dyn Stream>>;

/// The same, whatever it connects over.
pub(super) type AnyDial =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>> + Send + Sync>;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;
pub(super) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
type HttpPool = legacy::Client<Dialer, RequestBody>;

/// The most bytes read ahead of whoever consumes an answer: what a slow reader costs in memory.
const READ_AHEAD: usize = 64 * 1024;

/// The pool of one agent's connections, shared by all clones of its client.
pub(super) struct Connections {
    dial: AnyDial,
    pool: RwLock<HttpPool>,
}

impl Connections {
    pub(super) fn new(dial: AnyDial) -> Self {
        let pool = RwLock::new(build_pool(dial.clone()));
        Self { dial, pool }
    }

    /// Forgets every idle connection; busy ones end with the calls that use them.
    pub(super) fn reset(&self) {
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = build_pool(self.dial.clone());
    }

    fn pool(&self) -> HttpPool {
        self.pool.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn build_pool(dial: AnyDial) -> HttpPool {
    legacy::Client::builder(TokioExecutor::new())
        // Nothing between host and guest forgets a connection, and `reset` drops them when the guest does.
        .pool_idle_timeout(None)
        .pool_max_idle_per_host(8)
        .http1_max_buf_size(READ_AHEAD)
        .build(Dialer(dial))
}

/// The pool's connector: asks the closure, whatever the URI says.
#[derive(Clone)]
struct Dialer(AnyDial);

/// A connection as the pool wants it.
pub(super) struct Pooled(Socket);

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
enum Fault {
    /// Nothing was sent.
    Dial(BoxError),
    /// Something may have been sent.
    Broken(BoxError),
    /// The answer's body ended: a fault only where the protocol still expected something.
    Ended,
}

/// One call's way to the agent.
///
/// The RPC library reports transport failures and errors that the agent sent alike; the note that this keeps
/// tells them apart.
#[derive(Clone)]
pub(super) struct Transport {
    connections: Arc<Connections>,
    token: HeaderValue,
    fault: Arc<Mutex<Option<Fault>>>,
}

impl Transport {
    pub(super) fn new(connections: &Arc<Connections>, token: &AccessToken) -> Self {
        let mut value = HeaderValue::from_str(token.reveal()).expect("a token is visible ASCII");
        value.set_sensitive(true);
        Self { connections: connections.clone(), token: value, fault: Arc::default() }
    }

    /// Sends a request with the token.
    pub(super) async fn request(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<WatchedBody>, legacy::Error> {
        request.headers_mut().insert(HeaderName::from_static(ACCESS_TOKEN_HEADER), self.token.clone());
        let fault = self.fault.clone();
        match self.connections.pool().request(request).await {
            Ok(response) => Ok(response.map(|inner| WatchedBody { inner, fault })),
            Err(error) => {
                let text: BoxError = describe(&error).into();
                note(&fault, if error.is_connect() { Fault::Dial(text) } else { Fault::Broken(text) });
                Err(error)
            }
        }
    }

    /// The connection's failure, if that is why `call` failed. `ended` says whether an end counts as one.
    pub(super) fn take_fault(&self, call: &'static str, ended: bool) -> Option<AgentError> {
        match self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()? {
            Fault::Dial(source) => Some(AgentError::Unreachable { call, source }),
            Fault::Broken(source) => Some(AgentError::Disconnected { call, source }),
            Fault::Ended if ended => {
                Some(AgentError::Disconnected { call, source: "the agent closed it early".into() })
            }
            Fault::Ended => None,
        }
    }
}

fn note(fault: &Mutex<Option<Fault>>, what: Fault) {
    fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
}

/// An error and its causes in one line; the outer text alone says little more than "client error".
fn describe(error: &legacy::Error) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

impl ClientTransport for Transport {
    type ResponseBody = WatchedBody;
    type Error = legacy::Error;

    fn send(
        &self,
        request: Request<ClientBody>,
    ) -> BoxFuture<'static, Result<Response<WatchedBody>, legacy::Error>> {
        let this = self.clone();
        let request = request.map(|body| body.map_err(BoxError::from).boxed_unsync());
        Box::pin(async move { this.request(request).await })
    }
}

/// An answer's body that notes how it ends.
#[derive(Debug)]
pub(super) struct WatchedBody {
    inner: Incoming,
    fault: Arc<Mutex<Option<Fault>>>,
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
            Poll::Ready(None) => note(&self.fault, Fault::Ended),
            Poll::Ready(Some(Err(error))) => note(&self.fault, Fault::Broken(error.to_string().into())),
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

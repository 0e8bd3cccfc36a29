//! Requests: over pooled connections, each with a token of its own, and watched for how they fail.
//!
//! No request is ever repeated, except where a pooled connection turns out to be closed before any of it was sent.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use connectrpc::client::{BoxFuture, ClientBody, ClientTransport};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::rt::ReadBufCursor;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection as Pooled};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::HostError;
use super::endpoint::Dial;
use super::error::BoxError;
use crate::{Connection, HostSecret};

/// The authority in request lines: it leads nowhere, the dial closure decides.
pub(super) const ORIGIN: &str = "http://host";

/// The most bytes read ahead of whoever consumes an answer.
const READ_AHEAD: usize = 64 * 1024;

/// How long a token lives that is signed for one call.
const LIFETIME: Duration = Duration::from_secs(60);

/// How long a connection is kept for the next call: less than hosts keep theirs, so that none is used just as it is closed.
const IDLE: Duration = Duration::from_secs(20);

/// What tokens are signed with, for whom, and in whose name.
#[derive(Clone)]
pub(super) struct Signer {
    pub(super) secret: HostSecret,
    pub(super) host: String,
    pub(super) caller: String,
}

impl Signer {
    pub(super) fn header(&self) -> HeaderValue {
        let token = self.secret.sign(&self.host, &self.caller, LIFETIME);
        let mut value =
            HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is base64url and dots");
        value.set_sensitive(true);
        value
    }
}

/// How requests get to a host; shared by all clones of a client.
pub(super) struct Link {
    pub(super) dial: Dial,
    pub(super) signer: Option<Signer>,
    pool: Client<Dialer, ClientBody>,
}

impl Link {
    pub(super) fn new(dial: Dial, signer: Option<Signer>) -> Self {
        let pool = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(16)
            .http1_max_buf_size(READ_AHEAD)
            .build(Dialer(Arc::clone(&dial)));
        Self { dial, signer, pool }
    }
}

/// The pool's connector: asks the closure, whatever the URI says.
#[derive(Clone)]
struct Dialer(Dial);

/// A connection as the pool wants it.
struct Socket(TokioIo<Box<dyn Connection>>);

impl Pooled for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Socket {
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
    type Response = Socket;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Socket>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connected = (self.0)();
        Box::pin(async move { Ok(Socket(TokioIo::new(connected.await?))) })
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

/// One call's way to the host.
///
/// The RPC library reports transport failures and errors that the host sent alike; the note that this keeps tells them
/// apart.
#[derive(Clone)]
pub(super) struct Transport {
    link: Arc<Link>,
    fault: Arc<Mutex<Option<Fault>>>,
}

impl Transport {
    pub(super) fn new(link: &Arc<Link>) -> Self {
        Self { link: Arc::clone(link), fault: Arc::default() }
    }

    /// The connection's failure, if that is why `call` failed. `ended` says whether an end counts as one.
    pub(super) fn take_fault(&self, call: &'static str, ended: bool) -> Option<HostError> {
        match self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()? {
            Fault::Dial(source) => Some(HostError::Unreachable { call, source }),
            Fault::Broken(source) => Some(HostError::Disconnected { call, source }),
            Fault::Ended if ended => {
                Some(HostError::Disconnected { call, source: "the host closed it early".into() })
            }
            Fault::Ended => None,
        }
    }
}

fn note(fault: &Mutex<Option<Fault>>, what: Fault) {
    fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
}

/// An error's causes in one line; the outer text alone says little more than "client error".
pub(super) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    if causes.is_empty() { error.to_string() } else { causes.join(": ") }
}

impl ClientTransport for Transport {
    type ResponseBody = WatchedBody;
    type Error = legacy::Error;

    fn send(
        &self,
        mut request: Request<ClientBody>,
    ) -> BoxFuture<'static, Result<Response<WatchedBody>, legacy::Error>> {
        let this = self.clone();
        if let Some(signer) = &self.link.signer {
            request.headers_mut().insert(AUTHORIZATION, signer.header());
        }
        Box::pin(async move {
            match this.link.pool.request(request).await {
                Ok(response) => Ok(response.map(|inner| WatchedBody { inner, fault: this.fault })),
                Err(error) => {
                    let text: BoxError = describe(&error).into();
                    note(
                        &this.fault,
                        if error.is_connect() { Fault::Dial(text) } else { Fault::Broken(text) },
                    );
                    Err(error)
                }
            }
        })
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

//! The pool of an agent's connections, and one call's way over it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use connectrpc::client::{BoxFuture, ClientBody, ClientTransport};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, Response};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpStream;

use super::AgentError;
use crate::transport::{self, BoxError, Dialer, Fault, Note, WatchedBody};
use crate::{ACCESS_TOKEN_HEADER, AccessToken};

/// Makes a connection to the agent; called for each new one.
///
/// The socket may come from anywhere, say from inside a network namespace. A dial that takes too long is cut off
/// by the time limit of the call that needs it.
pub type Dial = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> + Send + Sync>;

pub(super) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
type HttpPool = legacy::Client<Dialer, RequestBody>;

/// The most bytes read ahead of whoever consumes an answer: what a slow reader costs in memory.
const READ_AHEAD: usize = 64 * 1024;

/// The pool of one agent's connections, shared by all clones of its client.
pub(super) struct Connections {
    dial: transport::Dial,
    pool: RwLock<HttpPool>,
}

impl Connections {
    pub(super) fn new(dial: transport::Dial) -> Self {
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

fn build_pool(dial: transport::Dial) -> HttpPool {
    legacy::Client::builder(TokioExecutor::new())
        // Nothing between host and guest forgets a connection, and `reset` drops them when the guest does.
        .pool_idle_timeout(None)
        .pool_max_idle_per_host(8)
        .http1_max_buf_size(READ_AHEAD)
        .build(Dialer::new(dial))
}

/// One call's way to the agent.
#[derive(Clone)]
pub(super) struct Transport {
    connections: Arc<Connections>,
    token: HeaderValue,
    note: Note,
}

impl Transport {
    pub(super) fn new(connections: &Arc<Connections>, token: &AccessToken) -> Self {
        let mut value = HeaderValue::from_str(token.reveal()).expect("a token is visible ASCII");
        value.set_sensitive(true);
        Self { connections: connections.clone(), token: value, note: Note::default() }
    }

    /// Sends a request with the token.
    pub(super) async fn request(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<WatchedBody>, legacy::Error> {
        request.headers_mut().insert(HeaderName::from_static(ACCESS_TOKEN_HEADER), self.token.clone());
        self.note.send(&self.connections.pool(), request).await
    }

    /// The connection's failure, if that is why `call` failed. `ended` says whether an end counts as one.
    pub(super) fn take_fault(&self, call: &'static str, ended: bool) -> Option<AgentError> {
        match self.note.take()? {
            Fault::Dial(source) => Some(AgentError::Unreachable { call, source }),
            Fault::Broken(source) => Some(AgentError::Disconnected { call, source }),
            Fault::Ended if ended => {
                Some(AgentError::Disconnected { call, source: "the agent closed it early".into() })
            }
            Fault::Ended => None,
        }
    }
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

//! The host's client of one guest's agent.

mod command;
mod error;
mod files;
mod init;
mod process;
mod stream;
mod transport;
mod tree;
mod watch;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use connectrpc::client::ClientConfig;
use connectrpc::{CompressionRegistry, ConnectError};
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};

pub use command::{Command, ProcessInfo, Selector, Signal, TerminalSize};
pub use error::AgentError;
pub use files::{FileStream, GuestPath, Upload, WrittenFile};
pub use init::Init;
pub use stream::{Channel, ProcessEvent, ProcessStream};
pub use transport::Dial;
pub use tree::{FileInfo, FileKind};
pub use watch::{FileEvent, FileEventKind, WatchOptions, WatchStream};

use crate::AccessToken;
use crate::transport::{Connection, WatchedBody};
use transport::{Connections, RequestBody, Transport};

/// The authority in request lines: it leads nowhere, the dial closure decides.
const ORIGIN: &str = "http://agent";

/// The most bytes of an answer that is not streamed.
const MAX_ANSWER: usize = 1 << 20;

/// A client of one guest's agent. Clones are cheap and share their connections.
///
/// Connections are dialed when needed, by the closure given to [`new`](Self::new), and kept for the next call.
/// After the guest was restored from a snapshot they are dead without knowing it: call
/// [`reset`](Self::reset) then, before the next call.
///
/// **Cancel safety**: dropping the future of any call is safe and closes that call's connection. Whether the
/// agent had carried the call out is unknown then, as it is after [`AgentError::Disconnected`] and
/// [`AgentError::Timeout`]. No call is ever repeated, except where nothing of it was sent.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use wrenn_agent_api::{AccessToken, AgentClient, Command, Init, ProcessEvent, AGENT_PORT};
/// # async fn example() -> Result<(), wrenn_agent_api::AgentError> {
/// let dial = Arc::new(|| -> std::pin::Pin<Box<dyn Future<Output = _> + Send>> {
///     Box::pin(tokio::net::TcpStream::connect(("169.254.0.21", AGENT_PORT)))
/// });
/// let agent = AgentClient::new(dial, AccessToken::random());
/// agent.init(Init::now()).await?;
/// let mut events = agent.start(Command::new("date")).await?;
/// while let Some(event) = events.next().await? {
///     println!("{event:?}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AgentClient {
    connections: Arc<Connections>,
    token: AccessToken,
    limit: Duration,
}

impl AgentClient {
    /// A client that reaches the agent through `dial` and shows it `token`. Dials nothing yet.
    pub fn new(dial: Dial, token: AccessToken) -> Self {
        let dial = move || {
            let socket = dial();
            async move {
                let socket = socket.await?;
                // Requests are small and waited for.
                socket.set_nodelay(true)?;
                Ok(socket)
            }
        };
        Self::over(dial, token)
    }

    /// As [`new`](Self::new), over connections of any make: through a tunnel, in memory.
    pub fn over<D, F, S>(dial: D, token: AccessToken) -> Self
    where
        D: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: Connection,
    {
        let connections = Connections::new(crate::transport::dial(dial));
        Self { connections: Arc::new(connections), token, limit: Duration::from_secs(30) }
    }

    /// The same client with another time limit for each call (default: 30 s).
    ///
    /// It counts from the call to its answer, dialing included; for [`start`](Self::start) to the start event,
    /// for files to the answer's head. Neither a command nor a transfer is limited by it.
    pub fn with_time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The same client, over the same connections, with another token.
    pub fn with_token(mut self, token: AccessToken) -> Self {
        self.token = token;
        self
    }

    /// Forgets all idle connections of this client and its clones; calls under way keep theirs.
    pub fn reset(&self) {
        self.connections.reset();
    }

    /// Asks whether the agent answers. Needs no token.
    ///
    /// # Errors
    /// [`AgentError::is_unreachable`] tells a guest that is not there yet from one that is broken.
    pub async fn health(&self) -> Result<(), AgentError> {
        let response = self.call("health", Method::GET, "/health", None).await?;
        self.expect_no_content("health", response).await
    }

    fn transport(&self) -> Transport {
        Transport::new(&self.connections, &self.token)
    }

    /// One request of a plain route, with a JSON body if one is given, up to the answer's head.
    async fn call(
        &self,
        call: &'static str,
        method: Method,
        path: &str,
        json: Option<Vec<u8>>,
    ) -> Result<Response<WatchedBody>, AgentError> {
        let mut request = Request::builder().method(method).uri(format!("{ORIGIN}{path}"));
        if json.is_some() {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let body = Full::new(Bytes::from(json.unwrap_or_default()));
        let request = request
            .body(body.map_err(|never| match never {}).boxed_unsync())
            .map_err(|e| AgentError::protocol(call, e.to_string()))?;
        self.send(call, request).await
    }

    /// Sends a request and waits for the answer's head, within the time limit.
    async fn send(
        &self,
        call: &'static str,
        request: Request<RequestBody>,
    ) -> Result<Response<WatchedBody>, AgentError> {
        let transport = self.transport();
        self.within(call, async {
            transport.request(request).await.map_err(|error| {
                transport
                    .take_fault(call, false)
                    .unwrap_or_else(|| AgentError::Disconnected { call, source: error.into() })
            })
        })
        .await
    }

    /// One unary RPC of the service that `service` makes a client of, within the time limit.
    async fn unary<T, C>(
        &self,
        call: &'static str,
        service: impl FnOnce(Transport, ClientConfig) -> C,
        work: impl AsyncFnOnce(C) -> Result<T, ConnectError>,
    ) -> Result<T, AgentError> {
        let transport = self.transport();
        let client = service(transport.clone(), config());
        self.within(call, async {
            work(client).await.map_err(|error| {
                transport.take_fault(call, false).unwrap_or_else(|| AgentError::from_connect(call, &error))
            })
        })
        .await
    }

    async fn within<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, AgentError> {
        let limit = self.limit;
        tokio::time::timeout(limit, work).await.unwrap_or(Err(AgentError::Timeout { call, limit }))
    }

    /// Reads a whole answer, which must be a success.
    async fn collect(
        &self,
        call: &'static str,
        response: Response<WatchedBody>,
    ) -> Result<Bytes, AgentError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        let body = self
            .within(call, async {
                match body.collect().await {
                    Ok(body) => Ok(body.to_bytes()),
                    Err(e) if e.is::<http_body_util::LengthLimitError>() => {
                        Err(AgentError::protocol(call, format!("more than {MAX_ANSWER} bytes")))
                    }
                    Err(source) => Err(AgentError::Disconnected { call, source }),
                }
            })
            .await?;
        if status.is_success() { Ok(body) } else { Err(AgentError::from_http(call, status, &body)) }
    }

    async fn expect_no_content(
        &self,
        call: &'static str,
        response: Response<WatchedBody>,
    ) -> Result<(), AgentError> {
        let status = response.status();
        self.collect(call, response).await?;
        match status {
            StatusCode::NO_CONTENT => Ok(()),
            other => Err(AgentError::protocol(call, format!("HTTP {other} instead of 204"))),
        }
    }
}

impl std::fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentClient").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// How RPCs are made: in binary, which carries output as it is, and uncompressed, as the link is local.
fn config() -> ClientConfig {
    ClientConfig::new(Uri::from_static(ORIGIN)).proto().with_compression(CompressionRegistry::new())
}

/// HTTP Basic credentials with a user and no password: how this protocol names a user.
fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:")))
}

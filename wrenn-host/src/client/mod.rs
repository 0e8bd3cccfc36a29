//! The control plane's client of one host.

mod calls;
mod endpoint;
mod error;
mod events;
mod transport;
mod tunnel;

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use connectrpc::ConnectError;
use connectrpc::client::ClientConfig;
use hyper::Uri;

pub use endpoint::{BadEndpoint, ClientTls};
pub use error::HostError;
pub use events::{SandboxEvents, WatchEvent};
pub use tunnel::Tunnel;

use crate::{Connection, HostSecret, pb};
use endpoint::{Place, dial};
use transport::{Link, ORIGIN, Signer, Transport};

/// How long a call may take where its caller says nothing else. A pause writes a guest's whole memory.
const DEFAULT_LIMIT: Duration = Duration::from_secs(300);
/// The most bytes of one answer.
const MAX_ANSWER: usize = 8 << 20;

/// A client of one host. Clones are cheap and share their connections.
///
/// Connections are made when they are needed, and kept for the next call.
///
/// **Cancel safety**: dropping the future of any call is safe, and the host goes on with what it began: whether it had begun
/// is unknown then, as it is after [`HostError::Disconnected`] and [`HostError::Timeout`]. [`create`](Self::create) can be
/// asked again with the same request; for the rest [`get`](Self::get) says what became of it. No call is repeated by itself.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use wrenn_base::SandboxId;
/// use wrenn_host::{CreateSandbox, HostClient, HostSecret, Source};
/// let secret = HostSecret::new(std::fs::read("/etc/wrenn/host-secret")?)?;
/// let host = HostClient::builder("http://10.0.0.5:7070")?.secret(secret, "host-1", "control-1").build()?;
/// let request = CreateSandbox::new(SandboxId::random(), Source::Image("debian".parse()?));
/// let sandbox = host.create(request).await?;
/// let agent = host.agent(&sandbox.id, sandbox.token.ok_or("it does not run")?);
/// agent.health().await?;
/// host.destroy(&sandbox.id).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HostClient {
    link: Arc<Link>,
    limit: Duration,
}

/// A client that is being described; made by [`HostClient::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct HostClientBuilder {
    place: Place,
    signer: Option<Signer>,
    tls: Option<ClientTls>,
    limit: Duration,
}

impl HostClientBuilder {
    /// Signs a token for each call, with the secret that it shares with the host named `host`, in the name of `caller`.
    pub fn secret(mut self, secret: HostSecret, host: impl Into<String>, caller: impl Into<String>) -> Self {
        self.signer = Some(Signer { secret, host: host.into(), caller: caller.into() });
        self
    }

    /// Which hosts to trust over TLS, and what to show them. Needed for `https`.
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long each call may take, connecting included; five minutes where not set.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The client. Connects to nothing yet.
    ///
    /// # Errors
    /// An `https` address without [`tls`](Self::tls), or whose host is no name that a certificate can have.
    pub fn build(self) -> Result<HostClient, BadEndpoint> {
        let Self { place, signer, tls, limit } = self;
        Ok(HostClient { link: Arc::new(Link::new(place.dial(tls)?, signer)), limit })
    }
}

impl HostClient {
    /// Begins a client of the host at `endpoint`: `http://host:port`, `https://host:port`, or `unix:/path/of/socket`.
    ///
    /// # Errors
    /// `endpoint` is none of these.
    pub fn builder(endpoint: &str) -> Result<HostClientBuilder, BadEndpoint> {
        Ok(HostClientBuilder {
            place: Place::parse(endpoint)?,
            signer: None,
            tls: None,
            limit: DEFAULT_LIMIT,
        })
    }

    /// A client whose connections `connect` makes, and which shows no token: for a host in the same process, or behind
    /// something else that says who may call.
    pub fn over<D, F, S>(connect: D) -> Self
    where
        D: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: Connection,
    {
        Self { link: Arc::new(Link::new(dial(connect), None)), limit: DEFAULT_LIMIT }
    }

    /// The same client, over the same connections, with another time limit for each call.
    pub fn with_time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// One unary call, within the time limit.
    async fn unary<T>(
        &self,
        call: &'static str,
        work: impl AsyncFnOnce(pb::HostClient<Transport>) -> Result<T, ConnectError>,
    ) -> Result<T, HostError> {
        let transport = Transport::new(&self.link);
        let client = pb::HostClient::new(transport.clone(), config());
        self.within(call, async {
            work(client).await.map_err(|error| {
                transport.take_fault(call, false).unwrap_or_else(|| HostError::from_connect(call, &error))
            })
        })
        .await
    }

    async fn within<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, HostError>>,
    ) -> Result<T, HostError> {
        let limit = self.limit;
        tokio::time::timeout(limit, work).await.unwrap_or(Err(HostError::Timeout { call, limit }))
    }
}

/// How calls are made: in binary, and bounded.
fn config() -> ClientConfig {
    ClientConfig::new(Uri::from_static(ORIGIN)).proto().with_default_max_message_size(MAX_ANSWER)
}

impl fmt::Debug for HostClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostClient").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("host", &self.host)
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

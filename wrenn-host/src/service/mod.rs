//! The host's side: a `wrenn-core` host, offered to whoever may call.
//!
//! ```text
//! Listener ── connections ── Routes ─┬─ /health
//!   (who may call)                   ├─ /tunnel/{sandbox}/{port} ── Ports of a running sandbox
//!                                    └─ wrenn.host.v1.Host ── a task ── Sandboxes ── wrenn-core
//! ```
//!
//! Each call that changes something is a task of its own, which comes to its end whoever waits for it. What is done with one
//! sandbox is done one after the other, by the lock of its slot.

mod connections;
mod create;
mod listener;
mod look;
mod machine;
mod refusal;
mod request;
mod routes;
mod rpc;
mod sandboxes;
mod tend;
mod tunnel;
mod watch;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wrenn_core::{Error, Host, ShutdownFailure, ShutdownPolicy};

pub use listener::{BadTls, Listener, MutualTls, ServerTls};

use connections::{Access, Room, attend};
use routes::Routes;
use sandboxes::Sandboxes;

/// How long connections have, when a listener is shut down, to end what they are at.
const GRACE: Duration = Duration::from_secs(10);
/// What an in-process connection holds on its way.
const IN_MEMORY: usize = 64 * 1024;

/// A host, offered to control planes. Clones are the same service.
///
/// It has the sandboxes that it makes, and those that ran when it was made and that nobody had. **To end it, call
/// [`shutdown`](Self::shutdown)**: where the last clone of a service is merely dropped, its running sandboxes are ended as
/// their handles are.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use wrenn_host::{HostSecret, HostService, Listener};
/// let host = wrenn_core::Host::builder().open().await?;
/// let service = HostService::new(host.clone(), "host-1").await?;
/// let secret = HostSecret::new(std::fs::read("/etc/wrenn/host-secret")?)?;
/// let listener = Listener::tcp(tokio::net::TcpListener::bind("0.0.0.0:7070").await?, secret);
/// let interrupted = async { drop(tokio::signal::ctrl_c().await) };
/// service.serve(listener, interrupted).await;
/// let policy = wrenn_core::ShutdownPolicy::LeaveRunning;
/// for failure in service.shutdown(policy, std::time::Duration::from_secs(60)).await {
///     eprintln!("{}: {}", failure.sandbox, failure.error);
/// }
/// host.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HostService {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    /// What tokens for this host name as their audience.
    name: String,
    sandboxes: Arc<Sandboxes>,
    routes: Arc<Routes>,
    /// What was begun on behalf of calls.
    tasks: TaskTracker,
    /// The service is to end: streams and tunnels end with it.
    ending: CancellationToken,
    room: Room,
}

impl HostService {
    /// Offers `host`, under a name that tokens for it have as their audience.
    ///
    /// Takes over the sandboxes that run and that nobody has: what an earlier host agent left, or was killed with.
    ///
    /// # Errors
    /// The data directory cannot be read. Nothing is taken over then.
    ///
    /// # Cancel safety
    /// A dropped future ends the sandboxes that it had taken over.
    pub async fn new(host: Host, name: impl Into<String>) -> Result<Self, Error> {
        let (name, ending, tasks) = (name.into(), CancellationToken::new(), TaskTracker::new());
        let sandboxes = Sandboxes::take_over(host).await?;
        tokio::spawn(tend::tend(Arc::downgrade(&sandboxes), sandboxes.events(), ending.clone()));
        let routes = Routes::new(name.clone(), Arc::clone(&sandboxes), tasks.clone(), ending.clone());
        let room = Room::default();
        Ok(Self {
            shared: Arc::new(Shared { name, sandboxes, routes: Arc::new(routes), tasks, ending, room }),
        })
    }

    /// Serves a listener until `shutdown` resolves or the service ends; then lets each connection end what it is at, for at
    /// most ten seconds. Tunnels and event streams end at once. What was begun in the host goes on.
    ///
    /// # Cancel safety
    /// A dropped future stops accepting; connections go on.
    pub async fn serve(&self, listener: Listener, shutdown: impl Future<Output = ()>) {
        let stop = self.shared.ending.child_token();
        let connections = TaskTracker::new();
        tokio::select! {
            () = connections::accept(&self.shared, &listener, &connections, &stop) => {}
            () = shutdown => {}
            () = self.shared.ending.cancelled() => {}
        }
        stop.cancel();
        connections.close();
        if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
            tracing::warn!(listener = %listener, "connections did not end in time, and are left to themselves");
        }
    }

    /// Whether nobody needs it now: no sandbox runs, nothing is being done, and nobody is connected to a listener.
    pub fn is_idle(&self) -> bool {
        let Shared { sandboxes, tasks, room, .. } = &*self.shared;
        room.is_empty() && tasks.is_empty() && sandboxes.is_at_rest()
    }

    /// A connection within the process, whose other end may call everything: for a
    /// [`HostClient::over`](crate::HostClient::over).
    pub fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(IN_MEMORY);
        let (routes, stop) = (Arc::clone(&self.shared.routes), self.shared.ending.child_token());
        tokio::spawn(async move { attend(far, routes, Arc::new(Access::Trusted), stop).await });
        near
    }

    /// A client within the process. It goes through the same code as any other, and keeps the service.
    #[cfg(feature = "client")]
    pub fn client(&self) -> crate::HostClient {
        let service = self.clone();
        crate::HostClient::over(move || {
            let near = service.connect();
            async move { Ok(near) }
        })
    }

    /// The name that tokens for this host have as their audience.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Ends the service: listeners stop, what calls began comes to its end, and then the running sandboxes are paused,
    /// destroyed or left, all within `limit`. The host is then to be closed.
    ///
    /// # Errors
    /// Nothing fails as a whole: what could not be ended is returned. What could not be paused is left running, for a later
    /// service of the same host; what could not be destroyed is let go of.
    ///
    /// # Cancel safety
    /// A dropped future lets what is under way come to its end. The service takes no calls any more.
    pub async fn shutdown(self, policy: ShutdownPolicy, limit: Duration) -> Vec<ShutdownFailure> {
        let deadline = tokio::time::Instant::now() + limit;
        self.shared.ending.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout_at(deadline, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("calls did not come to their ends in time");
        }
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        self.shared.sandboxes.shut_down(policy, left).await
    }
}

impl fmt::Debug for HostService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostService").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

//! Connections: accepted, bounded, let go in good order.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Shared;
use super::listener::{Listener, Socket};
use super::routes::Routes;
use crate::{Connection, HostSecret};

/// The most connections at once; more wait in the kernel's queue. Tunnels have a number of their own.
const MOST_CONNECTIONS: usize = 4096;
/// How long a request's head may take; also how long a connection may idle.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const BUFFER: usize = 64 * 1024;
/// How long a listener rests where it cannot accept, as for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many connections there may be yet, and how many there are.
pub(super) struct Room {
    free: Arc<Semaphore>,
    taken: Arc<AtomicUsize>,
}

impl Default for Room {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(MOST_CONNECTIONS)), taken: Arc::default() }
    }
}

impl Room {
    /// Whether nobody is connected. Tunnels do not count: they lead to a sandbox that runs.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.load(Ordering::SeqCst) == 0
    }

    fn place(&self, free: OwnedSemaphorePermit) -> Place {
        self.taken.fetch_add(1, Ordering::SeqCst);
        Place { taken: Arc::clone(&self.taken), _free: free }
    }
}

/// A connection's.
struct Place {
    taken: Arc<AtomicUsize>,
    _free: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Who may call over a connection.
pub(super) enum Access {
    /// Whoever has it: it is within the process, or the system or a certificate says who that is.
    Trusted,
    /// Whoever shows a token that the secret signed.
    Token(HostSecret),
}

/// Takes connections for ever.
pub(super) async fn accept(
    shared: &Shared,
    listener: &Listener,
    connections: &TaskTracker,
    stop: &CancellationToken,
) {
    let access = Arc::new(listener.secret.clone().map_or(Access::Trusted, Access::Token));
    loop {
        let Ok(free) = Arc::clone(&shared.room.free).acquire_owned().await else { return };
        let place = || shared.room.place(free);
        let (routes, access, stop) = (Arc::clone(&shared.routes), Arc::clone(&access), stop.clone());
        let accepted = match &listener.socket {
            Socket::Tcp(socket) => socket.accept().await.map(|(stream, _)| {
                let place = place();
                connections.spawn(async move {
                    if prepare(&stream).is_ok() {
                        attend(stream, routes, access, stop).await;
                    }
                    drop(place);
                });
            }),
            Socket::Tls(socket, acceptor) => socket.accept().await.map(|(stream, _)| {
                let place = place();
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    if prepare(&stream).is_ok() {
                        let shaken = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await;
                        match shaken {
                            Ok(Ok(stream)) => attend(stream, routes, access, stop).await,
                            Ok(Err(error)) => tracing::debug!(%error, "no TLS connection"),
                            Err(_) => tracing::debug!("a TLS handshake took too long"),
                        }
                    }
                    drop(place);
                });
            }),
            Socket::Unix(socket, _) => socket.accept().await.map(|(stream, _)| {
                let place = place();
                connections.spawn(async move {
                    attend(stream, routes, access, stop).await;
                    drop(place);
                });
            }),
        };
        if let Err(error) = accepted {
            tracing::warn!(%listener, %error, "cannot take a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Answers are small and waited for; a peer that vanished must be noticed.
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    Ok(rustix::net::sockopt::set_tcp_keepcnt(stream, 3)?)
}

/// Serves one connection, until it ends or is to stop; then the request that it is at comes to its end.
pub(super) async fn attend(
    stream: impl Connection,
    routes: Arc<Routes>,
    access: Arc<Access>,
    stop: CancellationToken,
) {
    let ending = stop.clone();
    let service = service_fn(move |request| {
        let (routes, access, stop) = (Arc::clone(&routes), Arc::clone(&access), stop.clone());
        async move { Ok::<_, Infallible>(routes.answer(request, &access, stop).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    // A connection's error is its peer's affair; there is nobody to tell.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = ending.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

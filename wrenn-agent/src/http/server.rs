//! Connections: accepted, kept alive, and dropped all at once after a resume.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::Routes;

/// The most connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;

/// Read and write buffer of a connection: the least latency and memory that still fills the socket.
const BUFFER: usize = 64 * 1024;

/// After this much silence the kernel asks whether the peer is still there, three times, and gives up.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBES: u32 = 3;

/// The connections that there are, as something that can be cut.
#[derive(Clone)]
pub(crate) struct Connections {
    /// The connection that alone survived the last cut.
    survivor: watch::Sender<u64>,
    next: Arc<AtomicU64>,
}

impl Connections {
    pub(crate) fn new() -> Self {
        Self { survivor: watch::Sender::new(0), next: Arc::new(AtomicU64::new(1)) }
    }

    /// Drops every connection that there is now, except `survivor`.
    pub(super) fn cut_all_but(&self, survivor: u64) {
        self.survivor.send_replace(survivor);
    }
}

/// Serves `listener` for ever.
pub(crate) async fn serve(listener: TcpListener, routes: Arc<Routes>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(_) => {
                // Out of descriptors, or a peer that is gone again: both pass.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let routes = routes.clone();
        tokio::spawn(async move {
            attend(socket, routes).await;
            drop(place);
        });
    }
}

/// Serves one connection until it ends or is cut.
async fn attend(socket: TcpStream, routes: Arc<Routes>) {
    let connections = routes.connections.clone();
    let own = connections.next.fetch_add(1, Ordering::Relaxed);
    let mut survivor = connections.survivor.subscribe();
    // Small answers must not wait for more; a peer that vanished (a host that went away) must be noticed.
    let _ = socket.set_nodelay(true);
    let _ = watch_peer(&socket);
    let service = service_fn(move |request| {
        let routes = routes.clone();
        async move { Ok::<_, Infallible>(routes.answer(request, own).await) }
    });
    let connection = http1::Builder::new()
        .max_buf_size(BUFFER)
        // A connection may idle for as long as it likes.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(socket), service);
    let cut = async {
        // Ends at the first cut that spares another one.
        while survivor.changed().await.is_ok() {
            if *survivor.borrow_and_update() != own {
                return;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        // A connection's error is its peer's affair; there is nobody to tell.
        _ = connection => {}
        () = cut => {}
    }
}

fn watch_peer(socket: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)
}

//! Connections: how many, how long their headers may take and be, and how they end.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::auth::PeerAddress;
use crate::config::Config;

/// The most that a request's line and headers may take; more is answered with 431.
const HEADER_BYTES: usize = 64 << 10;

/// The most headers of a request; more is answered with 431.
const HEADERS: usize = 100;

/// Serves until `stop`, then until the connections have ended or their time is over.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    config: &Config,
    stop: impl Future<Output = ()>,
) {
    let mut stop = std::pin::pin!(stop);
    let slots = Arc::new(Semaphore::new(config.connections));
    let (stopping, connections) = (CancellationToken::new(), TaskTracker::new());
    let mut http = hyper::server::conn::http1::Builder::new();
    // A client that sends its headers slowly, or none at all, does not keep its connection.
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADERS);
    loop {
        let accepted = async {
            // Beyond the limit clients wait in the kernel's queue.
            let slot = slots.clone().acquire_owned().await;
            (slot, accept(&listener).await)
        };
        let (slot, (stream, address)) = tokio::select! {
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        let router = router.clone();
        let service = tower::service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(PeerAddress(address));
            router.clone().oneshot(request)
        });
        let connection =
            http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).with_upgrades();
        let stopping = stopping.clone();
        connections.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopping.cancelled() => {
                    // The request that is under way is answered, and none is taken after it.
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, %address, "a connection broke");
            }
            drop(slot);
        });
    }
    drop(listener);
    stopping.cancel();
    connections.close();
    if tokio::time::timeout(config.shutdown_grace, connections.wait()).await.is_err() {
        tracing::warn!("requests were under way for longer than the grace period");
    }
}

/// The next connection. What fails is a connection that was gone again, or a lack of descriptors that passes.
async fn accept(listener: &TcpListener) -> (TcpStream, std::net::SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Answers are small and to be there at once.
                let _ = stream.set_nodelay(true);
                return (stream, address);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

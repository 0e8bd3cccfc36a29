//! A real HTTP server on a Unix socket that records what it is asked, and answers as the test says.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub method: String,
    pub path: String,
    pub host: String,
    pub body: Bytes,
}

impl Recorded {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

type Answer = Arc<dyn Fn(&Recorded) -> (u16, String) + Send + Sync>;

pub struct Peer {
    pub socket: PathBuf,
    requests: Arc<Mutex<Vec<Recorded>>>,
    _dir: tempfile::TempDir,
}

impl Peer {
    /// Serves until the runtime ends.
    pub fn start(answer: impl Fn(&Recorded) -> (u16, String) + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("peer.sock");
        let requests = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(serve(listen(&socket), Arc::new(answer), Arc::clone(&requests)));
        Self { socket, requests, _dir: dir }
    }

    /// What was asked so far, in order.
    pub fn requests(&self) -> Vec<Recorded> {
        self.requests.lock().expect("no test thread panicked").clone()
    }
}

pub fn listen(socket: &Path) -> UnixListener {
    UnixListener::bind(socket).expect("the socket can be bound")
}

async fn serve(listener: UnixListener, answer: Answer, requests: Arc<Mutex<Vec<Recorded>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (answer, requests) = (Arc::clone(&answer), Arc::clone(&requests));
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let (answer, requests) = (Arc::clone(&answer), Arc::clone(&requests));
            async move {
                let recorded = record(request).await;
                let (status, body) = answer(&recorded);
                requests.lock().expect("no test thread panicked").push(recorded);
                let response = Response::builder().status(status).body(Full::new(Bytes::from(body)));
                Ok::<_, Infallible>(response.expect("the test's answer is valid"))
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn record(request: Request<hyper::body::Incoming>) -> Recorded {
    let host = request.headers().get("host").map_or("", |host| host.to_str().unwrap_or("?")).to_owned();
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let body = request.into_body().collect().await.expect("the request is whole").to_bytes();
    Recorded { method, path, host, body }
}

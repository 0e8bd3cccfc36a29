//! Requests that the typed client would never make.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use hyperlocal::{UnixConnector, Uri};

/// Sends one request on a connection of its own; the answer's status and body, or why there was none.
pub async fn request(socket: &Path, method: &str, path: &str, body: &str) -> Result<(u16, Bytes), String> {
    let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(UnixConnector);
    let request = Request::builder()
        .method(method.to_uppercase().as_str())
        .uri(Uri::new(socket, path))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_owned())))
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = client.request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        Ok((status, body.to_bytes()))
    };
    let late = |_| format!("{method} {path}: no answer");
    tokio::time::timeout(Duration::from_secs(60), exchange).await.map_err(late)?
}

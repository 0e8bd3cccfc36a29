//! Passing a request to what listens at a guest's port, and its response back.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, Version, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use wrenn_host::Tunnel;

use super::is_upgrade;
use crate::api::{Code, Error};
use crate::app::App;

/// What belongs to one connection and not to the message.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Passes a request through a tunnel, and what comes of it back, which has to begin within that time.
pub(crate) async fn pass(
    app: &App,
    tunnel: Tunnel,
    mut request: Request,
    peer: Option<IpAddr>,
    limit: Duration,
) -> Result<Response, Error> {
    let ours = hyper::upgrade::on(&mut request);
    let upgrade = request.headers().get(header::UPGRADE).cloned();
    prepare(&mut request, upgrade.as_ref(), peer)?;
    let broke = |error: hyper::Error| {
        tracing::debug!(%error, "a preview's connection broke");
        Code::PortClosed.because("what listens at that port did not answer as an HTTP server does")
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tunnel)).await.map_err(broke)?;
    // It ends with the response's last byte, with the upgraded connection, or when the client is gone.
    tokio::spawn(connection.with_upgrades());
    let response = tokio::time::timeout(limit, sender.send_request(request)).await;
    let mut response = response
        .map_err(|_| Code::Timeout.because("what listens at that port did not answer"))?
        .map_err(broke)?;
    if is_upgrade(&response) {
        let theirs = hyper::upgrade::on(&mut response);
        let stopping = app.stopping.clone();
        app.tasks.spawn(async move {
            let joined = async {
                let (ours, theirs) = tokio::try_join!(ours, theirs).ok()?;
                copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await.ok()
            };
            tokio::select! {
                _ = joined => {}
                () = stopping.cancelled() => {}
            }
        });
        // What it was upgraded to is for the client to know.
        return Ok(response.map(|_| Body::empty()));
    }
    strip(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    Ok(response.map(Body::new))
}

/// Makes the client's request one of ours.
fn prepare(request: &mut Request, upgrade: Option<&HeaderValue>, peer: Option<IpAddr>) -> Result<(), Error> {
    // A server is asked for a path, and not for a whole address.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let path =
        path.parse::<Uri>().map_err(|_| Code::InvalidRequest.because("this path cannot be asked for"))?;
    let host = request.headers().get(header::HOST).cloned();
    let host = host.or_else(|| request.uri().authority().and_then(|host| host.as_str().parse().ok()));
    *request.uri_mut() = path;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    strip(headers);
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade.clone());
    }
    if let Some(host) = host {
        headers.insert(HeaderName::from_static("x-forwarded-host"), host.clone());
        headers.insert(header::HOST, host);
    }
    headers.remove("x-forwarded-for");
    if let Some(peer) = peer.and_then(|peer| HeaderValue::from_str(&peer.to_string()).ok()) {
        headers.insert(HeaderName::from_static("x-forwarded-for"), peer);
    }
    Ok(())
}

/// Removes what belongs to the connection that a message came by, also what its `Connection` header names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_connection_stays_there() {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = "http://8000-x.localhost/a?b=c".parse().unwrap();
        for (name, value) in [
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("x-forwarded-for", "6.6.6.6"),
            ("cookie", "a=b"),
            ("host", "8000-x.localhost"),
        ] {
            request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        prepare(&mut request, None, Some("192.0.2.1".parse().unwrap())).unwrap();
        assert_eq!(request.uri(), "/a?b=c");
        let headers = request.headers();
        let names: std::collections::BTreeSet<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["cookie", "host", "x-forwarded-for", "x-forwarded-host"].into());
        assert_eq!(headers["x-forwarded-for"], "192.0.2.1");
    }
}

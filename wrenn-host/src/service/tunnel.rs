//! `GET /tunnel/{sandbox}/{port}`: bytes to and from a guest's port.

use std::sync::Arc;

use connectrpc::ConnectError;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio_util::sync::CancellationToken;
use wrenn_agent_api::AGENT_PORT;
use wrenn_base::SandboxId;

use super::refusal::refusal;
use super::routes::{Body, Routes, status};
use crate::{Reason, TUNNEL_PROTOCOL};

/// What is on its way in each direction.
const BUFFER: usize = 64 * 1024;

impl Routes {
    /// Connects to the guest first: whatever is wrong is said before the answer.
    pub(super) async fn tunnel(
        &self,
        mut request: Request<Incoming>,
        target: &str,
        stop: CancellationToken,
    ) -> Result<Response<Body>, ConnectError> {
        let (sandbox, port) = parse(target)?;
        let asked = request.headers().get(UPGRADE).is_some_and(|value| value == TUNNEL_PROTOCOL);
        if request.method() != Method::GET || !asked {
            let why = format!("a tunnel is asked for with GET and Upgrade: {TUNNEL_PROTOCOL}");
            return Err(Reason::InvalidArgument.error(why));
        }
        let place = Arc::clone(&self.tunnels)
            .try_acquire_owned()
            .map_err(|_| Reason::Exhausted.error("the host carries as many tunnels as it will"))?;
        let ports = self.sandboxes.ports(&sandbox).await?;
        let connected = match port {
            AGENT_PORT => ports.connect_to_agent().await,
            port => ports.connect(port).await,
        };
        let mut guest = connected.map_err(|error| refusal(&error))?;
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let carry = async {
                let mut caller = TokioIo::new(upgraded.await.map_err(std::io::Error::other)?);
                copy_bidirectional_with_sizes(&mut caller, &mut guest, BUFFER, BUFFER).await
            };
            tokio::select! {
                // How a connection ends is between the two that have it.
                _ = carry => {}
                () = ports.ended() => {}
                () = stop.cancelled() => {}
            }
            drop(place);
        });
        let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static(TUNNEL_PROTOCOL));
        Ok(response)
    }
}

fn parse(target: &str) -> Result<(SandboxId, u16), ConnectError> {
    let refuse = |why: String| Reason::InvalidArgument.error(why);
    let (sandbox, port) =
        target.split_once('/').ok_or_else(|| refuse("a tunnel is /tunnel/{sandbox}/{port}".into()))?;
    let sandbox = sandbox.parse::<SandboxId>().map_err(|e| refuse(e.to_string()))?;
    match port.parse::<u16>() {
        // `parse` would take a sign.
        Ok(number) if number != 0 && port.bytes().all(|b| b.is_ascii_digit()) => Ok((sandbox, number)),
        _ => Err(refuse("a port is 1 to 65535".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_a_sandbox_and_a_port() {
        let id = SandboxId::random();
        assert_eq!(parse(&format!("{id}/80")).unwrap(), (id.clone(), 80));
        for bad in ["", "/", "80", "x/80", &format!("{id}"), &format!("{id}/"), &format!("{id}/0")] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        for port in ["65536", "+80", "-1", "80/", "http", "80?x", " 80"] {
            assert!(parse(&format!("{id}/{port}")).is_err(), "{port:?}");
        }
    }
}

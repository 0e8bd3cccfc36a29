//! Connections to a guest's ports.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use connectrpc::ConnectError;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wrenn_agent_api::transport::{BoxError, describe};
use wrenn_agent_api::{AGENT_PORT, AccessToken, AgentClient};
use wrenn_base::SandboxId;

use super::transport::Link;
use super::{HostClient, HostError};
use crate::TUNNEL_PROTOCOL;

const CALL: &str = "connecting to a guest's port";
/// The most bytes of an answer that says why there is no tunnel.
const MAX_REFUSAL: usize = 64 * 1024;

/// A TCP connection to a port of a guest.
///
/// Shutting its writing side down lets the guest read the end of its input, and the rest of the answer come back. Dropping
/// it closes both ways. Whatever passes keeps the sandbox from being idle.
pub struct Tunnel(TokioIo<Upgraded>);

impl HostClient {
    /// Connects to a TCP port of a running sandbox's guest.
    ///
    /// ```no_run
    /// # async fn example(host: wrenn_host::HostClient, id: wrenn_base::SandboxId) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// let mut web = host.tunnel(&id, 8000).await?;
    /// web.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    /// let mut page = String::new();
    /// web.read_to_string(&mut page).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// There is no such sandbox, or it does not run; nobody in the guest listens at the port
    /// ([`PortClosed`](crate::Reason::PortClosed)); the host carries as many connections as it will
    /// ([`Exhausted`](crate::Reason::Exhausted)).
    ///
    /// # Cancel safety
    /// A dropped future leaves no connection.
    pub async fn tunnel(&self, sandbox: &SandboxId, port: u16) -> Result<Tunnel, HostError> {
        self.within(CALL, open(&self.link, sandbox, port)).await
    }

    /// A client of the agent in a running sandbox's guest: commands, terminals, files. Connects when it is used.
    ///
    /// `token` is the sandbox's, as its [record](crate::SandboxRecord::token) has it. After the sandbox was paused and
    /// resumed, make another: its connections are gone, and the token may have changed.
    pub fn agent(&self, sandbox: &SandboxId, token: AccessToken) -> AgentClient {
        let (client, sandbox) = (self.clone(), sandbox.clone());
        let dial = move || {
            let (client, sandbox) = (client.clone(), sandbox.clone());
            async move { client.tunnel(&sandbox, AGENT_PORT).await.map_err(io::Error::other) }
        };
        AgentClient::over(dial, token)
    }
}

async fn open(link: &Link, sandbox: &SandboxId, port: u16) -> Result<Tunnel, HostError> {
    let unreachable = |source: BoxError| HostError::Unreachable { call: CALL, source };
    let broken = |e: hyper::Error| HostError::Disconnected { call: CALL, source: describe(&e).into() };
    let socket = (link.dial)().await.map_err(|e| unreachable(e.into()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(broken)?;
    // It ends with the tunnel, or with the refusal's last byte.
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::get(format!("/tunnel/{sandbox}/{port}"))
        .header(HOST, "host")
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, TUNNEL_PROTOCOL);
    if let Some(signer) = &link.signer {
        request = request.header(AUTHORIZATION, signer.header());
    }
    let request =
        request.body(Empty::<Bytes>::new()).map_err(|e| HostError::protocol(CALL, e.to_string()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Tunnel(TokioIo::new(hyper::upgrade::on(response).await.map_err(broken)?)));
    }
    let body = Limited::new(response.into_body(), MAX_REFUSAL).collect().await;
    let body = body.map_err(|source| HostError::Disconnected { call: CALL, source })?.to_bytes();
    match serde_json::from_slice::<ConnectError>(&body) {
        Ok(error) => Err(HostError::from_connect(CALL, &error)),
        Err(_) => Err(HostError::protocol(CALL, format!("HTTP {status} without an error"))),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

//! Connections to a guest's ports that keep it from being idle.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use wrenn_agent_api::AGENT_PORT;
use wrenn_base::SandboxId;

use crate::error::Error;
use crate::lifetime::Clock;
use crate::machine::Live;
use crate::network::check_port;
use crate::sandbox::Sandbox;

/// The way to a running guest's ports, for whoever carries connections there. Clones are the same.
///
/// It does not keep the sandbox: once that is paused or ended, nothing is reached any more.
#[derive(Clone)]
pub struct Ports(Arc<Live>);

impl Sandbox {
    /// The way to the guest's ports, which can be kept apart from the sandbox.
    pub fn ports(&self) -> Ports {
        Ports(Arc::clone(self.live()))
    }
}

impl Ports {
    /// The sandbox.
    pub fn sandbox(&self) -> &SandboxId {
        &self.0.identity.id
    }

    /// Connects to a TCP port of the guest. Every byte that passes keeps the sandbox from being idle.
    ///
    /// # Errors
    /// As [`Sandbox::connect`].
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing.
    pub async fn connect(&self, port: u16) -> Result<GuestStream, Error> {
        check_port(port)?;
        self.dial(port).await
    }

    /// Connects to the guest's agent, for whoever is to use the guest by the agent's own protocol; it answers only to the
    /// sandbox's [token](Sandbox::access_token).
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing.
    pub async fn connect_to_agent(&self) -> Result<GuestStream, Error> {
        self.dial(AGENT_PORT).await
    }

    /// Waits until the sandbox's machine has ended, by whatever it was. Connections that there are lead nowhere then.
    pub async fn ended(&self) {
        self.0.monitor.exited().await;
    }

    async fn dial(&self, port: u16) -> Result<GuestStream, Error> {
        let stream = self.0.connect(port).await?;
        self.0.clock.touch();
        Ok(GuestStream::new(stream, self.0.clock.clone()))
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ports").field(self.sandbox()).finish()
    }
}

/// A connection to a port of a guest. Every byte that passes keeps the sandbox from being idle.
#[derive(Debug)]
pub struct GuestStream {
    stream: TcpStream,
    clock: Clock,
}

impl GuestStream {
    pub(crate) fn new(stream: TcpStream, clock: Clock) -> Self {
        Self { stream, clock }
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.clock.touch();
        }
        read
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.clock.touch();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::lifetime::{Lifetime, OnTimeout};

    #[tokio::test]
    async fn every_byte_puts_the_expiry_off() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut guest, _) = listener.accept().await.unwrap();
        let clock = Clock::new(Lifetime::new(Some(Duration::from_secs(60)), OnTimeout::Pause));
        let mut stream = GuestStream::new(stream, clock.clone());

        let before = clock.expires().unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        stream.write_all(b"ping").await.unwrap();
        let written = clock.expires().unwrap();
        assert!(written > before);

        tokio::time::sleep(Duration::from_millis(2)).await;
        guest.write_all(b"pong").await.unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert!(clock.expires().unwrap() > written);

        // The end of one way is passed on, and the other goes on.
        stream.shutdown().await.unwrap();
        let mut asked = Vec::new();
        guest.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"ping");
        guest.write_all(b"more").await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"more");
    }
}

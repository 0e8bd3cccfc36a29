//! What bytes travel over.

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection of any make: TCP, TLS, a Unix socket, memory.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

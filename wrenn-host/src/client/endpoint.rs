//! Where a host is, and how it is reached: TCP, TLS, a Unix socket, or whatever a closure connects to.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use wrenn_agent_api::transport::{self, Connection, Dial};

/// How long a connection may take to be made. A machine that is off says nothing, and its calls are to be known as unsent.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// An address, a certificate or a key that a host cannot be reached with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadEndpoint {
    /// The address is none.
    #[error("{endpoint:?} is no host's address: {why}")]
    Address {
        /// The address as it was given.
        endpoint: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The certificate or the key cannot be read or used.
    #[error("the {what} cannot be used")]
    Certificate {
        /// Which of them.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BadEndpoint {
    fn certificate(what: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Certificate { what, source: source.into() }
    }
}

/// Where a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl Place {
    /// Reads `http://host:port`, `https://host:port` or `unix:/path`.
    pub(super) fn parse(endpoint: &str) -> Result<Self, BadEndpoint> {
        let refuse = |why| Err(BadEndpoint::Address { endpoint: endpoint.chars().take(200).collect(), why });
        if let Some(path) = endpoint.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                refuse("the socket's path is absolute")
            };
        }
        let (tls, rest) = match endpoint.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return refuse("it is written http://host:port, https://host:port or unix:/path"),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let Some((host, port)) = rest.rsplit_once(':') else { return refuse("it has a port") };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains(['/', '@', '?', '#', '[', ']']) {
            return refuse("it names a host and a port, and nothing else");
        }
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self::Tcp { host: host.into(), port, tls }),
            _ => refuse("its port is 1 to 65535"),
        }
    }

    /// The closure that connects there.
    pub(super) fn dial(self, tls: Option<ClientTls>) -> Result<Dial, BadEndpoint> {
        match self {
            Self::Unix(path) => Ok(dial(move || {
                let path = path.clone();
                async move { UnixStream::connect(path).await }
            })),
            Self::Tcp { host, port, tls: false } => Ok(dial(move || {
                let host = host.clone();
                async move { connect(&host, port).await }
            })),
            Self::Tcp { host, port, tls: true } => {
                let tls = tls.ok_or_else(|| BadEndpoint::Address {
                    endpoint: format!("https://{host}:{port}"),
                    why: "TLS needs the certificate that the host's is signed with",
                })?;
                let connector = TlsConnector::from(tls.config);
                let name = ServerName::try_from(host.clone())
                    .map_err(|source| BadEndpoint::certificate("host's name", source))?;
                Ok(dial(move || {
                    let (host, name, connector) = (host.clone(), name.clone(), connector.clone());
                    async move { connector.connect(name, connect(&host, port).await?).await }
                }))
            }
        }
    }
}

/// Wraps a closure that connects, whatever it connects to, and gives it its limit.
pub(super) fn dial<D, F, S>(connect: D) -> Dial
where
    D: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: Connection,
{
    transport::dial(move || {
        let connected = tokio::time::timeout(CONNECT_LIMIT, connect());
        async move { connected.await.map_err(|_| io::ErrorKind::TimedOut)? }
    })
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let socket = TcpStream::connect((host, port)).await?;
    // Requests are small and waited for.
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// How a client makes sure of a host that is reached over TLS, and the host of it.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// Trusts hosts whose certificates are signed with one of `roots` (PEM), and shows none of its own.
    ///
    /// # Errors
    /// There is no certificate in `roots`, or one that cannot be used.
    pub fn new(roots: &[u8]) -> Result<Self, BadEndpoint> {
        Self::build(roots, None)
    }

    /// As [`new`](Self::new), and shows a certificate of its own (PEM, with those that lead to its root) to hosts that
    /// ask for one.
    ///
    /// # Errors
    /// As `new`; or `certificate` and `key` (PEM) do not fit each other, or cannot be used.
    pub fn mutual(roots: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, BadEndpoint> {
        Self::build(roots, Some((certificate, key)))
    }

    fn build(roots: &[u8], own: Option<(&[u8], &[u8])>) -> Result<Self, BadEndpoint> {
        let mut store = RootCertStore::empty();
        for root in certificates("root certificate", roots)? {
            store.add(root).map_err(|source| BadEndpoint::certificate("root certificate", source))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| BadEndpoint::certificate("TLS provider", source))?
            .with_root_certificates(store);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates("client certificate", certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|source| BadEndpoint::certificate("client key", source))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|source| BadEndpoint::certificate("client certificate", source))?
            }
        };
        Ok(Self { config: Arc::new(config) })
    }
}

/// The certificates of a PEM text, at least one.
fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BadEndpoint> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(BadEndpoint::certificate(what, "there is none in the PEM text")),
        Err(source) => Err(BadEndpoint::certificate(what, source)),
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let tcp = |host: &str, port, tls| Place::Tcp { host: host.into(), port, tls };
        for (text, place) in [
            ("http://127.0.0.1:7000", tcp("127.0.0.1", 7000, false)),
            ("https://host-1.example:443/", tcp("host-1.example", 443, true)),
            ("http://[::1]:1", tcp("::1", 1, false)),
            ("unix:/run/host.sock", Place::Unix("/run/host.sock".into())),
        ] {
            assert_eq!(Place::parse(text).unwrap(), place);
        }
        for text in [
            "",
            "host:1",
            "ftp://h:1",
            "http://h",
            "http://h:0",
            "http://:1",
            "http://h:1/x",
            "http://a@h:1",
            "unix:x",
        ] {
            assert!(Place::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn tls_needs_certificates() {
        assert!(Place::parse("https://h:1").unwrap().dial(None).is_err());
        for pem in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(ClientTls::new(pem.as_bytes()).is_err(), "{pem}");
        }
    }
}

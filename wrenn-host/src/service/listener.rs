//! Where a host listens, and who may call there.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

use crate::HostSecret;

/// A place where a service takes connections, and what it asks of them.
pub struct Listener {
    pub(super) socket: Socket,
    /// Whose tokens are taken. None are asked for where there is no secret.
    pub(super) secret: Option<HostSecret>,
}

pub(super) enum Socket {
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
    /// Without a name where whoever made it looks after that.
    Unix(UnixListener, Option<SocketFile>),
}

/// A socket's name, which goes with it.
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it before.
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// TCP, for whoever shows a token that `secret` signed. Tokens and all the rest travel in the clear: for networks where
    /// nobody listens.
    pub fn tcp(socket: TcpListener, secret: HostSecret) -> Self {
        Self { socket: Socket::Tcp(socket), secret: Some(secret) }
    }

    /// TLS, for whoever shows a token that `secret` signed.
    pub fn tls(socket: TcpListener, tls: ServerTls, secret: HostSecret) -> Self {
        Self { socket: Socket::Tls(socket, tls.acceptor), secret: Some(secret) }
    }

    /// TLS, for whoever has a certificate that is signed with one of the roots in `tls`.
    pub fn mutual_tls(socket: TcpListener, tls: MutualTls) -> Self {
        Self { socket: Socket::Tls(socket, tls.0.acceptor), secret: None }
    }

    /// A Unix socket at `path`, for this process's user alone (mode 0600). A socket that an earlier process left there is
    /// replaced; the new one is removed when the listener is dropped.
    ///
    /// # Errors
    /// Something else than a socket is at `path`, or a socket that somebody listens at; or it cannot be made.
    pub fn unix(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        clear(&path)?;
        // Nobody comes in between: the directory that it is made in is nobody else's, and it is renamed to its name.
        let home = tempfile::Builder::new().prefix(".wrenn-").tempdir_in(parent(&path))?;
        let fresh = home.path().join("s");
        let socket = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        fs::rename(&fresh, &path)?;
        Ok(Self { socket: Socket::Unix(socket, Some(SocketFile(path))), secret: None })
    }

    /// A Unix socket that is open already, as one that whoever started this process handed down. Everybody who can connect may
    /// call; its name stays.
    pub fn inherited(socket: UnixListener) -> Self {
        Self { socket: Socket::Unix(socket, None), secret: None }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes a socket that nobody listens at.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(found) if !found.file_type().is_socket() => return Err(io::ErrorKind::AlreadyExists.into()),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(_) => fs::remove_file(path),
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address =
            |socket: &TcpListener| socket.local_addr().map_or_else(|_| "?".into(), |at| at.to_string());
        match &self.socket {
            Socket::Tcp(socket) => write!(f, "http://{}", address(socket)),
            Socket::Tls(socket, _) => write!(f, "https://{}", address(socket)),
            Socket::Unix(_, Some(file)) => write!(f, "unix:{}", file.0.display()),
            Socket::Unix(_, None) => f.write_str("an inherited Unix socket"),
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({self})")
    }
}

/// A certificate or a key that a host cannot serve with.
#[derive(Debug, thiserror::Error)]
#[error("the {what} cannot be used")]
#[non_exhaustive]
pub struct BadTls {
    /// Which of them.
    pub what: &'static str,
    /// What is wrong with it.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl BadTls {
    fn new(what: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what, source: source.into() }
    }
}

/// What a host shows to its callers.
#[derive(Clone)]
pub struct ServerTls {
    acceptor: TlsAcceptor,
}

/// What a host shows to its callers, and asks of them.
#[derive(Clone)]
pub struct MutualTls(ServerTls);

impl ServerTls {
    /// Shows `certificate` (PEM, with those that lead to its root), whose key is `key` (PEM).
    ///
    /// # Errors
    /// They cannot be read, or do not fit each other.
    pub fn new(certificate: &[u8], key: &[u8]) -> Result<Self, BadTls> {
        Self::build(certificate, key, None)
    }

    fn build(certificate: &[u8], key: &[u8], roots: Option<&[u8]>) -> Result<Self, BadTls> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|source| BadTls::new("TLS provider", source))?;
        let builder = match roots {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let mut store = RootCertStore::empty();
                for root in certificates("client root certificate", roots)? {
                    store.add(root).map_err(|source| BadTls::new("client root certificate", source))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
                    .build()
                    .map_err(|source| BadTls::new("client root certificate", source))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates("certificate", certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| BadTls::new("key", source))?;
        let config =
            builder.with_single_cert(chain, key).map_err(|source| BadTls::new("certificate", source))?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}

impl MutualTls {
    /// As [`ServerTls::new`], and lets in whoever has a certificate that is signed with one of `roots` (PEM), and nobody
    /// else. Its name does not matter.
    ///
    /// # Errors
    /// As `ServerTls::new`; or there is no certificate in `roots`, or one that cannot be used.
    pub fn new(certificate: &[u8], key: &[u8], roots: &[u8]) -> Result<Self, BadTls> {
        Ok(Self(ServerTls::build(certificate, key, Some(roots))?))
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(BadTls::new(what, "there is none in the PEM text")),
        Err(source) => Err(BadTls::new(what, source)),
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl fmt::Debug for MutualTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MutualTls").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_its_owners_and_goes_with_the_listener() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("host.sock");
        let first = Listener::unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Listener::unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists());

        // One that a killed process left.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::unix(&path).unwrap());

        fs::write(&path, "precious").unwrap();
        assert_eq!(Listener::unix(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn certificates_that_are_none_are_refused() {
        assert_eq!(ServerTls::new(b"", b"").unwrap_err().what, "certificate");
        assert_eq!(MutualTls::new(b"", b"", b"x").unwrap_err().what, "client root certificate");
    }
}

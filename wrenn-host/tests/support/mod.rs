//! A host of one's own, certificates, and requests as they are on the wire.

use std::path::PathBuf;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wrenn_core::{Host, ShutdownPolicy};
use wrenn_host::HostService;

/// A host in a directory of its own, which boots nothing.
pub(crate) struct Fixture {
    pub(crate) home: TempDir,
    pub(crate) host: Host,
}

impl Fixture {
    /// Nothing, said so, where this process may not open one.
    pub(crate) async fn open() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: opening a host makes a table of the firewall, which needs root");
            return None;
        }
        let home = TempDir::new().unwrap();
        Some(Self { host: Self::open_in(&home).await, home })
    }

    async fn open_in(home: &TempDir) -> Host {
        // Never started: every test ends before a guest would.
        let never = "/bin/false";
        let builder = Host::builder().data_dir(home.path().join("data")).run_dir(home.path().join("run"));
        builder.monitor(never).pager(never).ready_slots(0).open().await.unwrap()
    }

    /// The same host, opened by a later program.
    pub(crate) async fn open_again(self) -> Self {
        let Self { home, host } = self;
        host.close().await.unwrap();
        Self { host: Self::open_in(&home).await, home }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.host.data_dir().to_owned()
    }

    pub(crate) async fn service(&self, name: &str) -> HostService {
        HostService::new(self.host.clone(), name).await.unwrap()
    }

    /// Ends a service, and waits until its listeners are gone.
    pub(crate) async fn close(&self, service: HostService) {
        let failures = service.shutdown(ShutdownPolicy::DestroyAll, Duration::from_secs(10)).await;
        assert!(failures.is_empty(), "{failures:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whoever signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `name`, and its key.
    pub(crate) fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Sends a request as it is, and reads the head and the beginning of its answer.
pub(crate) async fn raw(port: u16, request: String) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    // The connection stays open: what comes at once is all.
    while let Ok(Ok(length @ 1..)) =
        tokio::time::timeout(Duration::from_millis(700), socket.read(&mut piece)).await
    {
        answer.extend_from_slice(&piece[..length]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

//! Real hosts; they boot nothing, as guests need a machine that can run them.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wrenn_core::{Host, ShutdownPolicy};
use wrenn_host::{HostService, Listener};

use super::{TestServer, until};

/// A host that is served at a Unix socket, in a directory of its own.
pub(crate) struct TestHost {
    name: &'static str,
    pub(crate) home: TempDir,
    pub(crate) served: Option<Served>,
}

pub(crate) struct Served {
    host: Host,
    pub(crate) service: HostService,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl TestHost {
    /// `None`, said so, where this process may not open one.
    pub(crate) async fn start(name: &'static str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: opening a host makes a table of the firewall, which needs root");
            return None;
        }
        let home = TempDir::new().unwrap();
        let mut host = Self { name, home, served: None };
        host.serve().await;
        Some(host)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home.path().join("host.sock")
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// A server that has this host, and has heard from it.
    pub(crate) async fn server(&self) -> TestServer {
        let host = format!("{}={}", self.name, self.endpoint());
        let server = TestServer::start_with(|settings| settings.hosts = Some(vec![host])).await;
        until(&server, &format!("SELECT up FROM hosts WHERE name = '{}'", self.name), "t").await;
        server
    }

    pub(crate) async fn serve(&mut self) {
        let never = "/bin/false";
        let (data, run) = (self.home.path().join("data"), self.home.path().join("run"));
        let builder = Host::builder().data_dir(data).run_dir(run).monitor(never).pager(never).ready_slots(0);
        let host = builder.open().await.unwrap();
        let service = HostService::new(host.clone(), self.name).await.unwrap();
        let listener = Listener::unix(self.socket()).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn({
            let service = service.clone();
            async move { service.serve(listener, async { drop(stopped.await) }).await }
        });
        self.served = Some(Served { host, service, stop, serving });
    }

    /// Ends the host agent; its data stay.
    pub(crate) async fn stop(&mut self) {
        let Served { host, service, stop, serving } = self.served.take().unwrap();
        stop.send(()).unwrap();
        let failures = service.shutdown(ShutdownPolicy::DestroyAll, Duration::from_secs(10)).await;
        assert!(failures.is_empty(), "{failures:?}");
        serving.await.unwrap();
        host.close().await.unwrap();
    }
}

//! The pieces of a server's program: what its commands are told, and what they do.
//!
//! `wrenn-server` is made of these, and so can any other program's commands be.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wrenn_core::{Host, HostBuilder, ShutdownPolicy};
use wrenn_host::{HostSecret, HostService, Listener, MutualTls, ServerTls};

use crate::config::{Config, ConfigError, Settings};
use crate::hosts::{Announcer, is_host_name};
use crate::server::{Server, ServerError};

/// How long a host's sandboxes have to come to the state that they are to be left in.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(300);

/// What becomes of a host's running sandboxes when its program is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AtEnd {
    /// They run on. The next start finds them.
    Leave,
    /// They are paused to disk.
    Pause,
    /// They are removed.
    Destroy,
}

impl AtEnd {
    fn policy(self) -> ShutdownPolicy {
        match self {
            Self::Leave => ShutdownPolicy::LeaveRunning,
            Self::Pause => ShutdownPolicy::PauseAll,
            Self::Destroy => ShutdownPolicy::DestroyAll,
        }
    }
}

/// Where a host keeps its sandboxes, and what becomes of them.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Host")]
pub struct HostPlace {
    /// Where images, snapshots and sandboxes are kept [/var/lib/wrenn].
    #[arg(long, env = "WRENN_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// What becomes of running sandboxes at the end.
    #[arg(long, env = "WRENN_AT_END", value_enum, default_value = "leave")]
    pub at_end: AtEnd,
}

impl HostPlace {
    /// Opens the host of that place, as it is described otherwise, and offers it.
    async fn open(&self, mut host: HostBuilder, name: &str) -> Result<(Host, HostService), ServerError> {
        if !is_host_name(name) {
            let reason = "a host's name is of lower-case letters, digits and dashes".to_owned();
            return Err(ConfigError::Invalid { name: "name", reason }.into());
        }
        if let Some(data) = &self.data {
            host = host.data_dir(data);
        }
        let host = host.open().await.map_err(ServerError::host)?;
        let service = HostService::new(host.clone(), name).await.map_err(ServerError::host)?;
        Ok((host, service))
    }

    /// Ends a host that was offered.
    async fn close(&self, host: Host, service: HostService) -> Result<(), ServerError> {
        for failure in service.shutdown(self.at_end.policy(), SHUTDOWN_LIMIT).await {
            tracing::error!(sandbox = %failure.sandbox, error = %failure.error, "a sandbox is not as it was to be left");
        }
        host.close().await.map_err(ServerError::host)
    }
}

/// What the server is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Serve {
    /// All settings.
    #[command(flatten)]
    pub settings: Settings,
    /// Be a host as well, of that name, in this process.
    #[arg(long, env = "WRENN_LOCAL_HOST", value_name = "NAME")]
    pub local_host: Option<String>,
    /// A Unix socket at which that host is served besides, for other programs of this user.
    #[arg(long, env = "WRENN_LOCAL_HOST_SOCKET", value_name = "PATH", requires = "local_host")]
    pub local_host_socket: Option<PathBuf>,
    /// That host's place.
    #[command(flatten)]
    pub place: HostPlace,
}

impl Serve {
    /// Serves until `stop` is ready; `host` describes the one in this process, if there is to be one.
    ///
    /// # Errors
    /// The settings are not right, or the database, the host or the address cannot be used.
    pub async fn run(self, host: HostBuilder, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        let config = self.settings.resolve()?;
        let listener = listen(config.listen).await?;
        let Some(name) = self.local_host else {
            return Server::open(config).await?.serve(listener, stop).await;
        };
        let (host, service) = self.place.open(host, &name).await?;
        let socket = self.local_host_socket.as_deref();
        let served = serve_with_host(config, listener, (name, &service), socket, stop).await;
        let closed = self.place.close(host, service).await;
        served.and(closed)
    }
}

/// Serves the API, and the host in this process at a socket of its own, if it is to have one.
async fn serve_with_host(
    config: Config,
    listener: TcpListener,
    (name, service): (String, &HostService),
    socket: Option<&Path>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    // The host is open, so nobody else has it, or is served at its socket.
    let beside = socket.map(unix).transpose()?;
    let server = Server::open_with(config, [(name, service.client())]).await?;
    let ended = CancellationToken::new();
    let api = async {
        let served = server.serve(listener, stop).await;
        ended.cancel();
        served
    };
    let beside = async {
        if let Some(beside) = beside {
            service.serve(beside, ended.cancelled()).await;
        }
    };
    tokio::join!(api, beside).0
}

fn unix(path: &Path) -> Result<Listener, ServerError> {
    Listener::unix(path).map_err(|source| ServerError::Listen { place: path.display().to_string(), source })
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServerError::Listen { place: address.to_string(), source })
}

/// What a host agent is told.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeHost {
    /// The host's own name, which its tokens are for.
    #[arg(env = "WRENN_HOST_NAME")]
    pub name: String,
    /// The address to serve at, for control planes that show a token or a certificate.
    #[arg(long, env = "WRENN_HOST_LISTEN", value_name = "ADDRESS", required_unless_present = "unix")]
    pub listen: Option<SocketAddr>,
    /// A Unix socket to serve at, for this user alone.
    #[arg(long, env = "WRENN_HOST_UNIX", value_name = "PATH", conflicts_with = "listen")]
    pub unix: Option<PathBuf>,
    /// The secret that control planes sign tokens with, 32 bytes or more. Other users of the machine see flags: give
    /// it by environment.
    #[arg(long, env = "WRENN_HOST_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub host_secret: Option<SecretString>,
    /// The host's certificate (PEM), for TLS.
    #[arg(long, env = "WRENN_HOST_CERTIFICATE", value_name = "FILE", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, env = "WRENN_HOST_KEY", value_name = "FILE", requires = "certificate")]
    pub key: Option<PathBuf>,
    /// In place of the secret: the certificates (PEM) that control planes' certificates are signed with.
    #[arg(long, env = "WRENN_HOST_CLIENT_CA", value_name = "FILE", requires = "certificate")]
    pub client_ca: Option<PathBuf>,
    /// A control plane to register at, as http://HOST:PORT or https://HOST, again and again; its certificate is to be one
    /// that this machine trusts. It takes the secret.
    #[arg(long, env = "WRENN_HOST_REGISTER", value_name = "URL", requires = "advertise")]
    pub register: Option<String>,
    /// Where control planes reach this host, as http://HOST:PORT, https://HOST:PORT or unix:/PATH.
    #[arg(long, env = "WRENN_HOST_ADVERTISE", value_name = "ENDPOINT", requires = "register")]
    pub advertise: Option<String>,
    /// The host's place.
    #[command(flatten)]
    pub place: HostPlace,
}

impl ServeHost {
    /// Serves a host until `stop` is ready.
    ///
    /// # Errors
    /// The settings are not right, or the host or the address cannot be used.
    pub async fn run(self, host: HostBuilder, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        let announcer = self.announcer()?;
        let listener = self.listener().await?;
        let (host, service) = self.place.open(host, &self.name).await?;
        tracing::info!(host = self.name, "serving a host");
        let announcing = announcer.map(|announcer| AbortOnDropHandle::new(tokio::spawn(announcer.run())));
        service.serve(listener, stop).await;
        drop(announcing);
        self.place.close(host, service).await
    }

    /// The secret; where there is none, `how` to give it.
    fn secret(&self, how: &'static str) -> Result<HostSecret, ConfigError> {
        let secret = self.host_secret.as_ref();
        let secret = secret.ok_or(ConfigError::Missing { name: "host_secret", how })?;
        let secret = HostSecret::new(secret.expose_secret());
        secret.map_err(|error| ConfigError::Invalid { name: "host_secret", reason: error.to_string() })
    }

    /// What registers this host, if anything is to.
    fn announcer(&self) -> Result<Option<Announcer>, ConfigError> {
        let Some(control_plane) = &self.register else { return Ok(None) };
        let how = "give --advertise, where control planes reach this host";
        let endpoint = self.advertise.as_ref().ok_or(ConfigError::Missing { name: "advertise", how })?;
        let secret =
            self.secret("give WRENN_HOST_SECRET: a host that registers itself shows who it is by it")?;
        Announcer::new(control_plane, &self.name, endpoint, secret).map(Some)
    }

    async fn listener(&self) -> Result<Listener, ServerError> {
        let invalid = |name, reason: String| ServerError::from(ConfigError::Invalid { name, reason });
        if let Some(path) = &self.unix {
            return unix(path);
        }
        let address =
            self.listen.ok_or(ConfigError::Missing { name: "listen", how: "give --listen or --unix" })?;
        let secret = || self.secret("give WRENN_HOST_SECRET, or --client-ca");
        let tls = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        match (tls, &self.client_ca) {
            (Some((certificate, key)), Some(roots)) => {
                let tls = MutualTls::new(&certificate, &key, &read(roots)?);
                let tls = tls.map_err(|error| invalid("certificate", error.to_string()))?;
                Ok(Listener::mutual_tls(listen(address).await?, tls))
            }
            (Some((certificate, key)), None) => {
                let tls = ServerTls::new(&certificate, &key);
                let tls = tls.map_err(|error| invalid("certificate", error.to_string()))?;
                let secret = secret()?;
                Ok(Listener::tls(listen(address).await?, tls, secret))
            }
            (None, _) => {
                let secret = secret()?;
                Ok(Listener::tcp(listen(address).await?, secret))
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ServerError> {
    std::fs::read(path).map_err(|source| ConfigError::ReadFile { path: path.to_owned(), source }.into())
}

/// Who an account is made for.
#[derive(Debug, Clone, clap::Args)]
pub struct AddUser {
    /// All settings; of them the database's matters here.
    #[command(flatten)]
    pub settings: Settings,
    /// The user's address.
    pub email: String,
    /// The user's name.
    #[arg(long, default_value = "")]
    pub name: String,
    /// The user sees and drains hosts.
    #[arg(long)]
    pub operator: bool,
    /// The password. Other users of the machine see flags: give it by environment.
    #[arg(long, env = "WRENN_PASSWORD", hide_env_values = true)]
    pub password: SecretString,
}

impl AddUser {
    /// Makes the account; the user's id.
    ///
    /// # Errors
    /// As [`Server::create_user`]; or the settings are not right, or the database cannot be used.
    pub async fn run(mut self) -> Result<String, ServerError> {
        // Nothing is signed here, so no secret is asked for.
        self.settings.dev = Some(true);
        let server = Server::open(self.settings.resolve()?).await?;
        let user = server.create_user(&self.email, &self.name, &self.password, self.operator).await?;
        Ok(user.to_string())
    }
}

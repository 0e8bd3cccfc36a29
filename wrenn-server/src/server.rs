//! A server: opened with a configuration, served until it is told to stop.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use axum::Router;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use wrenn_host::HostClient;

use crate::app::{App, Parts};
use crate::auth::{AccessTokens, Limits, Passwords};
use crate::config::{Config, ConfigError};
use crate::db::{self, DatabaseError};
use crate::e2b::{E2b, keep_appointments};
use crate::hosts::{Hosts, IN_PROCESS, attend_to_all, is_host_name};
use crate::sandboxes::Agents;
use crate::{api, http};

/// How often what is over is forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(300);

/// Why a server could not be opened, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The settings do not make a configuration.
    #[error("the configuration is not right")]
    Config(#[from] ConfigError),
    /// The database cannot be used.
    #[error("the database cannot be used")]
    Database(#[from] DatabaseError),
    /// The host in this process cannot be opened or closed.
    #[error("the host in this process cannot be used")]
    Host(#[source] Box<wrenn_core::Error>),
    /// Passwords cannot be hashed on this machine.
    #[error("passwords cannot be hashed: {reason}")]
    Passwords {
        /// What is in the way.
        reason: String,
    },
    /// An account could not be made.
    #[error("the account could not be made: {reason}")]
    Account {
        /// What is in the way.
        reason: String,
    },
    /// The address has an account already, which stays as it is.
    #[error("the address has an account already")]
    AddressTaken,
    /// The listener or the address that it is for does not work.
    #[error("nothing can be served at {place}")]
    Listen {
        /// The address.
        place: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl ServerError {
    /// A host in this process failed.
    pub(crate) fn host(source: wrenn_core::Error) -> Self {
        Self::Host(Box::new(source))
    }
}

/// A control plane: its database is migrated and its routes are ready to be served.
pub struct Server {
    app: App,
    /// What goes on beside the requests, until the server is dropped.
    background: [AbortOnDropHandle<()>; 3],
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("config", &self.app.config).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens a server: connects to PostgreSQL and brings its schema up to date.
    ///
    /// # Errors
    /// PostgreSQL cannot be used, or its schema is not one that this server can bring up to date. Whatever was
    /// migrated before the error stays migrated, and the next start goes on from there.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a database that is migrated in part, which the next start completes.
    pub async fn open(config: Config) -> Result<Self, ServerError> {
        Self::open_with(config, []).await
    }

    /// As [`open`](Self::open), with hosts that live in this process or are reached in a way of their own, each with its
    /// name. Another control plane on the same database does not reach them, and leaves them to this one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    ///
    /// # Cancel safety
    /// As [`open`](Self::open).
    pub async fn open_with(
        config: Config,
        hosts: impl IntoIterator<Item = (String, HostClient)>,
    ) -> Result<Self, ServerError> {
        let in_process: HashMap<_, _> = hosts.into_iter().collect();
        if let Some(name) = in_process.keys().find(|name| !is_host_name(name)) {
            let reason = format!("{name:?} is no host's name");
            return Err(ConfigError::Invalid { name: "hosts", reason }.into());
        }
        let hosts = Hosts::new(config.host_secret.as_ref(), config.host_ca.as_deref(), in_process)?;
        let db = db::open(&config).await?;
        let passwords =
            Passwords::new().map_err(|error| ServerError::Passwords { reason: error.to_string() })?;
        let app = App::new(Parts {
            access_tokens: AccessTokens::new(&config.jwt_secret, config.access_token_life),
            limits: Limits::new(config.auth_attempts_per_minute),
            metrics: recorder(),
            agents: Agents::default(),
            e2b: E2b::new(&config.jwt_secret),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            hosts,
            passwords,
            db,
            config,
        });
        register(&app).await?;
        let background = [
            tokio::spawn(tidy(app.clone())),
            tokio::spawn(attend_to_all(app.clone())),
            tokio::spawn(keep_appointments(app.clone())),
        ];
        Ok(Self { app, background: background.map(AbortOnDropHandle::new) })
    }

    /// The routes, for a program that serves them itself, perhaps beside its own.
    pub fn router(&self) -> Router {
        api::router(self.app.clone())
    }

    /// Makes a user with a team of their own, whether or not sign-up is open; the user's id.
    ///
    /// # Errors
    /// The address has an account, which stays as it is; address, name or password are not fit for one; or the database
    /// cannot be used.
    pub async fn create_user(
        &self,
        email: &str,
        name: &str,
        password: &secrecy::SecretString,
        operator: bool,
    ) -> Result<uuid::Uuid, ServerError> {
        let failed = |error: api::Error| ServerError::Account { reason: error.message };
        let account = api::checked_account(email, name, password).map_err(failed)?;
        let hash = self.app.passwords.hash(password.clone()).await.map_err(|error| failed(error.into()))?;
        let made = db::users::create(&self.app.db, &account.email, &account.name, &hash, operator).await;
        let (user, _) = made.map_err(|error| failed(error.into()))?.ok_or(ServerError::AddressTaken)?;
        Ok(user)
    }

    /// Serves until `stop` is ready, then lets requests that are under way end for as long as the configuration says.
    ///
    /// # Errors
    /// The listener is of no use. A connection that fails is only logged.
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), ServerError> {
        let address = listener
            .local_addr()
            .map_err(|source| ServerError::Listen { place: "the given listener".to_owned(), source })?;
        tracing::info!(%address, "serving");
        let grace = self.app.config.shutdown_grace;
        let stopping = self.app.stopping.clone();
        let stop = async move {
            stop.await;
            stopping.cancel();
        };
        http::serve(listener, self.router(), &self.app.config, stop).await;
        // What was begun with sandboxes is brought to its end, though its clients are gone.
        self.app.tasks.close();
        if tokio::time::timeout(grace, self.app.tasks.wait()).await.is_err() {
            tracing::warn!(
                "operations were under way for longer than the grace period; hosts go on with them"
            );
        }
        drop(self.background);
        self.app.db.close().await;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Enters the hosts that the configuration names, and those in this process.
async fn register(app: &App) -> Result<(), ServerError> {
    let failed = |source| DatabaseError::Query { what: "registering hosts", source };
    for (name, endpoint) in &app.config.hosts {
        app.hosts
            .client(name, endpoint)
            .map_err(|error| ConfigError::Invalid { name: "hosts", reason: format!("{name}: {error}") })?;
        db::hosts::register(&app.db, name, endpoint).await.map_err(failed)?;
    }
    for name in app.hosts.in_process() {
        db::hosts::register(&app.db, name, IN_PROCESS).await.map_err(failed)?;
    }
    Ok(())
}

/// The recorder of this process's metrics: a program that has one already keeps it.
fn recorder() -> Option<PrometheusHandle> {
    static HANDLE: std::sync::OnceLock<Option<PrometheusHandle>> = std::sync::OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().ok()).clone()
}

/// Forgets what is over, now and then.
async fn tidy(app: App) {
    let mut ticks = tokio::time::interval(TIDY_EVERY);
    loop {
        ticks.tick().await;
        app.limits.forget_old();
        if let Some(metrics) = &app.metrics {
            metrics.run_upkeep();
        }
        if let Err(error) = forget_old(&app).await {
            tracing::warn!(%error, "what is over could not be forgotten");
        }
    }
}

async fn forget_old(app: &App) -> sqlx::Result<()> {
    db::sessions::forget_old(&app.db).await?;
    db::idempotency::forget_old(&app.db).await?;
    db::sandboxes::forget_old(&app.db).await?;
    Ok(())
}

//! The state, in PostgreSQL: the connection, the migrations, and one module per table with its queries.
//!
//! Every query is checked against the migrated schema as it is compiled, by way of the committed `.sqlx`
//! (`scripts/sqlx-prepare` writes it anew).

pub(crate) mod audit;
pub(crate) mod e2b;
pub(crate) mod hosts;
pub(crate) mod idempotency;
pub(crate) mod invitations;
pub(crate) mod keys;
pub(crate) mod sandboxes;
pub(crate) mod sessions;
pub(crate) mod snapshots;
pub(crate) mod teams;
pub(crate) mod users;

use std::time::Duration;

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::config::Config;

/// How long a request waits for a connection before it is told that the database cannot be reached.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// The URL is none of PostgreSQL's.
    #[error("the database's URL cannot be read")]
    Url,
    /// Nothing answers, or it refuses the user or knows no such database.
    #[error("PostgreSQL cannot be used at {place}")]
    Connect {
        /// Host, port and database, without the password.
        place: String,
        /// What was said.
        #[source]
        source: sqlx::Error,
    },
    /// A query failed.
    #[error("{what} failed")]
    Query {
        /// What it was for.
        what: &'static str,
        /// What was said.
        #[source]
        source: sqlx::Error,
    },
    /// A migration failed, or the database was migrated by a newer server.
    #[error("the database's schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

/// Connects, and brings the schema up to date under an advisory lock, so that servers may start at the same time.
pub(crate) async fn open(config: &Config) -> Result<PgPool, DatabaseError> {
    let options: PgConnectOptions =
        config.database_url.expose_secret().parse().map_err(|_| DatabaseError::Url)?;
    let place = format!(
        "{}:{}/{}",
        options.get_socket().map_or_else(|| options.get_host().into(), |socket| socket.to_string_lossy()),
        options.get_port(),
        options.get_database().unwrap_or_default()
    );
    // No statement may hold a connection, or a lock, for longer than any request lasts.
    let options = options
        .application_name("wrenn-server")
        .options([("statement_timeout", "30s"), ("idle_in_transaction_session_timeout", "30s")]);
    let pool = PgPoolOptions::new()
        .max_connections(config.database_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options)
        .await
        .map_err(|source| DatabaseError::Connect { place, source })?;
    MIGRATIONS.run(&pool).await?;
    Ok(pool)
}

/// Whether the error says that PostgreSQL cannot be reached just now, rather than that a query is wrong.
pub(crate) fn is_unreachable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_) => {
            true
        }
        // Shutting down, starting up, out of connections, closed to connections, or the connection broke.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            code.starts_with("57P") || code.starts_with("08") || matches!(code.as_ref(), "53300" | "55000")
        }),
        _ => false,
    }
}

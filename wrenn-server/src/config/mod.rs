//! What the server is told: by flags, the environment, `.env` and a file, in that order of weight.
//!
//! [`Settings`] is the one table of all settings, each optional; [`Settings::resolve`] fills in the defaults, refuses what
//! cannot work and yields a [`Config`]. Secrets are [`SecretString`]s, whose `Debug` says nothing.

mod file;
mod jwt_secret;
mod settings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

pub use self::jwt_secret::WeakSecret;
pub use self::settings::{Settings, SignUp};

/// Why the settings do not make a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The settings file could not be read.
    #[error("the settings file {path:?} could not be read")]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The settings file is not TOML, or has a key that is no setting. Its text is not shown: it may hold secrets.
    #[error("the settings file {path:?} is not right: {reason}")]
    ParseFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and in which line.
        reason: String,
    },
    /// A `.env` file could not be read, or a line of it is no `NAME=value`. The line is not shown: it may hold secrets.
    #[error("the file .env is not right: {reason}")]
    DotEnv {
        /// What is wrong.
        reason: String,
    },
    /// A setting that has no default is missing.
    #[error("{name} is not set: {how}")]
    Missing {
        /// The setting.
        name: &'static str,
        /// How to set it.
        how: &'static str,
    },
    /// A setting has a value that it cannot have.
    #[error("{name} cannot be that: {reason}")]
    Invalid {
        /// The setting.
        name: &'static str,
        /// What is wrong with its value, which is not shown.
        reason: String,
    },
    /// The secret that signs access tokens can be guessed.
    #[error("the JWT secret is refused outside of development (--dev)")]
    WeakJwtSecret(#[from] WeakSecret),
}

/// Everything that a server needs to know, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address that HTTP is served at.
    pub listen: SocketAddr,
    /// Where PostgreSQL is, with the password.
    pub database_url: SecretString,
    /// The most connections to PostgreSQL at a time.
    pub database_connections: u32,
    /// The secret that signs access tokens.
    pub jwt_secret: SecretString,
    /// Whether this is a developer's own machine: weak secrets are let through.
    pub dev: bool,
    /// Hosts to register at the start, each with its endpoint.
    pub hosts: Vec<(String, String)>,
    /// The secret that hosts know this server by.
    pub host_secret: Option<SecretString>,
    /// The certificates that hosts are trusted by over TLS.
    pub host_ca: Option<PathBuf>,
    /// Previews are served for names below this one.
    pub domain: String,
    /// The image that E2B's clients get where they name no template.
    pub e2b_base: String,
    /// Who may sign up.
    pub sign_up: SignUp,
    /// How long an access token is good for.
    pub access_token_life: Duration,
    /// How long a session lives that is not refreshed.
    pub refresh_token_life: Duration,
    /// Web pages of these origins may call the API. Empty: of none but its own.
    pub cors_origins: Vec<String>,
    /// The largest JSON body that is read.
    pub body_limit: usize,
    /// The longest that an ordinary request may take.
    pub request_timeout: Duration,
    /// The longest that a client may take to send its request's headers.
    pub header_timeout: Duration,
    /// The most connections at a time.
    pub connections: usize,
    /// Sign-ups and log-ins that one address may try in a minute.
    pub auth_attempts_per_minute: u32,
    /// How many proxies in front of the server write `X-Forwarded-For`.
    pub trusted_proxies: usize,
    /// How long requests may go on once the server was told to stop.
    pub shutdown_grace: Duration,
}

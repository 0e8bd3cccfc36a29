//! The table of settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{Config, ConfigError, file, jwt_secret};

/// Who may make an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SignUp {
    /// Whoever reaches the server.
    Open,
    /// Nobody: an operator makes accounts with `wrenn-server user`.
    Closed,
}

/// All settings, each of which a flag, a variable of the environment or a key of the settings file gives.
///
/// The key in the file is the flag's name with `_` for `-`.
// Defaults stand in brackets, as command lines' helps have them.
#[allow(rustdoc::broken_intra_doc_links)]
#[derive(Debug, Clone, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// A TOML file with settings; flags and the environment win over it.
    #[arg(long, env = "WRENN_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// The address that HTTP is served at [127.0.0.1:8080].
    #[arg(long, env = "WRENN_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// PostgreSQL, as postgres://USER:PASSWORD@HOST/DATABASE; required.
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<SecretString>,
    /// The most connections to PostgreSQL at a time [16].
    #[arg(long, env = "WRENN_DATABASE_CONNECTIONS", value_name = "N")]
    pub database_connections: Option<u32>,
    /// The secret that signs access tokens, 32 bytes or more; required but for --dev. Other users of the machine see
    /// flags: give it by environment or file.
    #[arg(long, env = "WRENN_JWT_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub jwt_secret: Option<SecretString>,
    /// A file that holds the JWT secret, in place of the setting itself.
    #[arg(long, env = "WRENN_JWT_SECRET_FILE", value_name = "FILE")]
    pub jwt_secret_file: Option<PathBuf>,
    /// For a developer's own machine: a weak JWT secret is let through, and a missing one made up.
    #[arg(long, env = "WRENN_DEV", num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub dev: Option<bool>,
    /// Hosts to register, as NAME=ENDPOINT, separated by commas; an endpoint is http://HOST:PORT, https://HOST:PORT or
    /// unix:/PATH [none].
    #[arg(long, env = "WRENN_HOSTS", value_name = "NAME=ENDPOINT", value_delimiter = ',')]
    pub hosts: Option<Vec<String>>,
    /// The secret that hosts know this server by, 32 bytes or more; needed for hosts that are reached over a network.
    #[arg(long, env = "WRENN_HOST_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub host_secret: Option<SecretString>,
    /// The certificates (PEM) that hosts at https:// are trusted by.
    #[arg(long, env = "WRENN_HOST_CA", value_name = "FILE")]
    pub host_ca: Option<PathBuf>,
    /// Previews are served as PORT-SANDBOX.DOMAIN [localhost].
    #[arg(long, env = "WRENN_DOMAIN", value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// The image or snapshot that E2B's clients get who name no template, or E2B's own, `base` [debian].
    #[arg(long, env = "WRENN_E2B_BASE", value_name = "IMAGE")]
    pub e2b_base: Option<String>,
    /// Who may sign up [open].
    #[arg(long, env = "WRENN_SIGN_UP", value_name = "open|closed", value_enum)]
    pub sign_up: Option<SignUp>,
    /// How long an access token is good for, in seconds [900].
    #[arg(long, env = "WRENN_ACCESS_TOKEN_SECONDS", value_name = "SECONDS")]
    pub access_token_seconds: Option<u32>,
    /// How long a session lives that is not refreshed, in days [30].
    #[arg(long, env = "WRENN_REFRESH_TOKEN_DAYS", value_name = "DAYS")]
    pub refresh_token_days: Option<u32>,
    /// Origins whose pages may call the API, separated by commas; `*` for any [none].
    #[arg(long, env = "WRENN_CORS_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    pub cors_origins: Option<Vec<String>>,
    /// The largest JSON body that is read, in bytes [1048576].
    #[arg(long, env = "WRENN_BODY_LIMIT", value_name = "BYTES")]
    pub body_limit: Option<usize>,
    /// The longest that an ordinary request may take, in seconds [60].
    #[arg(long, env = "WRENN_REQUEST_TIMEOUT", value_name = "SECONDS")]
    pub request_timeout: Option<u32>,
    /// The longest that a client may take to send its request's headers, in seconds [10].
    #[arg(long, env = "WRENN_HEADER_TIMEOUT", value_name = "SECONDS")]
    pub header_timeout: Option<u32>,
    /// The most connections at a time [4096].
    #[arg(long, env = "WRENN_CONNECTIONS", value_name = "N")]
    pub connections: Option<usize>,
    /// Sign-ups and log-ins that one address may try in a minute [20].
    #[arg(long, env = "WRENN_AUTH_ATTEMPTS_PER_MINUTE", value_name = "N")]
    pub auth_attempts_per_minute: Option<u32>,
    /// How many proxies in front of the server write X-Forwarded-For [0].
    #[arg(long, env = "WRENN_TRUSTED_PROXIES", value_name = "N")]
    pub trusted_proxies: Option<usize>,
    /// How long requests may go on once the server was told to stop, in seconds [30].
    #[arg(long, env = "WRENN_SHUTDOWN_GRACE", value_name = "SECONDS")]
    pub shutdown_grace: Option<u32>,
}

macro_rules! or_else {
    ($first:ident, $second:ident: $($field:ident),+ $(,)?) => {
        Settings { $($field: $first.$field.or($second.$field)),+ }
    };
}

impl Settings {
    /// These settings, and for those that are not set what `other` says.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        or_else!(self, other: config, listen, database_url, database_connections, jwt_secret, jwt_secret_file, dev, hosts, host_secret,
            host_ca, domain, e2b_base, sign_up, access_token_seconds, refresh_token_days, cors_origins, body_limit, request_timeout,
            header_timeout, connections, auth_attempts_per_minute, trusted_proxies, shutdown_grace)
    }

    /// Checks the settings and fills in what is not set, from the settings file first and then with the defaults.
    ///
    /// # Errors
    /// A file cannot be read or is not right, a setting is missing or has a value that it cannot have, or the JWT secret
    /// is weak outside of development.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let settings = match &self.config {
            Some(path) => {
                let from_file = file::read(path)?;
                self.or(from_file)
            }
            None => self,
        };
        let dev = settings.dev.unwrap_or(false);
        Ok(Config {
            listen: settings.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))),
            database_url: database_url(settings.database_url)?,
            database_connections: between(
                "database_connections",
                settings.database_connections,
                16,
                2,
                1000,
            )?,
            jwt_secret: jwt_secret::choose(settings.jwt_secret, settings.jwt_secret_file, dev)?,
            dev,
            hosts: hosts(settings.hosts)?,
            host_secret: settings.host_secret,
            host_ca: settings.host_ca,
            domain: domain(settings.domain)?,
            e2b_base: e2b_base(settings.e2b_base)?,
            sign_up: settings.sign_up.unwrap_or(SignUp::Open),
            access_token_life: seconds("access_token_seconds", settings.access_token_seconds, 900, 86_400)?,
            refresh_token_life: Duration::from_secs(
                86_400 * u64::from(between("refresh_token_days", settings.refresh_token_days, 30, 1, 3650)?),
            ),
            cors_origins: cors_origins(settings.cors_origins)?,
            body_limit: between("body_limit", settings.body_limit, 1 << 20, 1 << 10, 64 << 20)?,
            request_timeout: seconds("request_timeout", settings.request_timeout, 60, 3600)?,
            header_timeout: seconds("header_timeout", settings.header_timeout, 10, 300)?,
            connections: between("connections", settings.connections, 4096, 1, 1_000_000)?,
            auth_attempts_per_minute: between(
                "auth_attempts_per_minute",
                settings.auth_attempts_per_minute,
                20,
                1,
                1_000_000,
            )?,
            trusted_proxies: between("trusted_proxies", settings.trusted_proxies, 0, 0, 16)?,
            shutdown_grace: seconds("shutdown_grace", settings.shutdown_grace, 30, 3600)?,
        })
    }
}

fn between<N: PartialOrd + std::fmt::Display>(
    name: &'static str,
    value: Option<N>,
    default: N,
    least: N,
    most: N,
) -> Result<N, ConfigError> {
    let value = value.unwrap_or(default);
    if value < least || value > most {
        return Err(ConfigError::Invalid { name, reason: format!("it is from {least} to {most}") });
    }
    Ok(value)
}

fn seconds(name: &'static str, value: Option<u32>, default: u32, most: u32) -> Result<Duration, ConfigError> {
    Ok(Duration::from_secs(between(name, value, default, 1, most)?.into()))
}

fn database_url(given: Option<SecretString>) -> Result<SecretString, ConfigError> {
    let url = given.ok_or(ConfigError::Missing {
        name: "database_url",
        how: "give --database-url or DATABASE_URL, as postgres://USER:PASSWORD@HOST/DATABASE",
    })?;
    let text = url.expose_secret();
    // The parser itself takes whatever the scheme is.
    let postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
    if !postgres || text.parse::<sqlx::postgres::PgConnectOptions>().is_err() {
        return Err(ConfigError::Invalid {
            name: "database_url",
            reason: "it is postgres://USER:PASSWORD@HOST/DATABASE".to_owned(),
        });
    }
    Ok(url)
}

/// Reads `NAME=ENDPOINT`. Whether there can be a host at an endpoint is found out as it is registered.
fn hosts(given: Option<Vec<String>>) -> Result<Vec<(String, String)>, ConfigError> {
    let read = |host: &String| {
        let (name, endpoint) = host.split_once('=').filter(|(name, _)| crate::hosts::is_host_name(name))?;
        Some((name.to_owned(), endpoint.to_owned()))
    };
    let reason = "each is NAME=ENDPOINT, and a name is of lower-case letters, digits and dashes";
    let wrong = || ConfigError::Invalid { name: "hosts", reason: reason.to_owned() };
    given.unwrap_or_default().iter().map(|host| read(host).ok_or_else(wrong)).collect()
}

fn domain(given: Option<String>) -> Result<String, ConfigError> {
    let domain = given.unwrap_or_else(|| "localhost".to_owned()).to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if domain.len() > 200 || !domain.split('.').all(label) {
        let reason = "it is a DNS name, without a port".to_owned();
        return Err(ConfigError::Invalid { name: "domain", reason });
    }
    Ok(domain)
}

fn e2b_base(given: Option<String>) -> Result<String, ConfigError> {
    let name = given.unwrap_or_else(|| "debian".to_owned());
    match name.parse::<wrenn_base::ImageName>() {
        Ok(_) => Ok(name),
        Err(error) => Err(ConfigError::Invalid { name: "e2b_base", reason: error.to_string() }),
    }
}

fn cors_origins(given: Option<Vec<String>>) -> Result<Vec<String>, ConfigError> {
    let origins = given.unwrap_or_default();
    for origin in &origins {
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let fine = host.is_some_and(|host| {
            !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b))
        });
        if origin != "*" && !fine {
            return Err(ConfigError::Invalid {
                name: "cors_origins",
                reason:
                    "each is `*`, or http:// or https:// with a host and perhaps a port, and nothing after it"
                        .to_owned(),
            });
        }
    }
    Ok(origins)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Settings {
        Settings {
            database_url: Some("postgres://u:hunter2secret@localhost/db".into()),
            jwt_secret: Some("mJ5q0tLr8vWz2xYb7nKd4sPf9hGc3aEu".into()),
            ..Settings::default()
        }
    }

    #[test]
    fn defaults_fill_in_what_is_not_set() {
        let config = complete().resolve().unwrap();
        assert_eq!(config.listen.port(), 8080);
        assert_eq!(config.domain, "localhost");
        assert_eq!(config.sign_up, SignUp::Open);
        assert_eq!(config.access_token_life, Duration::from_secs(900));
    }

    #[test]
    fn no_secret_shows_in_what_is_logged() {
        let settings = complete();
        let shown = format!("{settings:?} {:?}", settings.clone().resolve().unwrap());
        assert!(!shown.contains("hunter2secret") && !shown.contains("mJ5q0tLr"), "{shown}");
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_name() {
        let refused = |name: &str, change: fn(&mut Settings)| {
            let mut settings = complete();
            change(&mut settings);
            let error = settings.resolve().expect_err(name).to_string();
            assert!(error.contains(name), "{name}: {error}");
        };
        refused("database_url", |s| s.database_url = None);
        refused("database_url", |s| s.database_url = Some("mysql://x".into()));
        refused("domain", |s| s.domain = Some("a..b".to_owned()));
        refused("domain", |s| s.domain = Some("localhost:80".to_owned()));
        refused("cors_origins", |s| s.cors_origins = Some(vec!["https://a.b/c".to_owned()]));
        refused("e2b_base", |s| s.e2b_base = Some("../x".to_owned()));
        refused("hosts", |s| s.hosts = Some(vec!["http://10.0.0.1:7070".to_owned()]));
        refused("connections", |s| s.connections = Some(0));
        refused("request_timeout", |s| s.request_timeout = Some(0));
        refused("JWT secret", |s| s.jwt_secret = Some("changeme".into()));
    }

    #[test]
    fn flags_win_over_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.toml");
        std::fs::write(&path, "listen = '0.0.0.0:1'\ndomain = 'example.org'\n").unwrap();
        let mut settings = complete();
        settings.config = Some(path);
        settings.listen = Some("127.0.0.1:2".parse().unwrap());
        let config = settings.resolve().unwrap();
        assert_eq!((config.listen.port(), config.domain.as_str()), (2, "example.org"));
    }
}

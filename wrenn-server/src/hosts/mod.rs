//! The hosts that this control plane knows: a client of each, and a task that attends to it.

mod announce;
mod attend;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use wrenn_host::{ClientTls, HostClient, HostSecret};

pub(crate) use self::announce::Announcer;
pub(crate) use self::attend::attend_to_all;
use crate::config::ConfigError;

/// The endpoint of a host that lives in this process.
pub(crate) const IN_PROCESS: &str = "in-process";

/// The audience of tokens by which hosts show a control plane who they are. No host has such a name, so a token for a host is
/// never one for a control plane.
pub(crate) const CONTROL_PLANE: &str = "wrenn:control-plane";

/// Whether a text may be a host's name: it is the audience of tokens, and stands in paths.
pub(crate) fn is_host_name(text: &str) -> bool {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(fine) && !text.starts_with('-') && !text.ends_with('-')
}

/// Why there is no client of a host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoClient {
    /// It lives in the process of another control plane.
    #[error("the host lives in another process")]
    Elsewhere,
    /// There is no secret to sign tokens with.
    #[error("there is no host secret (WRENN_HOST_SECRET)")]
    NoSecret,
    /// Its address or what it is to be trusted by is not right.
    #[error("its address is not right: {0}")]
    Endpoint(#[from] wrenn_host::BadEndpoint),
}

/// Makes clients of hosts, and keeps them.
pub(crate) struct Hosts {
    secret: Option<HostSecret>,
    tls: Option<ClientTls>,
    /// Those in this process, by name.
    in_process: HashMap<String, HostClient>,
    /// The others, by name, each with the endpoint that its client is for.
    clients: Mutex<HashMap<String, (String, HostClient)>>,
}

impl Hosts {
    /// With the secret that tokens for hosts are signed with, and the file of the certificates that hosts are trusted by.
    pub(crate) fn new(
        secret: Option<&secrecy::SecretString>,
        roots: Option<&Path>,
        in_process: HashMap<String, HostClient>,
    ) -> Result<Self, ConfigError> {
        let secret =
            secret.map(|secret| HostSecret::new(secrecy::ExposeSecret::expose_secret(secret))).transpose();
        let secret = secret
            .map_err(|error| ConfigError::Invalid { name: "host_secret", reason: error.to_string() })?;
        let tls = match roots {
            Some(path) => {
                let roots = std::fs::read(path)
                    .map_err(|source| ConfigError::ReadFile { path: path.to_owned(), source })?;
                let tls = ClientTls::new(&roots);
                Some(
                    tls.map_err(|error| ConfigError::Invalid { name: "host_ca", reason: error.to_string() })?,
                )
            }
            None => None,
        };
        Ok(Self { secret, tls, in_process, clients: Mutex::default() })
    }

    /// The names of the hosts in this process.
    pub(crate) fn in_process(&self) -> impl Iterator<Item = &str> {
        self.in_process.keys().map(String::as_str)
    }

    /// The host that a token shows its bearer to be, if it does.
    pub(crate) fn bearer(&self, token: &str) -> Option<String> {
        let caller = self.secret.as_ref()?.verify(CONTROL_PLANE, token).ok()?;
        is_host_name(&caller.name).then_some(caller.name)
    }

    /// A client of a host. It connects when it is used.
    pub(crate) fn client(&self, name: &str, endpoint: &str) -> Result<HostClient, NoClient> {
        if endpoint == IN_PROCESS {
            return self.in_process.get(name).cloned().ok_or(NoClient::Elsewhere);
        }
        let mut clients = self.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((known, client)) = clients.get(name)
            && known == endpoint
        {
            return Ok(client.clone());
        }
        let mut builder = HostClient::builder(endpoint)?;
        // A Unix socket is guarded by its permissions; whatever crosses a network shows a token.
        match &self.secret {
            Some(secret) => builder = builder.secret(secret.clone(), name, "control-plane"),
            None if endpoint.starts_with("unix:") => {}
            None => return Err(NoClient::NoSecret),
        }
        if let Some(tls) = &self.tls {
            builder = builder.tls(tls.clone());
        }
        let client = builder.build()?;
        clients.insert(name.to_owned(), (endpoint.to_owned(), client.clone()));
        Ok(client)
    }
}

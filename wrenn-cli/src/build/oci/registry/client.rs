//! Asking one repository of a registry, with whatever authentication it wants.
//!
//! Formats: the OCI distribution specification, and the "Token Authentication" of the CNCF's distribution registry.

use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeRef;
use oci_spec::distribution::Reference;
use oci_spec::image::Descriptor;
use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, BodyReader};

use super::super::{ImportError, blob, document};
use super::Access;

/// What is understood, which decides what a registry sends.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// So much of an answer that is no success is shown.
const LONGEST_SAID: u64 = 500;
/// How long a registry may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// One repository.
pub(super) struct Client {
    agent: Agent,
    /// `SCHEME://HOST/v2/REPOSITORY`.
    base: String,
    /// What a token is to allow.
    scope: String,
    credentials: Option<(String, String)>,
    /// The header with which the registry was content.
    authorization: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    /// Asks nothing yet.
    pub(super) fn new(reference: &Reference, access: &Access) -> Self {
        let registry = reference.resolve_registry();
        let local = is_loopback(registry);
        let plain = local || access.plain_http;
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .https_only(!plain)
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("wrenn/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE));
        // No proxy leads to this machine.
        let config = if local { config.proxy(None) } else { config };
        let scheme = if plain { "http" } else { "https" };
        Self {
            agent: config.build().new_agent(),
            base: format!("{scheme}://{registry}/v2/{}", reference.repository()),
            scope: format!("repository:{}:pull", reference.repository()),
            credentials: access.credentials.clone(),
            authorization: None,
        }
    }

    /// A manifest or a blob that is a document. Where a descriptor leads to it, it is compared with that.
    ///
    /// # Errors
    /// [`ImportError::Digest`], [`ImportError::Size`], or those of asking.
    pub(super) fn document(
        &mut self,
        kind: &str,
        name: &str,
        descriptor: Option<&Descriptor>,
    ) -> Result<Vec<u8>, ImportError> {
        let url = format!("{}/{kind}/{name}", self.base);
        let mut text = Vec::new();
        let body = self.get(&url)?.into_body().into_reader();
        body.take(document::LONGEST + 1)
            .read_to_end(&mut text)
            .map_err(|source| ImportError::Interrupted { url: url.clone(), source })?;
        if text.len() as u64 > document::LONGEST {
            return Err(document::refused(&url, "it is too long for a document"));
        }
        if let Some(descriptor) = descriptor {
            document::check_size(&url, descriptor.size(), text.len() as u64)?;
            blob::check(&url, &text, &document::descriptor_digest(descriptor)?)?;
        }
        Ok(text)
    }

    /// A blob as the registry sends it, and where it comes from.
    ///
    /// # Errors
    /// Those of asking.
    pub(super) fn blob(&mut self, digest: &str) -> Result<(String, BodyReader<'static>), ImportError> {
        let url = format!("{}/blobs/{digest}", self.base);
        let body = self.get(&url)?.into_body().into_reader();
        Ok((url, body))
    }

    /// Asks, and where the registry wants to know who asks, once more.
    fn get(&mut self, url: &str) -> Result<Response<Body>, ImportError> {
        let mut response = self.send(url)?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.authorize(url, response.headers())?;
            response = self.send(url)?;
        }
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::UNAUTHORIZED => Err(ImportError::Unauthorized { url: url.to_owned() }),
            status => Err(ImportError::Answer {
                url: url.to_owned(),
                status: status.as_u16(),
                said: said(response),
            }),
        }
    }

    fn send(&self, url: &str) -> Result<Response<Body>, ImportError> {
        let mut request = self.agent.get(url).header("Accept", MANIFESTS);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        request.call().map_err(ImportError::http(url))
    }

    /// Does what the registry wants: a token from where it says, or the user and the password.
    fn authorize(&mut self, url: &str, headers: &HeaderMap) -> Result<(), ImportError> {
        let wanted = headers.get_all("WWW-Authenticate").iter().filter_map(|value| value.to_str().ok());
        let wanted: Vec<_> =
            wanted.filter_map(|value| http_auth::parse_challenges(value).ok()).flatten().collect();
        let find =
            |scheme: &str| wanted.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme));
        self.authorization = match (find("Bearer"), &self.credentials) {
            (Some(challenge), _) => Some(format!("Bearer {}", self.token(challenge)?)),
            (None, Some(credentials)) if find("Basic").is_some() => Some(basic(credentials)),
            _ => return Err(ImportError::Unauthorized { url: url.to_owned() }),
        };
        Ok(())
    }

    /// Asks for a token. As everywhere, the user and the password go to whom the registry names, but encrypted.
    fn token(&self, challenge: &ChallengeRef<'_>) -> Result<String, ImportError> {
        let param = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        let realm = param("realm").unwrap_or_default();
        let mut request = self.agent.get(&realm).query("scope", &self.scope);
        if let Some(service) = param("service") {
            request = request.query("service", service);
        }
        if let Some(credentials) = &self.credentials {
            request = request.header("Authorization", basic(credentials));
        }
        let response = request.call().map_err(ImportError::http(&realm))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(ImportError::Unauthorized { url: realm });
            }
            status => {
                let status = status.as_u16();
                return Err(ImportError::Answer { url: realm, status, said: said(response) });
            }
        }
        let mut text = Vec::new();
        let body = response.into_body().into_reader();
        body.take(document::LONGEST)
            .read_to_end(&mut text)
            .map_err(|source| ImportError::Interrupted { url: realm.clone(), source })?;
        let token: Token = document::parse(&realm, &text)?;
        let token = token.token.or(token.access_token);
        // It goes into a header.
        let usable = |token: &String| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        token.filter(usable).ok_or_else(|| document::refused(&realm, "it sent no token"))
    }
}

fn basic((user, password): &(String, String)) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The beginning of what a server said, for people.
fn said(response: Response<Body>) -> String {
    let mut said = Vec::new();
    let _ = response.into_body().into_reader().take(LONGEST_SAID).read_to_end(&mut said);
    String::from_utf8_lossy(&said).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Whether a registry's name, perhaps with a port, is this machine.
fn is_loopback(registry: &str) -> bool {
    let port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let host = match registry.rsplit_once(':') {
        Some((host, end)) if port(end) => host,
        _ => registry,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_its_names() {
        for local in ["localhost", "localhost:5000", "127.0.0.1", "127.1.2.3:80", "[::1]:5000"] {
            assert!(is_loopback(local), "{local}");
        }
        for other in ["docker.io", "localhost.example:5000", "10.0.0.1:5000", "127.0.0.1.example", ""] {
            assert!(!is_loopback(other), "{other}");
        }
    }
}

//! A host's side of its registering: it tells a control plane where it is, again and again.
//!
//! The control plane finds out by itself how the host is, and whether it answers; what only the host knows is its address.

use std::convert::Infallible;
use std::time::Duration;

use wrenn_host::HostSecret;

use super::{CONTROL_PLANE, is_host_name};
use crate::config::ConfigError;

/// How often it is told, in case that the control plane has forgotten it.
const EVERY: Duration = Duration::from_secs(15);
/// How long to wait before it is told again where that failed.
const RETRY: Duration = Duration::from_secs(3);
/// How long telling may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a token lives that is signed for that.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// The most of a refusal that is logged, in characters.
const MOST_SHOWN: usize = 300;

/// Tells a control plane where a host is.
pub(crate) struct Announcer {
    client: reqwest::Client,
    url: reqwest::Url,
    host: String,
    endpoint: String,
    secret: HostSecret,
}

/// Why it could not be told.
#[derive(Debug, thiserror::Error)]
enum Untold {
    #[error("the control plane cannot be reached")]
    Unreachable(#[from] reqwest::Error),
    #[error("the control plane refuses: {status}: {answer}")]
    Refused { status: u16, answer: String },
}

impl Announcer {
    /// For the host of that name, which control planes reach at `endpoint`; `control_plane` is the beginning of the URLs of
    /// one of them.
    pub(crate) fn new(
        control_plane: &str,
        host: &str,
        endpoint: &str,
        secret: HostSecret,
    ) -> Result<Self, ConfigError> {
        let invalid = |name, reason: String| ConfigError::Invalid { name, reason };
        if !is_host_name(host) {
            return Err(invalid(
                "name",
                "a host's name is of lower-case letters, digits and dashes".to_owned(),
            ));
        }
        // Whether it can be one is known here, before anybody is told.
        let place = wrenn_host::HostClient::builder(endpoint);
        drop(place.map_err(|error| invalid("advertise", error.to_string()))?);
        let base = control_plane.parse::<reqwest::Url>().ok().filter(|url| {
            matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.query().is_none()
        });
        let mut url =
            base.ok_or_else(|| invalid("register", "it is http://HOST:PORT or https://HOST".to_owned()))?;
        url.set_path(&format!("{}/v1/hosts/{host}/endpoint", url.path().trim_end_matches('/')));
        let client = reqwest::Client::builder()
            .timeout(LIMIT)
            // Who is asked elsewhere would get the token.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| invalid("register", format!("there is no client for it: {error}")))?;
        Ok(Self { client, url, host: host.to_owned(), endpoint: endpoint.to_owned(), secret })
    }

    /// Tells it for as long as it is polled.
    pub(crate) async fn run(self) -> Infallible {
        let mut told = false;
        loop {
            let pause = match self.tell().await {
                Ok(()) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!(
                            host = self.host,
                            endpoint = self.endpoint,
                            "the control plane knows this host"
                        );
                    }
                    EVERY
                }
                Err(error) => {
                    told = false;
                    let cause =
                        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    tracing::warn!(host = self.host, %error, cause, "this host could not be registered yet");
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn tell(&self) -> Result<(), Untold> {
        let token = self.secret.sign(CONTROL_PLANE, &self.host, TOKEN_LIFE);
        let body = serde_json::json!({ "endpoint": self.endpoint });
        let answer = self.client.put(self.url.clone()).bearer_auth(token).json(&body).send().await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let text = answer.text().await.unwrap_or_default();
        let shown = text.chars().filter(|c| !c.is_control()).take(MOST_SHOWN).collect();
        Err(Untold::Refused { status: status.as_u16(), answer: shown })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told_is_refused_before_anybody_is() {
        let secret = || HostSecret::new([b'x'; 32]).unwrap();
        let new =
            |url: &str, host: &str, endpoint: &str| Announcer::new(url, host, endpoint, secret()).map(drop);
        assert!(new("https://wrenn.example/", "one", "http://10.0.0.5:7070").is_ok());
        for url in [
            "",
            "wrenn.example",
            "ftp://wrenn.example",
            "unix:/x",
            "http://",
            "https://me@wrenn.example",
            "http://x?y",
        ] {
            assert!(new(url, "one", "http://10.0.0.5:7070").is_err(), "{url:?}");
        }
        for (host, endpoint) in
            [("One", "http://h:1"), ("a/b", "http://h:1"), ("one", "h:1"), ("one", "http://h")]
        {
            assert!(new("http://wrenn.example", host, endpoint).is_err(), "{host:?} {endpoint:?}");
        }
    }
}

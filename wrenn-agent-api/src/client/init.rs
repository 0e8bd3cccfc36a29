//! What the host tells the agent after a boot and after each resume.

use std::collections::BTreeMap;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{AgentClient, AgentError};
use crate::AccessToken;
use crate::http::{InitRequest, Metrics};

/// The bytes of entropy that an [`Init`] brings: what the kernel's generator holds.
const ENTROPY: usize = 32;

/// What a guest is to be told. Whatever is not set stays as it is in the guest.
#[derive(Debug, Clone, Default)]
pub struct Init {
    time: Option<SystemTime>,
    entropy: Option<[u8; ENTROPY]>,
    token: Option<AccessToken>,
    env: Option<BTreeMap<String, String>>,
    user: Option<String>,
    workdir: Option<String>,
    hostname: Option<String>,
    resumed: bool,
}

impl Init {
    /// Sets the guest's clock to the host's, as it is when the call is made, and reseeds its random generator.
    ///
    /// # Panics
    /// If the operating system has no randomness to give, which no supported kernel does.
    pub fn now() -> Self {
        let mut entropy = [0; ENTROPY];
        getrandom::fill(&mut entropy).expect("the kernel's random source answers");
        Self { time: Some(SystemTime::now()), entropy: Some(entropy), ..Self::default() }
    }

    /// Says that the guest was just restored from a snapshot: the agent drops every other connection, since
    /// their other ends are gone, and the commands that wait for them go on.
    pub fn resumed(mut self) -> Self {
        self.resumed = true;
        self
    }

    /// Sets a new token; the call itself still shows the client's own. Continue with
    /// [`AgentClient::with_token`]. The first init of a guest needs none: it sets the client's own.
    pub fn token(mut self, token: AccessToken) -> Self {
        self.token = Some(token);
        self
    }

    /// Replaces the environment that every command gets.
    pub fn env(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env = Some(variables.into_iter().collect());
        self
    }

    /// Sets who runs commands and owns files where a call names nobody (at first `root`).
    pub fn default_user(mut self, name: impl Into<String>) -> Self {
        self.user = Some(name.into());
        self
    }

    /// Sets where commands run that name no directory (at first the user's home).
    pub fn default_workdir(mut self, path: impl Into<String>) -> Self {
        self.workdir = Some(path.into());
        self
    }

    /// Sets the host name.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = Some(name.into());
        self
    }

    fn into_request(self, own: &AccessToken) -> InitRequest {
        InitRequest {
            env_vars: self.env,
            access_token: Some(self.token.as_ref().unwrap_or(own).reveal().to_owned()),
            timestamp: self.time.and_then(|time| OffsetDateTime::from(time).format(&Rfc3339).ok()),
            default_user: self.user,
            default_workdir: self.workdir,
            hostname: self.hostname,
            entropy: self.entropy.map(|bytes| STANDARD.encode(bytes)),
            resumed: self.resumed.then_some(true),
        }
    }
}

impl AgentClient {
    /// Sets the guest's clock, randomness, environment and token: once after boot, once after each resume.
    ///
    /// Either all of it took effect or, on an error answer, none.
    ///
    /// # Errors
    /// [`AgentError::Unauthenticated`] if the guest already has another token.
    pub async fn init(&self, init: Init) -> Result<(), AgentError> {
        let body = serde_json::to_vec(&init.into_request(&self.token))
            .map_err(|e| AgentError::protocol("init", e.to_string()))?;
        let response = self.call("init", Method::POST, "/init", Some(body)).await?;
        self.expect_no_content("init", response).await
    }

    /// How busy the guest is and how full.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn metrics(&self) -> Result<Metrics, AgentError> {
        let response = self.call("metrics", Method::GET, "/metrics", None).await?;
        let body = self.collect("metrics", response).await?;
        serde_json::from_slice(&body).map_err(|e| AgentError::protocol("metrics", e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_body_is_as_agents_expect_it() {
        let token = AccessToken::new("t").unwrap();
        let init = Init {
            time: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500)),
            entropy: Some([0; ENTROPY]),
            ..Init::default()
        };
        let init = init.env([("A".into(), "1".into())]).resumed().hostname("h");
        let json = serde_json::to_value(init.into_request(&token)).unwrap();
        let expected = serde_json::json!({
            "envVars": {"A": "1"}, "accessToken": "t", "timestamp": "1970-01-01T00:00:01.5Z", "hostname": "h",
            "entropy": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "resumed": true,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn a_new_token_takes_the_place_of_the_clients() {
        let request = Init::default()
            .token(AccessToken::new("new").unwrap())
            .into_request(&AccessToken::new("old").unwrap());
        assert_eq!(request.access_token.as_deref(), Some("new"));
    }

    #[test]
    fn entropy_is_fresh_each_time() {
        assert_ne!(Init::now().entropy, Init::now().entropy);
    }
}

//! `POST /init`: the host's word after a boot and after each resume.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wrenn_agent_api::AccessToken;
use wrenn_agent_api::http::InitRequest;

use super::{HttpError, Routes};
use crate::machine::{Adjustment, is_hostname};
use crate::settings::{Change, is_env_pair};
use crate::users::User;

/// The largest body: an environment of a megabyte.
const MAX_BODY: usize = 1 << 20;

/// The most entropy at once, in bytes.
const MAX_ENTROPY: usize = 4096;

impl Routes {
    /// Checks everything, then adjusts the machine, then the settings: after an error these are unchanged.
    pub(super) async fn init(&self, request: Request<Incoming>, connection: u64) -> Result<(), HttpError> {
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|e| HttpError::bad_request(format!("cannot read the body: {e}")))?.to_bytes();
        // E2B's host may send no body at all.
        let body = if body.is_empty() { &b"{}"[..] } else { &body };
        let request: InitRequest = serde_json::from_slice(body)
            .map_err(|e| HttpError::bad_request(format!("the body is not what /init takes: {e}")))?;
        let resumed = request.resumed == Some(true);
        let (adjustment, change) = check(request)?;
        if change.token.is_none() && !self.settings.is_claimed() {
            return Err(HttpError::bad_request("the first /init must bring an accessToken"));
        }
        let machine = self.machine;
        let adjusted = tokio::task::spawn_blocking(move || machine.adjust(&adjustment)).await;
        adjusted
            .unwrap_or_else(|panic| Err(panic.to_string()))
            .map_err(|e| HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, e))?;
        self.settings.apply(change);
        if resumed {
            self.connections.cut_all_but(connection);
        }
        Ok(())
    }
}

fn check(request: InitRequest) -> Result<(Adjustment, Change), HttpError> {
    let bad = |message: String| HttpError::bad_request(message);
    let token = request.access_token.filter(|token| !token.is_empty()).map(AccessToken::new);
    let token = token.transpose().map_err(|e| bad(format!("accessToken: {e}")))?;
    if let Some(env) = &request.env_vars
        && let Some((name, _)) = env.iter().find(|(name, value)| !is_env_pair(name, value))
    {
        return Err(bad(format!("envVars: {name:?} cannot be an environment variable")));
    }
    let entropy = STANDARD.decode(request.entropy.unwrap_or_default());
    let entropy = entropy.map_err(|e| bad(format!("entropy is not base64: {e}")))?;
    if entropy.len() > MAX_ENTROPY {
        return Err(bad(format!("entropy: more than {MAX_ENTROPY} bytes")));
    }
    if let Some(hostname) = &request.hostname
        && !is_hostname(hostname)
    {
        return Err(bad(format!("hostname: {hostname:?} cannot be one")));
    }
    if let Some(user) = request.default_user.as_deref().filter(|user| !user.is_empty())
        && let Ok(None) = User::find(user)
    {
        return Err(bad(format!("defaultUser: unknown user '{user}'")));
    }
    let time = request.timestamp.map(|text| OffsetDateTime::parse(&text, &Rfc3339));
    let time = time.transpose().map_err(|e| bad(format!("timestamp: {e}")))?.map(SystemTime::from);
    if time.is_some_and(|time| time < SystemTime::UNIX_EPOCH) {
        return Err(bad("timestamp: before 1970".into()));
    }
    Ok((
        Adjustment { time, entropy, hostname: request.hostname },
        Change { token, env: request.env_vars, user: request.default_user, workdir: request.default_workdir },
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(json: &str) -> Result<(Adjustment, Change), HttpError> {
        check(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn takes_what_hosts_send() {
        let (adjustment, change) = parse(
            r#"{"envVars":{"A":"1"},"accessToken":"tok","timestamp":"2026-11-23T20:58:49.5+01:00","entropy":"AAEC",
                "hostname":"box-1","defaultUser":"root","defaultWorkdir":"/srv","lifecycleID":"x","caBundle":""}"#,
        )
        .unwrap();
        // date -u -d 2026-11-23T19:58:49Z +%s
        assert_eq!(adjustment.time, Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_463_929_500)));
        assert_eq!((adjustment.entropy, adjustment.hostname), (vec![0, 1, 2], Some("box-1".into())));
        assert_eq!(change.token.unwrap().reveal(), "tok");
        assert_eq!((change.user.as_deref(), change.workdir.as_deref()), (Some("root"), Some("/srv")));
        let (adjustment, change) = parse("{}").unwrap();
        assert!(adjustment.time.is_none() && change.token.is_none() && change.env.is_none());
    }

    #[test]
    fn refuses_nonsense() {
        for bad in [
            r#"{"accessToken":"a b"}"#,
            r#"{"envVars":{"A=":"1"}}"#,
            r#"{"entropy":"!"}"#,
            r#"{"hostname":"a/b"}"#,
            r#"{"defaultUser":"nobody-of-that-name"}"#,
            r#"{"timestamp":"yesterday"}"#,
            r#"{"timestamp":"1969-01-01T00:00:00Z"}"#,
        ] {
            assert_eq!(parse(bad).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad}");
        }
    }
}

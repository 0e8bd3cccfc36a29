//! Host tokens: how a control plane shows a host that it may call.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

/// The longest life that a token may have been given.
const LONGEST_LIFE: u64 = 600;
/// How far two clocks may be apart.
const LEEWAY: u64 = 5;
const LEAST_SECRET: usize = 32;
const MOST_SECRET: usize = 4096;
const LONGEST_CALLER: usize = 128;

/// The secret that a host and its control planes share: it signs and checks *host tokens*.
///
/// A token is a JWT (HS256) for one host (`aud`), of a caller (`sub`), for at most ten minutes (`iat`, `exp`). It is shown as
/// `Authorization: Bearer …`. A host's name must be its own: a token for one host is none for another with the same secret.
///
/// ```
/// # use std::time::Duration;
/// use wrenn_host::HostSecret;
/// let secret = HostSecret::new("0123456789abcdef0123456789abcdef")?;
/// let token = secret.sign("host-1", "control-1", Duration::from_secs(60));
/// assert_eq!(secret.verify("host-1", &token)?.name, "control-1");
/// assert!(secret.verify("host-2", &token).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct HostSecret {
    sign: EncodingKey,
    verify: DecodingKey,
}

/// A text that cannot be a [`HostSecret`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a host secret has {LEAST_SECRET} to {MOST_SECRET} bytes, and this one has {len}")]
#[non_exhaustive]
pub struct BadSecret {
    /// How many bytes it has.
    pub len: usize,
}

/// Why a token was refused. It says no more, as whoever is told may be anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadToken {
    /// It has expired, or its life is longer than a token's may be.
    #[error("the host token has expired, or is valid for longer than {LONGEST_LIFE} seconds")]
    Expired,
    /// It is for another host.
    #[error("the host token is for another host")]
    Audience,
    /// It is no token that this secret signed.
    #[error("the host token is not valid")]
    Invalid,
}

/// Who showed a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// The name that it was signed for.
    pub name: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    sub: String,
    iat: u64,
    exp: u64,
}

impl HostSecret {
    /// Takes 32 to 4096 bytes for a secret.
    ///
    /// # Errors
    /// [`BadSecret`] where there are fewer, or more.
    pub fn new(secret: impl AsRef<[u8]>) -> Result<Self, BadSecret> {
        let secret = secret.as_ref();
        if !(LEAST_SECRET..=MOST_SECRET).contains(&secret.len()) {
            return Err(BadSecret { len: secret.len() });
        }
        Ok(Self { sign: EncodingKey::from_secret(secret), verify: DecodingKey::from_secret(secret) })
    }

    /// A token of `caller` for the host named `audience`, valid from now on for `lifetime`.
    pub fn sign(&self, audience: &str, caller: &str, lifetime: Duration) -> String {
        let iat = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let exp = iat.saturating_add(lifetime.as_secs());
        let claims = Claims { aud: audience.into(), sub: caller.into(), iat, exp };
        encode(&Header::new(Algorithm::HS256), &claims, &self.sign).expect("such claims are JSON")
    }

    /// Checks a token shown to the host named `audience`. Its signature is compared in constant time.
    ///
    /// # Errors
    /// [`BadToken`] says what a caller may know.
    pub fn verify(&self, audience: &str, token: &str) -> Result<Caller, BadToken> {
        use jsonwebtoken::errors::ErrorKind;
        let mut rules = Validation::new(Algorithm::HS256);
        rules.set_audience(&[audience]);
        rules.set_required_spec_claims(&["aud", "exp", "sub"]);
        rules.leeway = LEEWAY;
        let claims = decode::<Claims>(token, &self.verify, &rules).map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => BadToken::Expired,
            ErrorKind::InvalidAudience => BadToken::Audience,
            _ => BadToken::Invalid,
        })?;
        let Claims { sub, iat, exp, .. } = claims.claims;
        if exp.saturating_sub(iat) > LONGEST_LIFE {
            return Err(BadToken::Expired);
        }
        if sub.is_empty() || sub.len() > LONGEST_CALLER || sub.chars().any(char::is_control) {
            return Err(BadToken::Invalid);
        }
        Ok(Caller { name: sub })
    }
}

impl fmt::Debug for HostSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(fill: u8) -> HostSecret {
        HostSecret::new([fill; 32]).unwrap()
    }

    fn claims(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut claims = serde_json::json!({ "aud": "h", "sub": "c", "iat": now, "exp": now + 60 });
        change(&mut claims);
        encode(&Header::new(Algorithm::HS256), &claims, &secret(1).sign).unwrap()
    }

    #[test]
    fn a_token_is_for_one_host_one_secret_and_a_while() {
        let token = secret(1).sign("h", "c", Duration::from_secs(60));
        assert_eq!(secret(1).verify("h", &token), Ok(Caller { name: "c".into() }));
        assert_eq!(secret(1).verify("other", &token), Err(BadToken::Audience));
        assert_eq!(secret(2).verify("h", &token), Err(BadToken::Invalid));
        let old = claims(|c| c["exp"] = (c["iat"].as_u64().unwrap() - 60).into());
        assert_eq!(secret(1).verify("h", &old), Err(BadToken::Expired));
        let eternal = claims(|c| c["exp"] = (c["iat"].as_u64().unwrap() + 86_400).into());
        assert_eq!(secret(1).verify("h", &eternal), Err(BadToken::Expired));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for missing in ["aud", "sub", "exp", "iat"] {
            let token = claims(|c| drop(c.as_object_mut().unwrap().remove(missing)));
            assert!(secret(1).verify("h", &token).is_err(), "without {missing}");
        }
        for sub in ["", "a\nb", &"x".repeat(LONGEST_CALLER + 1)] {
            assert!(secret(1).verify("h", &claims(|c| c["sub"] = sub.into())).is_err(), "{sub:?}");
        }
        // Unsigned, and signed by another algorithm with the same bytes.
        let part = |text: &str| {
            use base64::Engine as _;
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
        };
        let payload = claims(|_| {}).split('.').nth(1).unwrap().to_owned();
        let unsigned = format!("{}.{payload}.", part(r#"{"alg":"none","typ":"JWT"}"#));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let other = Claims { aud: "h".into(), sub: "c".into(), iat: now, exp: now + 60 };
        let other = encode(&Header::new(Algorithm::HS512), &other, &secret(1).sign).unwrap();
        for token in ["", "a", "a.b.c", "..", &unsigned, &other] {
            assert_eq!(secret(1).verify("h", token), Err(BadToken::Invalid), "{token}");
        }
    }

    #[test]
    fn a_short_secret_is_refused_and_none_is_shown() {
        assert_eq!(HostSecret::new([0; 31]).unwrap_err(), BadSecret { len: 31 });
        assert_eq!(HostSecret::new([0; 4097]).unwrap_err(), BadSecret { len: 4097 });
        assert_eq!(format!("{:?}", secret(7)), "HostSecret(…)");
    }
}

//! Access tokens: JWTs, signed with HMAC-SHA-256, good for minutes.

use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

const ISSUER: &str = "wrenn";

/// What an access token says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Claims {
    iss: String,
    /// The user.
    pub(crate) sub: Uuid,
    /// The session, which ends the token before its time when it is revoked.
    pub(crate) sid: Uuid,
    iat: u64,
    exp: u64,
}

/// Makes access tokens and reads them.
pub(crate) struct AccessTokens {
    signing: EncodingKey,
    verifying: DecodingKey,
    validation: Validation,
    life: Duration,
}

impl AccessTokens {
    pub(crate) fn new(secret: &SecretString, life: Duration) -> Self {
        let secret = secret.expose_secret().as_bytes();
        // One algorithm only: whatever else a token's header names is refused.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        validation.leeway = 0;
        Self {
            signing: EncodingKey::from_secret(secret),
            verifying: DecodingKey::from_secret(secret),
            validation,
            life,
        }
    }

    pub(crate) fn life(&self) -> Duration {
        self.life
    }

    /// A token for a user's session, good from now on.
    pub(crate) fn issue(&self, user: Uuid, session: Uuid) -> Result<String, jsonwebtoken::errors::Error> {
        let now = jsonwebtoken::get_current_timestamp();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: user,
            sid: session,
            iat: now,
            exp: now + self.life.as_secs(),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.signing)
    }

    /// What a token says, if it is ours and its time is not over.
    pub(crate) fn read(&self, token: &str) -> Option<Claims> {
        jsonwebtoken::decode::<Claims>(token, &self.verifying, &self.validation)
            .ok()
            .map(|token| token.claims)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn tokens(secret: &str) -> AccessTokens {
        AccessTokens::new(&secret.into(), Duration::from_secs(60))
    }

    #[test]
    fn a_token_says_whose_it_is() {
        let tokens = tokens("one secret");
        let (user, session) = (Uuid::now_v7(), Uuid::now_v7());
        let claims = tokens.read(&tokens.issue(user, session).unwrap()).unwrap();
        assert_eq!((claims.sub, claims.sid), (user, session));
    }

    #[test]
    fn tokens_that_others_made_or_changed_are_refused() {
        let ours = tokens("one secret");
        let token = tokens("another secret").issue(Uuid::now_v7(), Uuid::now_v7()).unwrap();
        assert_eq!(ours.read(&token), None);
        let good = ours.issue(Uuid::now_v7(), Uuid::now_v7()).unwrap();
        let [_, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
        for header in [r#"{"alg":"none"}"#, r#"{"alg":"RS256"}"#, r#"{"alg":"HS512"}"#] {
            let header = URL_SAFE_NO_PAD.encode(header);
            assert_eq!(ours.read(&format!("{header}.{claims}.{signature}")), None);
            assert_eq!(ours.read(&format!("{header}.{claims}.")), None);
        }
    }

    #[test]
    fn a_token_whose_time_is_over_is_refused() {
        let tokens = tokens("one secret");
        let claims = |exp: u64| Claims {
            iss: ISSUER.to_owned(),
            sub: Uuid::now_v7(),
            sid: Uuid::now_v7(),
            iat: 0,
            exp,
        };
        let sign = |claims: &Claims| {
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &tokens.signing).unwrap()
        };
        let now = jsonwebtoken::get_current_timestamp();
        assert_eq!(tokens.read(&sign(&claims(now - 1))), None);
        assert!(tokens.read(&sign(&claims(now + 60))).is_some());
        let other = Claims { iss: "other".to_owned(), ..claims(now + 60) };
        assert_eq!(tokens.read(&sign(&other)), None);
    }
}

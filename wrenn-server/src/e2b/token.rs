//! What clients show to a sandbox's agent, and what they sign URLs with.
//!
//! Clients never learn the token that an agent itself wants to be shown: they get one that follows from the sandbox's id and
//! the server's secret, and requests that carry it get the agent's as they are passed on. So it is the same for the
//! sandbox's whole life, which clients rely on; it can be checked without asking anyone; and what it opens is what this
//! server lets through.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{Method, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Makes the tokens of sandboxes.
#[derive(Clone)]
pub(crate) struct Tokens(Hmac<Sha256>);

impl Tokens {
    pub(crate) fn new(secret: &SecretString) -> Self {
        let keyed = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes());
        let mut keyed = keyed.expect("HMAC takes keys of any length");
        // The secret signs other things too.
        keyed.update(b"wrenn: access to a sandbox's agent\0");
        Self(keyed)
    }

    /// The token of a sandbox.
    pub(super) fn of(&self, sandbox: &str) -> String {
        let mut keyed = self.0.clone();
        keyed.update(sandbox.as_bytes());
        URL_SAFE_NO_PAD.encode(keyed.finalize().into_bytes())
    }

    /// Whether this is the token of a sandbox.
    pub(super) fn accepts(&self, sandbox: &str, shown: &[u8]) -> bool {
        self.of(sandbox).as_bytes().ct_eq(shown).into()
    }
}

/// A signed URL of a file: what its query says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Signed {
    path: String,
    username: String,
    signature: String,
    expiration: Option<String>,
    operation: &'static str,
}

impl Signed {
    /// Reads the query of a request for a file. `None`: it is not signed.
    pub(super) fn of(method: &Method, uri: &Uri) -> Option<Self> {
        let operation = if method == Method::GET { "read" } else { "write" };
        let mut signed = Self { operation, ..Self::default() };
        for pair in uri.query().unwrap_or_default().split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8().ok()?.into_owned();
            match name {
                "path" => signed.path = value,
                "username" => signed.username = value,
                "signature" => signed.signature = value,
                "signature_expiration" => signed.expiration = Some(value),
                _ => {}
            }
        }
        (!signed.signature.is_empty()).then_some(signed)
    }

    /// Whether whoever has that token signed it.
    pub(super) fn is_by(&self, token: &str) -> bool {
        let Self { path, username, operation, .. } = self;
        let mut text = format!("{path}:{operation}:{username}:{token}");
        if let Some(expiration) = &self.expiration {
            text.push(':');
            text.push_str(expiration);
        }
        let wanted = format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)));
        wanted.as_bytes().ct_eq(self.signature.as_bytes()).into()
    }

    pub(super) fn is_expired(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        self.expiration.as_deref().is_some_and(|at| at.parse().map_or(true, |at: u64| at < now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(query: &str) -> Option<Signed> {
        Signed::of(&Method::GET, &format!("/files?{query}").parse().unwrap())
    }

    #[test]
    fn tokens_are_of_one_sandbox_and_one_secret() {
        let tokens = Tokens::new(&"a secret of this test, and no other".into());
        let token = tokens.of("0123456789abcdef");
        assert_eq!((token.len(), &token), (43, &tokens.of("0123456789abcdef")));
        assert!(tokens.accepts("0123456789abcdef", token.as_bytes()));
        assert!(!tokens.accepts("0123456789abcdee", token.as_bytes()));
        assert!(!tokens.accepts("0123456789abcdef", b""));
        assert_ne!(Tokens::new(&"another secret of this test".into()).of("0123456789abcdef"), token);
    }

    #[test]
    fn signatures_are_those_that_clients_make() {
        // printf %s '/a b:read::tok' | openssl dgst -sha256 -binary | base64
        let url = signed("path=%2Fa%20b&signature=v1_dgCJhR1eFbOEacKLrakWIrQZDgxJ2zP38eGtFIbZ9+8").unwrap();
        assert!(url.is_by("tok") && !url.is_by("tok2") && !url.is_expired());
        assert_eq!(signed("path=/a"), None);
        assert_eq!(signed("signature=%ff"), None);
    }

    #[test]
    fn an_expiration_that_is_over_or_no_number_is_over() {
        assert!(signed("signature=x&signature_expiration=1").unwrap().is_expired());
        assert!(signed("signature=x&signature_expiration=never").unwrap().is_expired());
        assert!(!signed("signature=x&signature_expiration=99999999999").unwrap().is_expired());
    }
}

//! Signed URLs: a `/files` request without the token, allowed by whoever has it.
//!
//! `"v1_" + base64(sha256("<path>:<read|write>:<user>:<token>[:<expiration>]"))`, standard alphabet, no padding;
//! `path` and `user` as in the query, the expiration in seconds since 1970.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hyper::Method;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Routes;
use super::query::Query;

impl Routes {
    /// Whether the query carries a signature that allows `method`. The error may say why not.
    pub(super) fn check_signature(&self, method: &Method, query: &Query) -> Result<(), Option<&'static str>> {
        let (Some(shown), Some(token)) = (query.signature.as_deref(), self.settings.token()) else {
            return Err(None);
        };
        let operation = if method == Method::GET { "read" } else { "write" };
        let wanted = sign(query, operation, token.reveal());
        // Validity before expiry: who can't sign learns nothing.
        if !bool::from(wanted.as_bytes().ct_eq(shown.as_bytes())) {
            return Err(Some("invalid signature"));
        }
        match query.signature_expiration.as_deref().map(str::parse::<u64>) {
            None => Ok(()),
            Some(Ok(expiration)) if now() <= expiration => Ok(()),
            Some(_) => Err(Some("signature is already expired")),
        }
    }
}

fn sign(query: &Query, operation: &str, token: &str) -> String {
    let path = query.path.as_deref().unwrap_or("");
    let user = query.username.as_deref().unwrap_or("");
    let mut text = format!("{path}:{operation}:{user}:{token}");
    if let Some(expiration) = &query.signature_expiration {
        text.push(':');
        text.push_str(expiration);
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_the_hash_of_what_they_allow() {
        // printf %s '/a:read::tok' | openssl dgst -sha256 -binary | base64
        let of = |query: &str| Query::of(&format!("/files?{query}").parse().unwrap());
        let query = of("path=/a");
        assert_eq!(sign(&query, "read", "tok"), "v1_2/gNbgFPxFSqkheS/SD0NHlzA121E/nxkOtc/ovxeoI");
        let query = of("path=/a&username=bob&signature_expiration=99");
        assert_eq!(sign(&query, "write", "tok"), "v1_WkCGJ5MlwkBvLTnlAWcWebvCL7iSLRIToK0hS6Y9jHI");
    }
}

//! The secret that lets the host, and nobody else, use a sandbox's agent.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An agent's access token: 1 to 256 visible ASCII characters.
///
/// Neither `Debug` nor an error ever shows it; it has no `PartialEq`, because comparing secrets is the agent's
/// business and takes constant time.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccessToken(String);

/// A text that cannot be an [`AccessToken`].
#[derive(Debug, thiserror::Error)]
#[error("an access token is 1 to {} visible ASCII characters, without spaces", AccessToken::MAX_LEN)]
pub struct InvalidToken;

impl AccessToken {
    const MAX_LEN: usize = 256;

    /// Takes a text for a token.
    ///
    /// # Errors
    /// [`InvalidToken`] if it is empty, too long or has other than visible ASCII characters.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidToken> {
        let text = text.into();
        let fits = (1..=Self::MAX_LEN).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text))
        } else {
            Err(InvalidToken)
        }
    }

    /// A fresh token of 256 random bits, in lower-case hexadecimal.
    ///
    /// # Panics
    /// If the operating system has no randomness to give, which no supported kernel does.
    #[cfg(feature = "client")]
    pub fn random() -> Self {
        let mut bits = [0u8; 32];
        getrandom::fill(&mut bits).expect("the kernel's random source answers");
        Self(bits.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The token in plain text: for a header, or a file that only its owner can read.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

impl TryFrom<String> for AccessToken {
    type Error = InvalidToken;

    fn try_from(text: String) -> Result<Self, InvalidToken> {
        Self::new(text)
    }
}

impl From<AccessToken> for String {
    fn from(token: AccessToken) -> String {
        token.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_fits_a_header() {
        for good in ["a", "tok-i0000", "A+/=~!", &"x".repeat(256)] {
            assert_eq!(AccessToken::new(good).unwrap().reveal(), good);
        }
        for bad in ["", " a", "a b", "a\n", "é", "\u{7f}", &"x".repeat(257)] {
            assert!(AccessToken::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn shows_nothing_and_survives_json() {
        let token = AccessToken::new("secret").unwrap();
        assert!(!format!("{token:?}").contains("secret"));
        let json = serde_json::to_string(&token).unwrap();
        assert_eq!(json, "\"secret\"");
        assert_eq!(serde_json::from_str::<AccessToken>(&json).unwrap().reveal(), "secret");
        assert!(serde_json::from_str::<AccessToken>("\"a b\"").is_err());
    }

    #[cfg(feature = "client")]
    #[test]
    fn random_tokens_are_tokens_and_differ() {
        let (a, b) = (AccessToken::random(), AccessToken::random());
        assert!(AccessToken::new(a.reveal()).is_ok());
        assert_eq!(a.reveal().len(), 64);
        assert_ne!(a.reveal(), b.reveal());
    }
}

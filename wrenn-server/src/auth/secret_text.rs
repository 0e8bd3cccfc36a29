//! Texts that prove something: API keys, refresh tokens, invitation codes.

use secrecy::SecretString;
use sha2::{Digest, Sha256};

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// 40 characters of 62 are 238 bits.
const LENGTH: usize = 40;

/// A text that is shown to its owner once, and what is kept of it.
pub(crate) struct SecretText {
    /// The whole text.
    pub(crate) text: String,
    /// The part that people may tell it by: its kind and the first characters.
    pub(crate) prefix: String,
    /// What is stored.
    pub(crate) hash: [u8; 32],
}

impl SecretText {
    /// A fresh one, beginning with its kind, such as `wrn_`.
    pub(crate) fn random(kind: &str) -> Self {
        let text = format!("{kind}{}", random_text(LENGTH));
        Self { prefix: text[..kind.len() + 6].to_owned(), hash: digest(&text), text }
    }
}

/// What is stored of a secret text. They are random, so neither salt nor slowness would add anything, and an index finds
/// them: how long a comparison of hashes takes tells nothing about the text.
pub(crate) fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// A secret for signing, made up as the process starts.
pub(crate) fn random_secret() -> SecretString {
    random_text(64).into()
}

/// Random characters, each as likely as the others.
fn random_text(length: usize) -> String {
    let mut text = String::with_capacity(length);
    let mut bytes = [0; 64];
    while text.len() < length {
        getrandom::fill(&mut bytes).expect("the system has a random source");
        // Of 256 values the last 8 would make some characters likelier.
        let fair = bytes.iter().filter(|byte| **byte < 248);
        text.extend(fair.map(|byte| char::from(ALPHABET[usize::from(*byte) % 62])).take(length - text.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_text_shows_its_kind_and_is_never_the_same() {
        let (one, other) = (SecretText::random("wrn_"), SecretText::random("wrn_"));
        assert_eq!(one.text.len(), 44);
        assert!(one.text.starts_with(&one.prefix) && one.prefix.len() == 10);
        assert_ne!(one.text, other.text);
        assert_eq!(one.hash, digest(&one.text));
    }
}

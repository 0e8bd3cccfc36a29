//! Which secrets may sign access tokens.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::ConfigError;

/// The least length: that of the key of HMAC-SHA-256.
const LEAST_BYTES: usize = 32;

/// So few different characters are a repetition and no secret.
const LEAST_DISTINCT: usize = 12;

/// What people write where a secret is asked for.
const COMMON: &[&str] = &["changeme", "change-me", "change_me", "secret", "password", "example", "default"];

/// Why a secret can be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WeakSecret {
    /// There is none.
    #[error("there is none: give WRENN_JWT_SECRET, for example of `openssl rand -base64 48`")]
    Missing,
    /// It is short.
    #[error("it has {0} bytes, and {LEAST_BYTES} are needed")]
    Short(usize),
    /// It repeats itself.
    #[error("it has {0} different characters, and {LEAST_DISTINCT} are needed")]
    Repetitive(usize),
    /// It has a word in it that stands in examples.
    #[error("it has a common word in it, as from an example")]
    Common,
}

/// The secret that was given, by itself or by file. In development a weak one does and a missing one is made up.
pub(super) fn choose(
    given: Option<SecretString>,
    file: Option<PathBuf>,
    dev: bool,
) -> Result<SecretString, ConfigError> {
    let given = match (given, file) {
        (Some(_), Some(_)) => {
            let reason = "it is given by itself and by file".to_owned();
            return Err(ConfigError::Invalid { name: "jwt_secret", reason });
        }
        (None, Some(path)) => match std::fs::read_to_string(&path) {
            Ok(text) => Some(SecretString::from(text.trim().to_owned())),
            Err(source) => return Err(ConfigError::ReadFile { path, source }),
        },
        (given, None) => given,
    };
    match (given, dev) {
        (None, true) => Ok(crate::auth::random_secret()),
        (None, false) => Err(WeakSecret::Missing.into()),
        (Some(secret), true) => Ok(secret),
        (Some(secret), false) => {
            check(secret.expose_secret())?;
            Ok(secret)
        }
    }
}

fn check(secret: &str) -> Result<(), WeakSecret> {
    let lower = secret.to_ascii_lowercase();
    if COMMON.iter().any(|word| lower.contains(word)) {
        return Err(WeakSecret::Common);
    }
    if secret.len() < LEAST_BYTES {
        return Err(WeakSecret::Short(secret.len()));
    }
    let distinct = secret.chars().collect::<std::collections::BTreeSet<_>>().len();
    if distinct < LEAST_DISTINCT {
        return Err(WeakSecret::Repetitive(distinct));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_secrets_are_told_from_strong_ones() {
        assert_eq!(check("mJ5q0tLr8vWz2xYb7nKd4sPf9hGc3aEu"), Ok(()));
        assert_eq!(check("tooshort"), Err(WeakSecret::Short(8)));
        assert_eq!(check(&"ab".repeat(20)), Err(WeakSecret::Repetitive(2)));
        assert_eq!(check("please-ChangeMe-please-1234567890abcdefgh"), Err(WeakSecret::Common));
    }

    #[test]
    fn development_makes_up_what_is_missing_and_takes_what_is_weak() {
        assert!(choose(None, None, true).unwrap().expose_secret().len() >= LEAST_BYTES);
        assert_eq!(choose(Some("x".into()), None, true).unwrap().expose_secret(), "x");
        assert!(matches!(choose(None, None, false), Err(ConfigError::WeakJwtSecret(WeakSecret::Missing))));
    }

    #[test]
    fn a_secret_may_lie_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "mJ5q0tLr8vWz2xYb7nKd4sPf9hGc3aEu\n").unwrap();
        let secret = choose(None, Some(file.path().to_owned()), false).unwrap();
        assert_eq!(secret.expose_secret().len(), 32);
    }
}

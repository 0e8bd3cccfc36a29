//! Passwords: Argon2id, on threads for blocking work, few at a time.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

/// So many may wait for their turn; each holds nothing but its password.
const QUEUE: usize = 64;

/// The shortest password, in characters.
pub(crate) const LEAST_CHARS: usize = 10;

/// The longest password, in bytes. Hashing more is only work for the server.
pub(crate) const MOST_BYTES: usize = 256;

/// Why a password was not hashed or compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PasswordRefused {
    /// Too many are being hashed.
    #[error("too many passwords are being checked")]
    Busy,
    /// The hash in the database cannot be read, or there is no memory for hashing.
    #[error("a password could not be hashed: {0}")]
    Failed(String),
}

/// Hashes and compares passwords.
#[derive(Clone)]
pub(crate) struct Passwords {
    /// Each hash takes 19 MiB and a processor for some ten milliseconds.
    running: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    /// A hash that no password has, to compare with where there is no user: both cases take as long.
    nobody: Arc<str>,
}

impl Passwords {
    /// Hashes on as many threads as there are processors, but leaves some for others.
    pub(crate) fn new() -> Result<Self, PasswordRefused> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let nobody = hash(&super::random_secret())?;
        Ok(Self {
            running: Arc::new(Semaphore::new(processors.div_ceil(2))),
            queue: Arc::new(Semaphore::new(QUEUE)),
            nobody: nobody.into(),
        })
    }

    /// The hash of a password, as a PHC string.
    pub(crate) async fn hash(&self, password: SecretString) -> Result<String, PasswordRefused> {
        self.work(move || hash(&password)).await
    }

    /// Whether a password is the one with that hash. With `None`, for a user that does not exist, it takes as long and
    /// is `false`.
    pub(crate) async fn verify(
        &self,
        password: SecretString,
        hash: Option<String>,
    ) -> Result<bool, PasswordRefused> {
        let nobody = self.nobody.clone();
        self.work(move || {
            let exists = hash.is_some();
            let hash = hash.unwrap_or_else(|| nobody.as_ref().to_owned());
            let hash =
                PasswordHash::new(&hash).map_err(|error| PasswordRefused::Failed(error.to_string()))?;
            let same = Argon2::default().verify_password(password.expose_secret().as_bytes(), &hash).is_ok();
            Ok(same && exists)
        })
        .await
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PasswordRefused> + Send + 'static,
    ) -> Result<T, PasswordRefused> {
        let _queued = self.queue.try_acquire().map_err(|_| PasswordRefused::Busy)?;
        // The permit goes along: work that nobody waits for any more still takes its processor.
        let running = self.running.clone().acquire_owned().await.map_err(|_| PasswordRefused::Busy)?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(running);
            done
        });
        done.await.map_err(|error| PasswordRefused::Failed(error.to_string()))?
    }
}

fn hash(password: &SecretString) -> Result<String, PasswordRefused> {
    let hash = Argon2::default()
        .hash_password(password.expose_secret().as_bytes())
        .map_err(|error| PasswordRefused::Failed(error.to_string()))?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_told_from_another_and_nobody_has_one() {
        let passwords = Passwords::new().unwrap();
        let hash = passwords.hash("correct horse".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(passwords.verify("correct horse".into(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("correct house".into(), Some(hash)).await.unwrap());
        assert!(!passwords.verify("correct horse".into(), None).await.unwrap());
    }

    #[tokio::test]
    async fn those_beyond_the_queue_are_turned_away_at_once() {
        let passwords = Passwords::new().unwrap();
        let _all = passwords.queue.acquire_many(u32::try_from(QUEUE).unwrap()).await.unwrap();
        assert!(matches!(passwords.hash("correct horse".into()).await, Err(PasswordRefused::Busy)));
    }
}

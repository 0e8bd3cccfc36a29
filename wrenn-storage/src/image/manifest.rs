//! `image.json` and `guest.json`: types of their own, versioned, and distrusted when read.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::ImageError;

/// The format of `guest.json` that this program writes, and the newest that it reads.
pub(super) const GUEST_FORMAT: u32 = 1;

/// The same of `image.json`. Format 1 had no entry point, command and ports.
pub(super) const IMAGE_FORMAT: u32 = 2;

/// No manifest is longer than this many bytes.
pub(super) const LONGEST: u64 = 256 * 1024;

/// The SHA-256 of a file's content, in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of everything that `input` gives, in pieces reported to `progress` by their length.
    ///
    /// # Errors
    /// `input` cannot be read.
    pub fn of(mut input: impl Read, progress: &mut dyn FnMut(u64)) -> io::Result<Self> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => {
                    hash.update(&buffer[..len]);
                    progress(len as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Self(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The digest as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let valid = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(text)) } else { Err("a SHA-256 is 64 lower-case hexadecimal digits") }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// `image.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageManifest {
    pub(super) format: u32,
    pub(super) name: String,
    pub(super) rootfs: FileRecord,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) source: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) workdir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) entrypoint: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) cmd: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) exposed_ports: Vec<String>,
}

/// `guest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuestManifest {
    pub(super) format: u32,
    pub(super) kernel: FileRecord,
    pub(super) kernel_release: String,
    pub(super) initramfs: FileRecord,
    pub(super) agent_sha256: Digest,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) source: String,
}

/// A file beside its manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRecord {
    pub(super) bytes: u64,
    pub(super) sha256: Digest,
}

impl FileRecord {
    /// Measures a file.
    pub(super) fn of(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<Self, ImageError> {
        let mut bytes = 0;
        let file = File::open(path).map_err(ImageError::io("open", path))?;
        let mut count = |len| {
            bytes += len;
            progress(len);
        };
        let sha256 = Digest::of(file, &mut count).map_err(ImageError::io("read", path))?;
        Ok(Self { bytes, sha256 })
    }

    /// Checks what is cheap to check: that the file is there and has the registered size.
    pub(super) fn check_size(&self, path: &Path) -> Result<(), ImageError> {
        let found = super::kernel::regular_file_len(path).map_err(ImageError::io("read", path))?;
        if found == self.bytes {
            return Ok(());
        }
        Err(ImageError::SizeMismatch { path: path.to_owned(), expected: self.bytes, found })
    }

    /// Reads the whole file and compares it.
    pub(super) fn check_content(&self, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), ImageError> {
        self.check_size(path)?;
        let found = Self::of(path, progress)?;
        if found.sha256 == self.sha256 {
            return Ok(());
        }
        Err(ImageError::DigestMismatch { path: path.to_owned() })
    }
}

/// Reads a manifest whose newest format known here is `known`; `None` where there is no such file.
pub(super) fn read<T: DeserializeOwned>(path: &Path, known: u32) -> Result<Option<T>, ImageError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }

    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut text)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(ImageError::io("read", path))?,
    };
    if text.len() as u64 > LONGEST {
        return Err(ImageError::Implausible { path: path.to_owned(), reason: "it is too long" });
    }
    let damaged = |source| ImageError::Manifest { path: path.to_owned(), source };
    // The format comes first: a newer manifest may have fields that are unknown here.
    let Format { format } = serde_json::from_slice(&text).map_err(damaged)?;
    if format > known {
        return Err(ImageError::NewerFormat { path: path.to_owned(), found: format, known });
    }
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

/// The seconds since 1970 as a time; far more than any clock shows is refused rather than overflowed.
pub(super) fn time_from_unix(seconds: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The present as seconds since 1970.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        let mut seen = 0;
        let digest = Digest::of(&b"abc"[..], &mut |len| seen += len).unwrap();
        assert_eq!(digest.as_str(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(seen, 3);
        assert!(Digest::try_from("BA".repeat(32)).is_err());
        assert!(Digest::try_from("ab".repeat(31)).is_err());
    }

    #[test]
    fn manifests_are_bounded_versioned_and_strict() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            super::read::<FormatOnly>(&path, 1)
        };
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct FormatOnly {
            format: u32,
        }
        assert_eq!(read(r#"{"format":1}"#).unwrap().unwrap().format, 1);
        assert!(matches!(read(r#"{"format":1,"x":2}"#), Err(ImageError::Manifest { .. })));
        assert!(matches!(read(r#"{"format":1"#), Err(ImageError::Manifest { .. })));
        assert!(matches!(
            read(r#"{"format":2,"x":2}"#),
            Err(ImageError::NewerFormat { found: 2, known: 1, .. })
        ));
        let long = " ".repeat(LONGEST as usize + 1);
        assert!(matches!(read(&long), Err(ImageError::Implausible { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(super::read::<FormatOnly>(&path, 1).unwrap().is_none());
    }
}

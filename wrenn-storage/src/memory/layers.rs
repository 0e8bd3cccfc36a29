//! The directory that holds layers: `<id>.layer` and beside each its checksums, `<id>.sums`.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use wrenn_base::{Bytes, fault};

use super::error::MemoryError;
use crate::durable;

/// The identity of one layer: 128 random bits, written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub(super) [u8; 16]);

impl LayerId {
    pub(super) fn random() -> io::Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        Ok(Self(id))
    }

    /// Reads what `Display` writes, and nothing else.
    fn parse(text: &str) -> Option<Self> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let digits = text.len() == 32 && text.bytes().all(digit);
        let number = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten()?;
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LayerId({self})")
    }
}

/// A directory of layers. Cloning the handle is cheap; the directory is the same.
///
/// Several images may share one directory, and layers in it.
#[derive(Debug, Clone)]
pub struct LayerDir {
    path: PathBuf,
}

impl LayerDir {
    /// Opens the directory, making it (mode 0700: layers hold guests' memory) where it is missing, and
    /// removes what crashed writers left half-made in it.
    ///
    /// # Errors
    /// [`MemoryError::Io`] where the directory cannot be made, read or cleaned.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, MemoryError> {
        let path = path.into();
        let mut builder = fs::DirBuilder::new();
        match builder.mode(0o700).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            // What is durable in the directory is of no use if the directory is not.
            result => result
                .and_then(|()| durable::sync_parent(&path))
                .map_err(MemoryError::io("create the layer directory", &path))?,
        }
        durable::sweep(&path).map_err(MemoryError::io("clean the layer directory", &path))?;
        Ok(Self { path })
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the file of a layer is, whether it exists or not.
    pub fn layer_path(&self, id: LayerId) -> PathBuf {
        self.path.join(format!("{id}.layer"))
    }

    /// Where the checksums of a layer are, whether they exist or not.
    pub fn sums_path(&self, id: LayerId) -> PathBuf {
        self.path.join(format!("{id}.sums"))
    }

    /// Every layer of which a file is there, whole or in part.
    ///
    /// # Errors
    /// [`MemoryError::Io`] where the directory cannot be read.
    pub fn list(&self) -> Result<BTreeSet<LayerId>, MemoryError> {
        let failed = |source| MemoryError::io("read the layer directory", &self.path)(source);
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let stem =
                name.to_str().and_then(|name| name.strip_suffix(".layer").or(name.strip_suffix(".sums")));
            ids.extend(stem.and_then(LayerId::parse));
        }
        Ok(ids)
    }

    /// Removes every layer that is not in `keep` and returns the disk space this freed: none for layers that other
    /// directories share.
    ///
    /// `keep` has to name the layers of every image that uses the directory, of those included that are being
    /// imported, written, merged or linked at this moment, or that are made and not saved yet: hold all that off
    /// while collecting. Readers that are open keep their layers' content.
    ///
    /// # Errors
    /// [`MemoryError::Io`] at the first file that cannot be removed; those before it are gone. It can be
    /// repeated.
    pub fn retain(&self, keep: &BTreeSet<LayerId>) -> Result<Bytes, MemoryError> {
        let mut freed = 0;
        for id in self.list()?.difference(keep) {
            for path in [self.layer_path(*id), self.sums_path(*id)] {
                let removed = remove_file(&path);
                freed += removed.map_err(MemoryError::io("remove the unused layer file", &path))?;
            }
        }
        durable::sync_dir(&self.path).map_err(MemoryError::io("sync the layer directory", &self.path))?;
        Ok(Bytes(freed))
    }
}

/// Removes a file that may be gone, and returns the disk space that only this name of it held.
fn remove_file(path: &Path) -> io::Result<u64> {
    let found = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        result => result?,
    };
    fault::point("storage.layer.remove")?;
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        result => result?,
    }
    fault::point("storage.layer.removed")?;
    Ok(if found.nlink() == 1 { found.blocks() * 512 } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_random_and_read_back() {
        let (a, b) = (LayerId::random().unwrap(), LayerId::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(LayerId::parse(&a.to_string()), Some(a));
        assert_eq!(LayerId([0xa5; 16]).to_string(), "a5".repeat(16));
        let upper = "A5".repeat(16);
        for text in ["", "a5", upper.as_str(), "../../../../../../../../../etc/x", &"g".repeat(32)] {
            assert_eq!(LayerId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn retain_removes_the_rest_and_nothing_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let layers = LayerDir::open(dir.path().join("layers")).unwrap();
        let ids = [LayerId([1; 16]), LayerId([2; 16]), LayerId([3; 16])];
        fs::write(layers.layer_path(ids[0]), vec![1; 8192]).unwrap();
        fs::write(layers.sums_path(ids[0]), b"x").unwrap();
        fs::write(layers.layer_path(ids[1]), vec![1; 8192]).unwrap();
        fs::write(layers.sums_path(ids[2]), b"an interrupted import").unwrap();
        fs::write(layers.path().join("notes.layer"), b"foreign").unwrap();
        assert_eq!(layers.list().unwrap(), ids.into());
        assert!(layers.retain(&[ids[0]].into()).unwrap().get() >= 8192);
        assert_eq!(layers.list().unwrap(), [ids[0]].into());
        assert!(layers.path().join("notes.layer").exists());
        assert_eq!(layers.retain(&[ids[0]].into()).unwrap(), Bytes(0));
        // What another directory shares is removed here and frees nothing.
        fs::hard_link(layers.layer_path(ids[0]), dir.path().join("shared")).unwrap();
        fs::remove_file(layers.sums_path(ids[0])).unwrap();
        assert_eq!(layers.retain(&BTreeSet::new()).unwrap(), Bytes(0));
        assert!(layers.list().unwrap().is_empty());
    }

    #[test]
    fn opening_sweeps_what_a_crash_left() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".staged-0-x.layer"), b"half").unwrap();
        LayerDir::open(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! One file on its way in: staged beside its destination, moved into place when it is whole.
//!
//! Dropping a staged file removes it. The destination changes by one rename, or not at all.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use hyper::StatusCode;
use rustix::fs::XattrFlags;
use tempfile::NamedTempFile;

use super::HttpError;
use super::files::is_impossible_path;
use crate::paths::{Staging, make_directories};
use crate::sys::Identity;

/// The mode of new files; an old file keeps its own.
const NEW_FILE: u32 = 0o644;

/// A file that is not in its place yet.
pub(super) struct Staged {
    file: NamedTempFile,
    destination: PathBuf,
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Staged {
    /// Finds out where the file goes, makes missing directories, and opens the temporary file. Blocks.
    ///
    /// With `owner` everything that is new belongs to them.
    pub(super) fn begin(path: &str, owner: Option<&Identity>) -> Result<Self, HttpError> {
        let owner = owner.map(|owner| (owner.uid, owner.gid));
        if path == "/" {
            return Err(is_directory(path));
        }
        let destination = follow_links(Path::new(path)).map_err(|e| write_error(path, &e))?;
        let (mode, kind) = match fs::symlink_metadata(&destination) {
            Ok(old) if old.is_dir() => return Err(is_directory(path)),
            Ok(old) if !old.is_file() => {
                return Err(HttpError::bad_request(format!("path '{path}' is not a regular file")));
            }
            Ok(old) => (old.mode() & 0o7777, Staging::Over),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (NEW_FILE, Staging::New),
            Err(e) => return Err(write_error(path, &e)),
        };
        let parent = destination.parent().unwrap_or(Path::new("/"));
        make_directories(parent, owner).map_err(|e| write_error(path, &e))?;
        let file = tempfile::Builder::new().prefix(kind.prefix()).tempfile_in(parent);
        let file = file.map_err(|e| write_error(path, &e))?;
        Ok(Self { file, destination, mode, owner })
    }

    /// Appends a piece. Blocks.
    pub(super) fn write(&mut self, piece: &Bytes) -> Result<(), HttpError> {
        self.file.as_file_mut().write_all(piece).map_err(|e| write_error(&self.name(), &e))
    }

    /// Appends what is left of another file, within the kernel where it can. Blocks.
    pub(super) fn append(&mut self, source: &mut File) -> Result<(), HttpError> {
        io::copy(source, self.file.as_file_mut()).map(drop).map_err(|e| write_error(&self.name(), &e))
    }

    /// Puts the file into its place, with its owner, mode and metadata. Blocks.
    pub(super) fn finish(self, metadata: &BTreeMap<String, String>) -> Result<(), HttpError> {
        let name = self.name();
        let failed = |e: io::Error| write_error(&name, &e);
        let file = self.file.as_file();
        if let Some((uid, gid)) = self.owner {
            fchown(file, Some(uid), Some(gid)).map_err(failed)?;
        }
        // After the change of owner, which clears set-id bits.
        file.set_permissions(Permissions::from_mode(self.mode)).map_err(failed)?;
        set_metadata(file, metadata).map_err(failed)?;
        self.file.persist(&self.destination).map_err(|e| failed(e.error))?;
        Ok(())
    }

    fn name(&self) -> String {
        self.destination.display().to_string()
    }
}

/// Where writing to `path` really goes: through symbolic links, dangling ones included, as open(2) would.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // The kernel's own limit.
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            // Not a link, or not there.
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(e) => return Err(e),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// Stores each key as the extended attribute `user.e2b.<key>`; the new file has none before.
fn set_metadata(file: &File, metadata: &BTreeMap<String, String>) -> io::Result<()> {
    for (key, value) in metadata {
        let name = CString::new(format!("user.e2b.{key}"))?;
        rustix::fs::fsetxattr(file, &name, value.as_bytes(), XattrFlags::empty())?;
    }
    Ok(())
}

fn is_directory(path: &str) -> HttpError {
    HttpError::bad_request(format!("path '{path}' is a directory"))
}

fn write_error(path: &str, error: &io::Error) -> HttpError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            HttpError::new(StatusCode::INSUFFICIENT_STORAGE, format!("no space left to write '{path}'"))
        }
        io::ErrorKind::NotADirectory => {
            HttpError::bad_request(format!("path '{path}' leads through something that is no directory"))
        }
        io::ErrorKind::IsADirectory => is_directory(path),
        _ if is_impossible_path(error) => HttpError::bad_request(format!("path '{path}': {error}")),
        _ => HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write '{path}': {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn put(path: &Path, contents: &'static [u8]) -> Result<(), HttpError> {
        let mut staged = Staged::begin(path.to_str().unwrap(), None)?;
        staged.write(&Bytes::from_static(contents))?;
        staged.finish(&BTreeMap::new())
    }

    fn entries(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn files_appear_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/f");
        let mut staged = Staged::begin(path.to_str().unwrap(), None).unwrap_or_else(|e| panic!("{e:?}"));
        staged.write(&Bytes::from_static(b"half")).unwrap();
        assert!(!path.exists());
        drop(staged);
        assert_eq!(entries(&dir.path().join("a/b")), 0);
        put(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, NEW_FILE);
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(entries(&dir.path().join("a/b")), 1);
    }

    #[test]
    fn an_old_file_keeps_its_mode_and_links_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("f"), b"old").unwrap();
        fs::set_permissions(at("f"), Permissions::from_mode(0o750)).unwrap();
        symlink("f", at("link")).unwrap();
        put(&at("link"), b"new").unwrap();
        assert_eq!(fs::read(at("f")).unwrap(), b"new");
        assert_eq!(fs::metadata(at("f")).unwrap().mode() & 0o7777, 0o750);
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        symlink("made/by/writing", at("dangling")).unwrap();
        put(&at("dangling"), b"x").unwrap();
        assert_eq!(fs::read(at("made/by/writing")).unwrap(), b"x");
    }

    #[test]
    fn impossible_destinations_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("f"), b"old").unwrap();
        symlink("loop", at("loop")).unwrap();
        let status = |path: &Path| put(path, b"x").unwrap_err().status.as_u16();
        assert_eq!(status(dir.path()), 400);
        assert_eq!(status(Path::new("/")), 400);
        assert_eq!(status(&at("f/x")), 400);
        assert_eq!(status(&at("loop")), 400);
        assert_eq!(status(&at(&"n".repeat(300))), 400);
        assert_eq!(status(Path::new("/dev/null")), 400);
        assert_eq!(fs::read(at("f")).unwrap(), b"old");
    }
}

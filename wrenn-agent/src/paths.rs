//! Paths as clients give them, and the directories that they need.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

/// The mode of new directories.
const NEW_DIRECTORY: u32 = 0o755;

/// A file that is being written beside its destination, to be moved there when it is whole. Watchers do not tell of it
/// but of what it becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Staging {
    /// There is no such file yet.
    New,
    /// It takes the place of an old one.
    Over,
}

impl Staging {
    /// How the names of such files begin.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::New => ".wrenn-upload-new-",
            Self::Over => ".wrenn-upload-over-",
        }
    }

    /// What the file `name` is, if it is such a file.
    pub(crate) fn of(name: &str) -> Option<Self> {
        [Self::New, Self::Over].into_iter().find(|kind| name.starts_with(kind.prefix()))
    }
}

/// The absolute path that `path` means to somebody whose home is `home`, without `.`, `..` and doubled slashes.
///
/// `~` and `~/…` and relative paths start at the home. `..` is taken lexically, as E2B's agent does, and does not
/// lead above the root.
pub(crate) fn resolve(path: &str, home: &str) -> String {
    let from_home = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Some(rest.trim_start_matches('/')),
        _ if path.starts_with('/') => None,
        _ => Some(path),
    };
    match from_home {
        Some(rest) => clean(&format!("{home}/{rest}")),
        None => clean(path),
    }
}

fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Makes a directory and those above it that are missing; new ones belong to `owner` (a user and a group). Blocks.
///
/// Not recursive: paths come from clients, and thousands of levels must not cost stack.
pub(crate) fn make_directories(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        match make_directory(ancestor, owner) {
            Ok(()) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            Err(e) => return Err(e),
        }
    }
    missing.into_iter().rev().try_for_each(|directory| make_directory(directory, owner))
}

fn make_directory(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match DirBuilder::new().mode(NEW_DIRECTORY).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            if path.is_dir() {
                Ok(())
            } else {
                Err(rustix::io::Errno::NOTDIR.into())
            }
        }
        Err(e) => Err(e),
        Ok(()) => match owner {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_as_a_shell_would() {
        for (path, expected) in [
            ("/a/b", "/a/b"),
            ("/a//b/./c/", "/a/b/c"),
            ("/a/../../../b", "/b"),
            ("a.txt", "/home/user/a.txt"),
            ("../x", "/home/x"),
            ("~", "/home/user"),
            ("~/x", "/home/user/x"),
            ("~//x", "/home/user/x"),
            ("~other/x", "/home/user/~other/x"),
            ("", "/home/user"),
            ("/", "/"),
        ] {
            assert_eq!(resolve(path, "/home/user"), expected, "{path}");
        }
        assert_eq!(resolve("x", "/"), "/x");
    }

    #[test]
    fn directories_are_made_to_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        // As deep as the longest path that the kernel takes.
        let depth = (libc::PATH_MAX as usize - dir.path().as_os_str().len() - 1) / 2;
        let deep = dir.path().join(vec!["d"; depth].join("/"));
        make_directories(&deep, None).unwrap();
        assert!(deep.is_dir());
        make_directories(&deep, None).unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("broken")).unwrap();
        for bad in ["f", "f/a", "f/a/b", "broken", "broken/a"] {
            let error = make_directories(&dir.path().join(bad), None).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{bad}");
        }
    }
}

//! Directories made, listed, moved and removed. Everything but [`remove`] blocks.
//!
//! Trees in a guest may be of any depth and width: nothing here recurses on a small stack, and a listing is
//! bounded.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use connectrpc::ConnectError;
use wrenn_agent_api::proto::filesystem as pb;

use super::{Owner, entry, io_error};
use crate::paths::make_directories;
use crate::users::Names;

/// The most entries of one listing: some 15 MB of answer.
const MAX_ENTRIES: usize = 50_000;

/// The stack on which trees are removed: that goes level by level, with an open directory for each, so that the
/// limit on these (see `boot`) comes first.
const REMOVAL_STACK: usize = 128 << 20;
/// The same where the guest has not even that much memory. Trees of more than 16,000 levels are its own doing there.
const SMALL_REMOVAL_STACK: usize = 32 << 20;

/// Makes a directory that is not there yet.
pub(super) fn make(path: &str, owner: Owner) -> Result<pb::EntryInfo, ConnectError> {
    match fs::metadata(path) {
        Ok(old) if old.is_dir() => {
            return Err(ConnectError::already_exists(format!("directory '{path}' exists already")));
        }
        Ok(_) => {
            return Err(ConnectError::invalid_argument(format!("path '{path}' exists and is no directory")));
        }
        Err(_) => {}
    }
    make_directories(Path::new(path), owner).map_err(|e| io_error(path, &e))?;
    entry::describe(path)
}

/// Renames, and describes what is at the destination then.
pub(super) fn rename(source: &str, destination: &str, owner: Owner) -> Result<pb::EntryInfo, ConnectError> {
    fs::symlink_metadata(source).map_err(|e| io_error(source, &e))?;
    if let Some(parent) = Path::new(destination).parent() {
        make_directories(parent, owner).map_err(|e| io_error(parent, &e))?;
    }
    fs::rename(source, destination).map_err(|e| match e.kind() {
        io::ErrorKind::CrossesDevices => ConnectError::failed_precondition(format!(
            "'{source}' and '{destination}' are on different file systems: copy and remove it"
        )),
        _ => io_error(destination, &e),
    })?;
    entry::describe(destination)
}

/// What is in a directory, `depth` levels deep, each directory before what is in it, by name.
pub(super) fn list(path: &str, depth: u32) -> Result<Vec<pb::EntryInfo>, ConnectError> {
    let names = Names::read();
    let mut entries = Vec::new();
    // Directories still to be entered, in reverse; each with how many levels are left.
    let mut waiting = vec![(path.to_owned(), depth)];
    let mut first = true;
    while let Some((directory, levels)) = waiting.pop() {
        if !first {
            // It was found as a link or file, or is gone by now.
            let Ok(own) = fs::symlink_metadata(&directory) else { continue };
            if entries.len() >= MAX_ENTRIES {
                return Err(too_many(path));
            }
            entries.push(entry::entry(&directory, &own, &names));
            if levels == 0 || !own.is_dir() {
                continue;
            }
        }
        let children = match children(&directory) {
            Err(e) if first => return Err(io_error(path, &e)),
            // Removed meanwhile, or too deep for a path.
            Err(_) => continue,
            Ok(None) => return Err(too_many(path)),
            Ok(Some(children)) => children,
        };
        first = false;
        if waiting.len() + children.len() > MAX_ENTRIES {
            return Err(too_many(path));
        }
        let base = directory.trim_end_matches('/');
        waiting.extend(children.iter().rev().map(|name| (format!("{base}/{name}"), levels - 1)));
    }
    Ok(entries)
}

/// The names in a directory, sorted; nothing if there are more than anybody may list. Names that are not UTF-8 are
/// left out: the protocol cannot say them.
fn children(directory: &str) -> io::Result<Option<Vec<String>>> {
    let mut names = Vec::new();
    for child in fs::read_dir(directory)? {
        if let Ok(name) = str::from_utf8(child?.file_name().as_bytes()) {
            names.push(name.to_owned());
        }
        if names.len() > MAX_ENTRIES {
            return Ok(None);
        }
    }
    names.sort_unstable();
    Ok(Some(names))
}

fn too_many(path: &str) -> ConnectError {
    ConnectError::resource_exhausted(format!(
        "more than {MAX_ENTRIES} entries in '{path}': list fewer levels"
    ))
}

/// Removes what is at `path`, with all that is in it; what is not there is removed already.
pub(super) async fn remove(path: String) -> Result<(), ConnectError> {
    if path == "/" {
        return Err(ConnectError::invalid_argument("the root directory cannot be removed"));
    }
    let (done, result) = tokio::sync::oneshot::channel();
    let work = Arc::new(Mutex::new(Some((path, done))));
    let spawn = |stack_size: usize| {
        let work = Arc::clone(&work);
        std::thread::Builder::new().stack_size(stack_size).spawn(move || {
            let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some((path, done)) = work {
                let _ = done.send(remove_now(&path).map_err(|e| io_error(&path, &e)));
            }
        })
    };
    let thread = spawn(REMOVAL_STACK).or_else(|_| spawn(SMALL_REMOVAL_STACK));
    thread.map_err(|e| ConnectError::resource_exhausted(format!("no thread to remove with: {e}")))?;
    result.await.unwrap_or_else(|_| Err(ConnectError::internal("the removal broke off")))
}

fn remove_now(path: &str) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(own) if own.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use connectrpc::ErrorCode;

    use super::*;

    #[test]
    fn listings_go_depth_first_by_name_and_follow_no_links() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().display().to_string();
        make(&format!("{base}/b/c/d"), None).unwrap();
        for file in ["a", "b/z", "b.x", "b/c/y"] {
            fs::write(format!("{base}/{file}"), "").unwrap();
        }
        std::os::unix::fs::symlink("b", dir.path().join("link")).unwrap();
        let listed = |path: &str, depth| {
            let entries = list(&format!("{base}{path}"), depth).unwrap();
            let below = |entry: &pb::EntryInfo| entry.path.strip_prefix(&base).unwrap().to_owned();
            entries.iter().map(below).collect::<Vec<_>>()
        };
        assert_eq!(listed("", 1), ["/a", "/b", "/b.x", "/link"]);
        assert_eq!(listed("", 2), ["/a", "/b", "/b/c", "/b/z", "/b.x", "/link"]);
        assert_eq!(listed("", 9), ["/a", "/b", "/b/c", "/b/c/d", "/b/c/y", "/b/z", "/b.x", "/link"]);
        // Asked for itself, a link is followed, and its own path stays.
        assert_eq!(listed("/link", 1), ["/link/c", "/link/z"]);
        assert_eq!(list(&format!("{base}/a"), 1).unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(list(&format!("{base}/no"), 1).unwrap_err().code, ErrorCode::NotFound);
        assert!(list("/", 1).unwrap().iter().any(|entry| entry.path == "/etc"));
    }

    #[test]
    fn a_directory_too_large_to_list_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().display().to_string();
        for n in 0..=MAX_ENTRIES {
            fs::write(format!("{base}/{n}"), "").unwrap();
        }
        assert_eq!(list(&base, 1).unwrap_err().code, ErrorCode::ResourceExhausted);
    }

    #[tokio::test]
    async fn trees_of_any_depth_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        // Deeper than any path can say.
        let mut at =
            rustix::fs::open(&top, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
        let depth = 900;
        for _ in 0..depth {
            let name = "deep".repeat(20);
            rustix::fs::mkdirat(&at, &name, rustix::fs::Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, &name, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())
                .unwrap();
        }
        drop(at);
        let path = top.display().to_string();
        remove(path.clone()).await.unwrap();
        assert!(!top.exists());
        remove(path.clone()).await.unwrap();
        remove(format!("{path}/below/nothing")).await.unwrap();
        assert_eq!(remove("/".into()).await.unwrap_err().code, ErrorCode::InvalidArgument);
        // A link goes, not what it leads to.
        fs::create_dir(&top).unwrap();
        std::os::unix::fs::symlink(&top, dir.path().join("link")).unwrap();
        remove(dir.path().join("link").display().to_string()).await.unwrap();
        assert!(top.exists());
    }

    #[test]
    fn making_and_moving() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("f"), "1").unwrap();
        assert_eq!(make(&at("a/b"), None).unwrap().path, at("a/b"));
        assert_eq!(make(&at("a/b"), None).unwrap_err().code, ErrorCode::AlreadyExists);
        assert_eq!(make(&at("f"), None).unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(make(&at("f/x"), None).unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(rename(&at("f"), &at("new/dir/g"), None).unwrap().path, at("new/dir/g"));
        assert_eq!(fs::read(at("new/dir/g")).unwrap(), b"1");
        assert_eq!(rename(&at("f"), &at("h"), None).unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(rename(&at("a"), &at("a/b/c"), None).unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(
            rename(&at("new/dir/g"), "/proc/x", None).unwrap_err().code,
            ErrorCode::FailedPrecondition
        );
    }
}

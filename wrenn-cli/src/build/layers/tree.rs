//! A directory tree, and ways about it that never leave it.
//!
//! Every function opens, makes or removes one name in a directory that is already open, and no system call here follows a
//! link in the last component of its path, which is the only one.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::error::EntryError::{self, Refused, TooLarge};

/// Directories are nested no deeper. Each level on a way takes a descriptor.
const DEEPEST: usize = 256;
/// So many links are read on one way, as by the kernel.
const MOST_LINKS: usize = 40;
/// Directories that no entry describes have this mode, and belong to root.
const DEFAULT_MODE: Mode = Mode::from_raw_mode(0o755);
/// While layers are applied, so that an ordinary user can fill a directory that will be closed to writing.
pub(super) const FILLING_MODE: Mode = Mode::RWXU;

/// A root directory.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
}

/// A directory of the tree.
#[derive(Debug)]
pub(super) struct Dir {
    pub(super) fd: OwnedFd,
    /// Where it is from the root, without links on the way.
    pub(super) path: PathBuf,
}

/// What to do about directories that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Stop,
}

impl Tree {
    pub(super) fn open(root: &Path) -> rustix::io::Result<Self> {
        Ok(Self { root: open_dir(CWD, root.as_os_str(), OFlags::PATH)? })
    }

    /// The directory at `path`, which has plain components only. Symbolic links on the way are walked beneath the root.
    /// `None` where it is not there and was not to be made.
    ///
    /// # Errors
    /// [`EntryError::Refused`] where something on the way is no directory, or there are too many links;
    /// [`EntryError::TooLarge`] where it is too deep.
    pub(super) fn walk(&self, path: &Path, missing: Missing) -> Result<Option<Dir>, EntryError> {
        let mut ahead: Vec<OsString> = Vec::new();
        push_components(&mut ahead, path);
        let mut way: Vec<(OwnedFd, OsString)> = Vec::new();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == ".." {
                // Only links have these. At the root there is no further up.
                way.pop();
                continue;
            }
            if way.len() == DEEPEST {
                return Err(TooLarge { what: "the directories it lies in", limit: DEEPEST as u64 });
            }
            let at = way.last().map_or(self.root.as_fd(), |(fd, _)| fd.as_fd());
            let next = match open_dir(at, &name, OFlags::PATH) {
                Ok(next) => next,
                Err(Errno::NOENT) if missing == Missing::Stop => return Ok(None),
                Err(Errno::NOENT) => {
                    make_dir(at, &name, DEFAULT_MODE).map_err(EntryError::io("make a directory for it"))?
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let target = match fs::readlinkat(at, name.as_os_str(), Vec::new()) {
                        Ok(target) => OsString::from_vec(target.into_bytes()),
                        Err(Errno::INVAL) if missing == Missing::Stop => return Ok(None),
                        Err(Errno::INVAL) => {
                            return Err(Refused("lies beneath something that is no directory"));
                        }
                        Err(error) => return Err(EntryError::io("read a link on the way to it")(error)),
                    };
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Refused("lies behind too many symbolic links"));
                    }
                    if target.as_bytes().starts_with(b"/") {
                        way.clear();
                    }
                    push_components(&mut ahead, Path::new(&target));
                    continue;
                }
                Err(error) => return Err(EntryError::io("open the directory it lies in")(error)),
            };
            way.push((next, name));
        }
        let path = way.iter().map(|(_, name)| name).collect();
        let fd = match way.pop() {
            Some((fd, _)) => fd,
            None => self.root.try_clone().map_err(EntryError::io("open the root"))?,
        };
        Ok(Some(Dir { fd, path }))
    }
}

impl Dir {
    /// Makes the directory `name`, unless it is one already. Anything else of that name must be gone.
    pub(super) fn make_dir(&self, name: &OsStr) -> rustix::io::Result<()> {
        match make_dir(self.fd.as_fd(), name, FILLING_MODE) {
            Err(Errno::EXIST) => open_dir(self.fd.as_fd(), name, OFlags::PATH).map(drop),
            result => result.map(drop),
        }
    }

    /// Whether `name` is a directory, and no link to one.
    pub(super) fn has_dir(&self, name: &OsStr) -> bool {
        open_dir(self.fd.as_fd(), name, OFlags::PATH).is_ok()
    }

    /// The directory itself, open such that its attributes can be set.
    pub(super) fn reopen(&self) -> rustix::io::Result<OwnedFd> {
        open_dir(self.fd.as_fd(), OsStr::new("."), OFlags::RDONLY)
    }

    /// The names in the directory.
    pub(super) fn names(&self) -> rustix::io::Result<Vec<OsString>> {
        names(&self.reopen()?)
    }

    /// Removes `name` and all below it but what `keep` says is to stay, by its path from the root, and the directories
    /// that leads through. One that is not there is fine.
    pub(super) fn remove(&self, name: &OsStr, keep: &dyn Fn(&Path) -> bool) -> rustix::io::Result<()> {
        remove(self.fd.as_fd(), name, &self.path.join(name), keep)
    }
}

fn push_components(ahead: &mut Vec<OsString>, path: &Path) {
    for part in path.components().rev() {
        match part {
            Component::Normal(name) => ahead.push(name.to_owned()),
            Component::ParentDir => ahead.push("..".into()),
            _ => {}
        }
    }
}

/// Opens the directory `name` if it is one, and no link.
fn open_dir(at: BorrowedFd<'_>, name: &OsStr, how: OFlags) -> rustix::io::Result<OwnedFd> {
    fs::openat(at, name, how | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Makes a directory and gives it the mode whatever the process's umask.
fn make_dir(at: BorrowedFd<'_>, name: &OsStr, mode: Mode) -> rustix::io::Result<OwnedFd> {
    fs::mkdirat(at, name, FILLING_MODE)?;
    let made = open_dir(at, name, OFlags::RDONLY)?;
    fs::fchmod(&made, mode)?;
    Ok(made)
}

fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

/// Recursion ends at [`DEEPEST`] directories, as [`Tree::walk`] makes no more.
fn remove(
    at: BorrowedFd<'_>,
    name: &OsStr,
    path: &Path,
    keep: &dyn Fn(&Path) -> bool,
) -> rustix::io::Result<()> {
    let kept = keep(path);
    match open_dir(at, name, OFlags::RDONLY) {
        Ok(dir) => {
            for child in names(&dir)? {
                remove(dir.as_fd(), &child, &path.join(&child), keep)?;
            }
            if kept {
                return Ok(());
            }
            match fs::unlinkat(at, name, AtFlags::REMOVEDIR) {
                // Something in it stays.
                Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
                result => result,
            }
        }
        Err(Errno::NOTDIR | Errno::LOOP) if kept => Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => fs::unlinkat(at, name, AtFlags::empty()),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

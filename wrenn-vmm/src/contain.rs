//! What a monitor is held in, so that a guest which takes it over has gained next to nothing.
//!
//! - It runs as a user of its own, with no group and no capability, and can gain none (`no_new_privs`).
//! - It has its own mount, PID, IPC and UTS namespaces, beside the network namespace that it is given. It is PID 1.
//! - Its root holds what it needs and nothing else, each under the path that it has outside: see [`crate::MonitorSpec`].
//!   There is no `/proc` and no `/sys`, and nothing can be written to but the directories that say so.
//! - It may use as much of the machine as its cgroup lets it.
//!
//! Whatever can be checked is checked before the process is made: [`ContainmentError`].

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::cgroup::{CgroupTree, Limits};

/// The containment of one monitor.
///
/// User and group should be nobody else's, another monitor's least of all: what one user's processes can do to each
/// other is then never what one sandbox can do to another, whatever else fails.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Containment {
    /// The user and the group that the monitor runs as.
    pub user: u32,
    /// Files and directories that it may read, under the same path. They must be readable for everybody, or for the
    /// user; it does not matter what lies above them.
    pub readable: Vec<PathBuf>,
    /// Directories that it sees under the same path and may write to as far as their owners and modes allow. The
    /// directory of the API socket need not be named.
    pub writable: Vec<PathBuf>,
    /// Where its cgroup is made, and its limits; absent means that it stays in the caller's.
    pub cgroup: Option<(CgroupTree, Limits)>,
    /// The most descriptors that it may have open.
    pub open_files: u64,
    /// The most processes and threads that its user may have; a cgroup's limit is usually the smaller one.
    pub processes: u64,
}

impl Containment {
    /// The containment of a monitor that runs as `user`, with no files but what every monitor needs and without a cgroup.
    pub fn new(user: u32) -> Self {
        Self {
            user,
            readable: Vec::new(),
            writable: Vec::new(),
            cgroup: None,
            open_files: 1024,
            processes: 256,
        }
    }

    /// Checks what can be known to fail; `api_dir` is the directory of the API socket.
    pub(crate) fn check(&self, api_dir: &Path) -> Result<(), ContainmentError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ContainmentError::NotRoot);
        }
        // 0 is what it is about; the other means "as it is" to the kernel.
        if [0, u32::MAX].contains(&self.user) {
            return Err(ContainmentError::User { user: self.user });
        }
        for path in &self.readable {
            self.check_readable(path)?;
        }
        let writable = || self.writable.iter().map(PathBuf::as_path).chain([api_dir]);
        for path in writable() {
            check_place(path)?;
            let found = path.metadata().map_err(ContainmentError::path("open", path))?;
            if !found.is_dir() {
                return Err(ContainmentError::path("write to", path)(io::ErrorKind::NotADirectory.into()));
            }
        }
        let mut paths: Vec<_> = self.readable.iter().map(PathBuf::as_path).chain(writable()).collect();
        paths.sort();
        // Sorted by components, a path comes right before what is below it.
        match paths.windows(2).find(|pair| pair[1].starts_with(pair[0])) {
            Some(pair) => {
                Err(ContainmentError::Overlap { outer: pair[0].to_owned(), inner: pair[1].to_owned() })
            }
            None => Ok(()),
        }
    }

    fn check_readable(&self, path: &Path) -> Result<(), ContainmentError> {
        check_place(path)?;
        let found = path.metadata().map_err(ContainmentError::path("open", path))?;
        let needed = if found.is_dir() { 0o5 } else { 0o4 };
        let as_owner = found.uid() == self.user && (found.mode() >> 6) & needed == needed;
        if as_owner || found.mode() & needed == needed {
            return Ok(());
        }
        Err(ContainmentError::path("read", path)(io::ErrorKind::PermissionDenied.into()))
    }
}

/// A path must mean the same inside, and not be in the way of what every monitor has there.
fn check_place(path: &Path) -> Result<(), ContainmentError> {
    let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    let taken =
        path.parent().is_none() || ["/bin", "/dev", crate::VM_DIR].iter().any(|it| path.starts_with(it));
    if path.is_absolute() && plain && !taken {
        return Ok(());
    }
    Err(ContainmentError::Place { path: path.to_owned() })
}

/// A monitor cannot be contained as it was asked for. Nothing was touched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainmentError {
    /// Only root can give up being root.
    #[error("a monitor can be contained by root only; run as root, or start it without containment")]
    NotRoot,
    /// A user that no monitor can run as.
    #[error("the user {user} is none that a monitor could be confined to; choose one that nobody else has")]
    User {
        /// The user's number.
        user: u32,
    },
    /// A path that cannot be shown to the monitor.
    #[error("{} cannot be shown to a monitor: the path is relative, has '..' in it, or is in the place of its own files", path.display())]
    Place {
        /// The path.
        path: PathBuf,
    },
    /// A path lies within another one.
    #[error("{} lies in {}, which the monitor is shown as well; name one of them", inner.display(), outer.display())]
    Overlap {
        /// The directory.
        outer: PathBuf,
        /// What is in it.
        inner: PathBuf,
    },
    /// The monitor could not use a path that it is to be shown.
    #[error("the monitor's user could not {action} {}", path.display())]
    Path {
        /// What it could not do.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ContainmentError {
    pub(crate) fn path(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Path { action, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Root's checks come after the first; without root there is only that one.
    fn check(edit: impl FnOnce(&mut Containment)) -> Option<ContainmentError> {
        let mut containment = Containment::new(1_879_048_192);
        edit(&mut containment);
        let api_dir = tempfile::tempdir().unwrap();
        let result = containment.check(api_dir.path());
        if !rustix::process::geteuid().is_root() {
            assert!(matches!(result, Err(ContainmentError::NotRoot)));
            eprintln!("SKIP: the other rules are for root");
            return None;
        }
        Some(result.expect_err("it is refused"))
    }

    #[test]
    fn no_monitor_is_contained_as_root() {
        for user in [0, u32::MAX] {
            let Some(error) = check(|it| it.user = user) else { return };
            assert!(matches!(error, ContainmentError::User { user: refused } if refused == user));
        }
    }

    #[test]
    fn paths_keep_off_each_other_and_of_the_monitors_own() {
        for bad in ["/", "a/b", "/etc/../root", "/bin/sh", "/dev/null", "/run/wrenn/vm/x"] {
            let Some(error) = check(|it| it.readable = vec![bad.into()]) else { return };
            assert!(matches!(error, ContainmentError::Place { .. }), "{bad}: {error:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let inner = dir.path().join("inner");
        fs::write(&inner, "").unwrap();
        let both = |it: &mut Containment| {
            it.writable = vec![dir.path().into()];
            it.readable = vec![inner.clone()];
        };
        let Some(error) = check(both) else { return };
        assert!(matches!(error, ContainmentError::Overlap { .. }), "{error:?}");
    }

    #[test]
    fn what_the_user_could_not_use_is_told_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let absent = dir.path().join("absent");
        for (readable, writable) in [
            (vec![secret.clone()], vec![]),
            (vec![dir.path().to_owned()], vec![]),
            (vec![absent.clone()], vec![]),
            (vec![], vec![secret.clone()]),
            (vec![], vec![absent]),
        ] {
            let expected = readable.iter().chain(&writable).next().cloned();
            let Some(error) = check(|it| (it.readable, it.writable) = (readable, writable)) else { return };
            let ContainmentError::Path { path, .. } = &error else { panic!("{error:?}") };
            assert_eq!(Some(path), expected.as_ref());
        }
    }
}

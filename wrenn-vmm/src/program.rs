//! Which monitor program to run, and where to find it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::error::VmmError;

/// The environment variable that names the monitor program.
const CHOICE_VARIABLE: &str = "WRENN_MONITOR";
/// The program that comes with this library.
const BUILT_IN: &str = "wrenn-monitor";

/// A program that answers the Firecracker REST API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorProgram {
    path: PathBuf,
    /// What the program sees as its own name, where that is not its path.
    argv0: Option<OsString>,
}

impl MonitorProgram {
    /// Finds the monitor: `explicit`, else the one that the environment variable `WRENN_MONITOR` names, else the
    /// built-in `wrenn-monitor`, beside the running executable, in the directory above it, or on `PATH`.
    ///
    /// A bare name without a slash, such as `firecracker`, is looked up on `PATH`.
    ///
    /// # Errors
    /// [`VmmError::MonitorNotFound`] with every path that was tried, and [`VmmError::MonitorNotExecutable`].
    ///
    /// ```
    /// use std::path::Path;
    /// use wrenn_vmm::{MonitorProgram, VmmError};
    /// let shell = MonitorProgram::discover(Some(Path::new("/bin/sh")))?;
    /// assert_eq!(shell.path(), Path::new("/bin/sh"));
    /// let missing = MonitorProgram::discover(Some(Path::new("/no/monitor")));
    /// assert!(matches!(missing, Err(VmmError::MonitorNotFound { .. })));
    /// # Ok::<(), VmmError>(())
    /// ```
    pub fn discover(explicit: Option<&Path>) -> Result<Self, VmmError> {
        let executable = std::env::current_exe().ok();
        let search = Search {
            explicit,
            variable: std::env::var_os(CHOICE_VARIABLE).filter(|value| !value.is_empty()),
            executable: executable.as_deref(),
            path: std::env::var_os("PATH").unwrap_or_default(),
        };
        search.run()
    }

    /// The running executable itself, as a single-binary program uses it: it is started again with `marker` as
    /// its `argv[0]`, and must then run the monitor instead of its own `main`.
    ///
    /// It works even after the file was replaced or deleted, because the kernel still holds it.
    pub fn reexec(marker: impl Into<OsString>) -> Self {
        Self { path: "/proc/self/exe".into(), argv0: Some(marker.into()) }
    }

    /// The program's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn argv0(&self) -> Option<&OsStr> {
        self.argv0.as_deref()
    }
}

/// The inputs of a search, apart from the process they come from.
struct Search<'a> {
    explicit: Option<&'a Path>,
    variable: Option<OsString>,
    executable: Option<&'a Path>,
    path: OsString,
}

impl Search<'_> {
    fn run(&self) -> Result<MonitorProgram, VmmError> {
        let chosen = self.explicit.map(Path::to_owned).or_else(|| self.variable.clone().map(PathBuf::from));
        let (wanted, candidates) = match chosen {
            Some(name) if is_bare(&name) => (name.clone(), self.on_path(&name)),
            Some(path) => (path.clone(), vec![path]),
            None => {
                let name = PathBuf::from(BUILT_IN);
                let candidates = self.beside().into_iter().chain(self.on_path(&name)).collect();
                (name, candidates)
            }
        };
        first_executable(&wanted, candidates)
    }

    /// Test binaries and examples lie one directory below the programs of the same build.
    fn beside(&self) -> Vec<PathBuf> {
        let ancestors = self.executable.into_iter().flat_map(|path| path.ancestors().skip(1).take(2));
        ancestors.map(|dir| dir.join(BUILT_IN)).collect()
    }

    fn on_path(&self, name: &Path) -> Vec<PathBuf> {
        // An empty or relative entry would make the choice depend on the current directory.
        std::env::split_paths(&self.path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).collect()
    }
}

fn is_bare(name: &Path) -> bool {
    name.components().count() == 1 && !name.as_os_str().as_encoded_bytes().contains(&b'/')
}

fn first_executable(wanted: &Path, candidates: Vec<PathBuf>) -> Result<MonitorProgram, VmmError> {
    let mut unusable = None;
    for path in &candidates {
        let Ok(meta) = path.metadata() else { continue };
        if meta.is_file() && access(path, Access::EXEC_OK).is_ok() {
            // The monitor is started in `/`: a relative path must not mean something else there.
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            return Ok(MonitorProgram { path, argv0: None });
        }
        unusable.get_or_insert_with(|| path.clone());
    }
    Err(match unusable {
        Some(path) => VmmError::MonitorNotExecutable { path },
        None => VmmError::MonitorNotFound { wanted: wanted.display().to_string(), searched: candidates },
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory tree of empty files, executable where the name is so marked.
    fn tree(files: &[(&str, bool)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, executable) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(if *executable { 0o755 } else { 0o644 }))
                .unwrap();
        }
        dir
    }

    fn found(search: &Search<'_>, root: &Path) -> String {
        search.run().unwrap().path().strip_prefix(root).unwrap().display().to_string()
    }

    #[test]
    fn the_choices_come_in_their_order() {
        let tree = tree(&[
            ("mine/vmm", true),
            ("env/vmm", true),
            ("build/wrenn-monitor", true),
            ("bin/wrenn-monitor", true),
            ("bin/firecracker", true),
        ]);
        let root = tree.path();
        let (mine, exe) = (root.join("mine/vmm"), root.join("build/deps/test"));
        let mut search = Search {
            explicit: Some(&mine),
            variable: Some(root.join("env/vmm").into()),
            executable: Some(&exe),
            path: root.join("bin").into(),
        };
        assert_eq!(found(&search, root), "mine/vmm");
        search.explicit = None;
        assert_eq!(found(&search, root), "env/vmm");
        search.variable = Some("firecracker".into());
        assert_eq!(found(&search, root), "bin/firecracker");
        search.variable = None;
        assert_eq!(found(&search, root), "build/wrenn-monitor");
        search.executable = None;
        assert_eq!(found(&search, root), "bin/wrenn-monitor");
    }

    #[test]
    fn what_cannot_run_is_told_apart_from_what_is_not_there() {
        let tree = tree(&[("bin/wrenn-monitor", false), ("dir/wrenn-monitor/x", true)]);
        let root = tree.path();
        let search =
            |path: PathBuf| Search { explicit: None, variable: None, executable: None, path: path.into() };
        for dir in ["bin", "dir"] {
            let refused = search(root.join(dir)).run().unwrap_err();
            let expected = root.join(dir).join("wrenn-monitor");
            assert!(matches!(refused, VmmError::MonitorNotExecutable { path } if path == expected));
        }
        let refused = search(root.join("empty")).run().unwrap_err();
        let expected = vec![root.join("empty/wrenn-monitor")];
        assert!(matches!(refused, VmmError::MonitorNotFound { searched, .. } if searched == expected));
        let relative = search("".into()).run().unwrap_err();
        assert!(matches!(relative, VmmError::MonitorNotFound { searched, .. } if searched.is_empty()));
    }

    #[test]
    fn an_unusable_file_does_not_hide_a_usable_one() {
        let tree = tree(&[("a/wrenn-monitor", false), ("b/wrenn-monitor", true)]);
        let path = std::env::join_paths([tree.path().join("a"), tree.path().join("b")]).unwrap();
        let search = Search { explicit: None, variable: None, executable: None, path };
        assert_eq!(found(&search, tree.path()), "b/wrenn-monitor");
    }
}

//! Programs that a host starts: which one, and where to find it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// A program to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    /// What the program sees as its own name, where that is not its path.
    argv0: Option<OsString>,
}

/// No program could be found that can be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// There is none.
    #[error("no program {wanted:?} found; looked at: {}", list(searched))]
    NotFound {
        /// The name or path that was looked for.
        wanted: String,
        /// Every path that was tried, in order.
        searched: Vec<PathBuf>,
    },
    /// It is there but cannot be run.
    #[error("the program {} is not an executable file; give it permission with `chmod +x`", path.display())]
    NotExecutable {
        /// The file.
        path: PathBuf,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    if paths.is_empty() { "nothing".to_owned() } else { paths.join(", ") }
}

impl Program {
    /// Finds a program: `explicit`, else the one that the environment variable `variable` names, else `built_in`, beside the
    /// running executable, in the directory above it, or on `PATH`.
    ///
    /// A bare name without a slash is looked up on `PATH`.
    ///
    /// # Errors
    /// [`ProgramError`].
    ///
    /// ```
    /// use std::path::Path;
    /// use wrenn_base::{Program, ProgramError};
    /// let shell = Program::discover(Some(Path::new("/bin/sh")), "MY_PROGRAM", "mine")?;
    /// assert_eq!(shell.path(), Path::new("/bin/sh"));
    /// let missing = Program::discover(Some(Path::new("/no/program")), "MY_PROGRAM", "mine");
    /// assert!(matches!(missing, Err(ProgramError::NotFound { .. })));
    /// # Ok::<(), ProgramError>(())
    /// ```
    pub fn discover(explicit: Option<&Path>, variable: &str, built_in: &str) -> Result<Self, ProgramError> {
        let executable = std::env::current_exe().ok();
        let search = Search {
            explicit,
            variable: std::env::var_os(variable).filter(|value| !value.is_empty()),
            built_in,
            executable: executable.as_deref(),
            path: std::env::var_os("PATH").unwrap_or_default(),
        };
        search.run()
    }

    /// The running executable itself, as a single-binary program uses it: it is started again with `marker` as
    /// its `argv[0]`, and must then do that other program's work instead of its own.
    ///
    /// It works even after the file was replaced or deleted, because the kernel still holds it.
    pub fn reexec(marker: impl Into<OsString>) -> Self {
        Self { path: "/proc/self/exe".into(), argv0: Some(marker.into()) }
    }

    /// The program's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the program is to see as its own name, where that is not its path.
    pub fn argv0(&self) -> Option<&OsStr> {
        self.argv0.as_deref()
    }
}

/// The inputs of a search, apart from the process they come from.
struct Search<'a> {
    explicit: Option<&'a Path>,
    variable: Option<OsString>,
    /// The name of the program that comes with this library.
    built_in: &'a str,
    executable: Option<&'a Path>,
    path: OsString,
}

impl Search<'_> {
    fn run(&self) -> Result<Program, ProgramError> {
        let chosen = self.explicit.map(Path::to_owned).or_else(|| self.variable.clone().map(PathBuf::from));
        let (wanted, candidates) = match chosen {
            Some(name) if is_bare(&name) => (name.clone(), self.on_path(&name)),
            Some(path) => (path.clone(), vec![path]),
            None => {
                let name = PathBuf::from(self.built_in);
                let candidates = self.beside().into_iter().chain(self.on_path(&name)).collect();
                (name, candidates)
            }
        };
        first_executable(&wanted, candidates)
    }

    /// Test binaries and examples lie one directory below the programs of the same build.
    fn beside(&self) -> Vec<PathBuf> {
        let ancestors = self.executable.into_iter().flat_map(|path| path.ancestors().skip(1).take(2));
        ancestors.map(|dir| dir.join(self.built_in)).collect()
    }

    fn on_path(&self, name: &Path) -> Vec<PathBuf> {
        // An empty or relative entry would make the choice depend on the current directory.
        std::env::split_paths(&self.path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).collect()
    }
}

fn is_bare(name: &Path) -> bool {
    name.components().count() == 1 && !name.as_os_str().as_encoded_bytes().contains(&b'/')
}

fn first_executable(wanted: &Path, candidates: Vec<PathBuf>) -> Result<Program, ProgramError> {
    let mut unusable = None;
    for path in &candidates {
        let Ok(meta) = path.metadata() else { continue };
        if meta.is_file() && access(path, Access::EXEC_OK).is_ok() {
            // It may be started in `/`: a relative path must not mean something else there.
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            return Ok(Program { path, argv0: None });
        }
        unusable.get_or_insert_with(|| path.clone());
    }
    Err(match unusable {
        Some(path) => ProgramError::NotExecutable { path },
        None => ProgramError::NotFound { wanted: wanted.display().to_string(), searched: candidates },
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
            built_in: "wrenn-monitor",
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
        let search = |path: PathBuf| Search {
            explicit: None,
            variable: None,
            built_in: "wrenn-monitor",
            executable: None,
            path: path.into(),
        };
        for dir in ["bin", "dir"] {
            let refused = search(root.join(dir)).run().unwrap_err();
            let expected = root.join(dir).join("wrenn-monitor");
            assert!(matches!(refused, ProgramError::NotExecutable { path } if path == expected));
        }
        let refused = search(root.join("empty")).run().unwrap_err();
        let expected = vec![root.join("empty/wrenn-monitor")];
        assert!(matches!(refused, ProgramError::NotFound { searched, .. } if searched == expected));
        let relative = search("".into()).run().unwrap_err();
        assert!(matches!(relative, ProgramError::NotFound { searched, .. } if searched.is_empty()));
    }

    #[test]
    fn an_unusable_file_does_not_hide_a_usable_one() {
        let tree = tree(&[("a/wrenn-monitor", false), ("b/wrenn-monitor", true)]);
        let path = std::env::join_paths([tree.path().join("a"), tree.path().join("b")]).unwrap();
        let search =
            Search { explicit: None, variable: None, built_in: "wrenn-monitor", executable: None, path };
        assert_eq!(found(&search, tree.path()), "b/wrenn-monitor");
    }
}

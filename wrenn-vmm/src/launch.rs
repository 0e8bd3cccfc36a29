//! Turns a [`MonitorSpec`] into a running process.
//!
//! Whatever can be checked before the fork is checked there, where an error can say what it is about.
//! A failure after it is reported by the child as a [`SetupStep`]. Either way no process is left, and no mount:
//! mounts die with the child's own mount namespace.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::console::Console;
use crate::error::{SetupStep, VmmError};
use crate::spec::{DiskMount, MonitorSpec, ROOT_DISK_PATH, VM_DIR};
use crate::sys::{ChildSetup, DiskSetup};

/// The bytes of `sockaddr_un.sun_path`, less the one that ends it.
const SOCKET_PATH_LIMIT: usize = 107;

/// The only variables a monitor inherits: the caller's others may be secrets, and a guest that takes the
/// monitor over could read them.
const KEPT_VARIABLES: [&str; 2] = ["LD_LIBRARY_PATH", "RUST_BACKTRACE"];

/// The same spec with every path made absolute, as the monitor runs in `/`.
pub(crate) fn absolute(mut spec: MonitorSpec) -> Result<MonitorSpec, VmmError> {
    let fix = |what: &'static str, path: &mut PathBuf| {
        let fixed = std::path::absolute(&*path);
        *path = fixed.map_err(|source| VmmError::Prepare { what, path: path.clone(), source })?;
        Ok::<(), VmmError>(())
    };
    fix("the API socket", &mut spec.api_socket)?;
    fix("the console log", &mut spec.console_log)?;
    if let Some(netns) = &mut spec.netns {
        fix("the network namespace", netns)?;
    }
    if let Some(disk) = &mut spec.disk {
        fix("the disk", &mut disk.source)?;
    }
    if spec.api_socket.as_os_str().len() > SOCKET_PATH_LIMIT {
        return Err(VmmError::SocketPathTooLong { path: spec.api_socket, limit: SOCKET_PATH_LIMIT });
    }
    Ok(spec)
}

/// Removes the socket that an earlier monitor may have left: a monitor refuses to start where one is.
pub(crate) fn clear_socket(path: &Path) -> Result<(), VmmError> {
    let failed = |source| VmmError::Prepare { what: "the API socket", path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            Err(VmmError::SocketPathOccupied { path: path.to_owned() })
        }
        Ok(_) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        },
    }
}

/// Starts the process; returns once it has become the monitor program.
pub(crate) fn launch(spec: &MonitorSpec) -> Result<(Child, Console), VmmError> {
    clear_socket(&spec.api_socket)?;
    let console_failed =
        |source| VmmError::Prepare { what: "the console log", path: spec.console_log.clone(), source };
    let console = Console::open(&spec.console_log).map_err(console_failed)?;
    let spawn_failed = |source| VmmError::Spawn { program: spec.program.path().to_owned(), source };
    let (failed_step, step_writer) =
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|e| spawn_failed(e.into()))?;
    let setup = ChildSetup {
        netns: spec.netns.as_deref().map(open_netns).transpose()?,
        disk: spec.disk.as_ref().map(prepare_disk).transpose()?,
        failed_step: step_writer,
    };
    let mut command = command(spec);
    command.stdin(Stdio::null());
    command.stdout(console.writer().map_err(console_failed)?);
    command.stderr(console.writer().map_err(console_failed)?);
    setup.install(&mut command);
    match command.spawn() {
        Ok(child) => Ok((child, console)),
        Err(source) => Err(match read_step(failed_step) {
            Some(step) => VmmError::Setup { step, source },
            None => spawn_failed(source),
        }),
    }
}

fn command(spec: &MonitorSpec) -> Command {
    #[allow(clippy::disallowed_methods)] // The monitor is the one process that a sandbox needs.
    let mut command = Command::new(spec.program.path());
    if let Some(argv0) = spec.program.argv0() {
        command.arg0(argv0);
    }
    command.arg("--api-sock").arg(&spec.api_socket).arg("--id").arg(spec.id.as_str());
    if !spec.seccomp {
        command.arg("--no-seccomp");
    }
    command.args(&spec.extra_args).env_clear().envs(kept_environment()).current_dir("/");
    command
}

fn kept_environment() -> impl Iterator<Item = (&'static str, OsString)> {
    KEPT_VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)))
}

fn open_netns(path: &Path) -> Result<OwnedFd, VmmError> {
    let opened = File::open(path);
    opened.map(OwnedFd::from).map_err(|source| VmmError::NetnsMissing { path: path.to_owned(), source })
}

fn prepare_disk(disk: &DiskMount) -> Result<DiskSetup, VmmError> {
    let missing = |source| VmmError::DiskMissing { path: disk.source.clone(), source };
    let meta = disk.source.metadata().map_err(missing)?;
    if !meta.is_file() && !meta.file_type().is_block_device() {
        return Err(missing(io::Error::other("it is neither a file nor a block device")));
    }
    let source = CString::new(disk.source.as_os_str().as_bytes()).map_err(|e| missing(e.into()))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(VM_DIR).map_err(|source| VmmError::Prepare {
        what: "the directory",
        path: VM_DIR.into(),
        source,
    })?;
    let fixed = |path: &str| CString::new(path).expect("the constant has no NUL");
    Ok(DiskSetup { source, dir: fixed(VM_DIR), target: fixed(ROOT_DISK_PATH) })
}

/// The step that the child said had failed; none where it failed before or after the setup.
fn read_step(pipe: OwnedFd) -> Option<SetupStep> {
    let mut index = [0];
    // Not blocking: a fork elsewhere in this process may hold the writing end a little longer.
    File::from(pipe).read_exact(&mut index).ok()?;
    SetupStep::ALL.get(usize::from(index[0])).copied()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use wrenn_base::SandboxId;

    use super::*;
    use crate::MonitorProgram;

    fn spec(socket: impl Into<PathBuf>) -> MonitorSpec {
        let program = MonitorProgram::discover(Some(Path::new("/bin/true"))).unwrap();
        MonitorSpec::new(program, SandboxId::random(), socket, "console.log")
    }

    #[test]
    fn paths_become_absolute_and_long_sockets_are_refused() {
        let mut given = spec("api.sock");
        given.disk = Some(DiskMount { source: "disk".into() });
        given.netns = Some("ns".into());
        let fixed = absolute(given).unwrap();
        for path in
            [&fixed.api_socket, &fixed.console_log, &fixed.disk.unwrap().source, &fixed.netns.unwrap()]
        {
            assert!(path.is_absolute(), "{path:?}");
        }
        assert!(absolute(spec(format!("/{}", "x".repeat(106)))).is_ok());
        let refused = absolute(spec(format!("/{}", "x".repeat(107)))).unwrap_err();
        assert!(matches!(refused, VmmError::SocketPathTooLong { limit: 107, .. }));
    }

    #[test]
    fn only_a_stale_socket_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        clear_socket(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        clear_socket(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(clear_socket(&path), Err(VmmError::SocketPathOccupied { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn monitors_get_the_flags_both_programs_know() {
        let mut spec = spec("/run/a.sock");
        spec.seccomp = false;
        spec.extra_args = vec!["--level".into(), "Debug".into()];
        let command = command(&spec);
        let args: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        let id = spec.id.as_str();
        assert_eq!(args, ["--api-sock", "/run/a.sock", "--id", id, "--no-seccomp", "--level", "Debug"]);
    }

    #[test]
    fn a_disk_must_be_a_file_or_a_block_device() {
        for path in ["/no/such/disk", "/dev/null", "/tmp"] {
            let refused = prepare_disk(&DiskMount { source: path.into() }).err().unwrap();
            assert!(matches!(refused, VmmError::DiskMissing { .. }), "{path}");
        }
    }
}

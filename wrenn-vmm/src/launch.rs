//! Turns a [`MonitorSpec`] into a running process.
//!
//! Whatever can be checked before the process is made is checked there, where an error can say what it is about.
//! A failure after it is reported by the child as a [`SetupStep`](crate::SetupStep). Either way no process is left, and
//! no mount: mounts die with the child's own mount namespace.
//!
//! The API socket's directory belongs to a contained monitor's user until the socket is there, and to whoever owned it
//! again afterwards ([`ApiDir`]): once a guest runs, its monitor cannot put anything else in a socket's place.

mod confine;
mod root;
#[allow(unsafe_code)] // Code between clone and exec: nothing the compiler can check.
mod sys;

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};
use rustix::process::Resource;

use self::confine::Confinement;
use self::root::RootPlan;
pub(crate) use self::sys::Spawned;
use self::sys::{ChildSetup, DiskSetup, Place, Program, SpawnError};
use crate::cgroup::Cgroup;
use crate::console::Console;
use crate::contain::{Containment, ContainmentError};
use crate::error::VmmError;
use crate::spec::{DiskMount, MonitorSpec, ROOT_DISK_PATH, VM_DIR};

/// The bytes of `sockaddr_un.sun_path`, less the one that ends it.
const SOCKET_PATH_LIMIT: usize = 107;

/// The only variables a monitor inherits: the caller's others may be secrets, and a guest that takes the
/// monitor over could read them.
const KEPT_VARIABLES: [&str; 2] = ["LD_LIBRARY_PATH", "RUST_BACKTRACE"];
/// The same for a contained one: another library path would lead to where it sees nothing.
const KEPT_INSIDE: [&str; 1] = ["RUST_BACKTRACE"];

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
    if let Some(Containment { readable, writable, .. }) = &mut spec.containment {
        readable.iter_mut().chain(writable).try_for_each(|path| fix("what the monitor is shown", path))?;
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

/// Checks what can be known of the containment to fail.
pub(crate) fn check_containment(spec: &MonitorSpec) -> Result<(), VmmError> {
    spec.containment.as_ref().map_or(Ok(()), |it| Ok(it.check(api_dir(spec))?))
}

fn api_dir(spec: &MonitorSpec) -> &Path {
    spec.api_socket.parent().unwrap_or(Path::new("/"))
}

/// Starts the process, in `cgroup` where there is one; returns once it has become the monitor program. From then on
/// `api_dir` belongs to it.
pub(crate) fn launch(
    spec: &MonitorSpec,
    cgroup: Option<&Cgroup>,
    api_dir: Option<&ApiDir>,
) -> Result<(Spawned, Console), VmmError> {
    clear_socket(&spec.api_socket)?;
    let console_failed =
        |source| VmmError::Prepare { what: "the console log", path: spec.console_log.clone(), source };
    let console = Console::open(&spec.console_log).map_err(console_failed)?;
    let spawn_failed = |source| VmmError::Spawn { program: spec.program.path().to_owned(), source };
    let output = || console.writer().map(OwnedFd::from).map_err(console_failed);
    let null = File::open("/dev/null").map_err(spawn_failed)?;
    let (place, program_path) = place(spec)?;
    let setup = ChildSetup {
        stdio: [null.into(), output()?, output()?],
        netns: spec.netns.as_deref().map(open_netns).transpose()?,
        place,
        #[cfg(test)]
        fail_at: tests::fail_at(),
    };
    let program = program(spec, &program_path).map_err(spawn_failed)?;
    api_dir.map_or(Ok(()), ApiDir::lend)?;
    match sys::spawn(&setup, &program, cgroup.map(Cgroup::handle)) {
        Ok(process) => Ok((process, console)),
        Err(error) => {
            api_dir.map_or(Ok(()), ApiDir::take_back)?;
            Err(match error {
                SpawnError::Start(source) => spawn_failed(source),
                SpawnError::Setup(step, source) => VmmError::Setup { step, source },
            })
        }
    }
}

/// Where the monitor is to run, and what its program is called there.
fn place(spec: &MonitorSpec) -> Result<(Place, PathBuf), VmmError> {
    let disk = spec.disk.as_ref();
    let path = spec.program.path().to_owned();
    let Some(containment) = &spec.containment else {
        return Ok(match disk.map(prepare_disk).transpose()? {
            Some(disk) => (Place::WithDisk(disk), path),
            None => (Place::Open, path),
        });
    };
    make_vm_dir()?;
    if let Some(disk) = disk
        && check_disk(disk)?.is_file()
    {
        // Of a block device the user gets a node of its own.
        chown(&disk.source, Some(containment.user), Some(containment.user)).map_err(missing(disk))?;
    }
    let plan = RootPlan::new(&path, api_dir(spec), disk, containment)?;
    let cpus = rustix::thread::sched_getaffinity(None)
        .map_err(|source| VmmError::Spawn { program: path, source: source.into() })?;
    let confinement = Confinement {
        user: Uid::from_raw(containment.user),
        group: Gid::from_raw(containment.user),
        dir: fixed(VM_DIR),
        options: Confinement::root_options(plan.inodes()),
        entries: plan.entries,
        cpus,
        limits: vec![(Resource::Nofile, containment.open_files), (Resource::Nproc, containment.processes)],
    };
    Ok((Place::Confined(Box::new(confinement)), plan.program))
}

/// What is run, and with what arguments and environment.
fn program(spec: &MonitorSpec, path: &Path) -> io::Result<Program> {
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
    let arguments: io::Result<_> = arguments(spec).iter().map(|argument| text(argument)).collect();
    let kept: &[&str] = if spec.containment.is_some() { &KEPT_INSIDE } else { &KEPT_VARIABLES };
    let variables = kept.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let environment = variables.map(|(name, value)| {
        let mut entry = OsString::from(format!("{name}="));
        entry.push(value);
        CString::new(entry.into_vec()).map_err(io::Error::from)
    });
    Ok(Program::new(text(path.as_os_str())?, arguments?, environment.collect::<io::Result<_>>()?))
}

/// The program's name for itself, and its arguments.
fn arguments(spec: &MonitorSpec) -> Vec<OsString> {
    let name = spec.program.argv0().unwrap_or(spec.program.path().as_os_str());
    let mut arguments: Vec<OsString> = vec![name.into(), "--api-sock".into()];
    arguments.push(spec.api_socket.clone().into());
    arguments.extend(["--id".into(), spec.id.as_str().into()]);
    if !spec.seccomp {
        arguments.push("--no-seccomp".into());
    }
    arguments.extend(spec.extra_args.iter().cloned());
    arguments
}

/// The directory of a contained monitor's API socket, which belongs to the monitor's user for a while.
#[derive(Debug, Clone)]
pub(crate) struct ApiDir {
    path: PathBuf,
    user: u32,
    /// What it was before.
    owner: (u32, u32),
}

impl ApiDir {
    /// That of the monitor to be, as long as nothing is changed.
    pub(crate) fn of(spec: &MonitorSpec) -> Result<Option<Self>, VmmError> {
        let Some(containment) = &spec.containment else { return Ok(None) };
        let path = api_dir(spec).to_owned();
        let before = fs::metadata(&path).map_err(ContainmentError::path("open", &path))?;
        Ok(Some(Self { path, user: containment.user, owner: (before.uid(), before.gid()) }))
    }

    fn lend(&self) -> Result<(), VmmError> {
        self.set((self.user, self.user), 0o700).map_err(|source| self.failed(source))
    }

    /// Takes the directory back, unless that is done or the directory is gone. The monitor still finds what is in it, and
    /// can connect to what it is given.
    pub(crate) fn take_back(&self) -> Result<(), VmmError> {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if found.uid() == self.user => {
                self.set(self.owner, 0o711).map_err(|source| self.failed(source))
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed(e)),
            _ => Ok(()),
        }
    }

    fn set(&self, (user, group): (u32, u32), mode: u32) -> io::Result<()> {
        chown(&self.path, Some(user), Some(group))?;
        fs::set_permissions(&self.path, Permissions::from_mode(mode))
    }

    fn failed(&self, source: io::Error) -> VmmError {
        VmmError::Prepare { what: "the API socket's directory", path: self.path.clone(), source }
    }
}

fn open_netns(path: &Path) -> Result<OwnedFd, VmmError> {
    let opened = File::open(path);
    opened.map(OwnedFd::from).map_err(|source| VmmError::NetnsMissing { path: path.to_owned(), source })
}

fn prepare_disk(disk: &DiskMount) -> Result<DiskSetup, VmmError> {
    check_disk(disk)?;
    make_vm_dir()?;
    let source = CString::new(disk.source.as_os_str().as_bytes()).map_err(|e| missing(disk)(e.into()))?;
    Ok(DiskSetup { source, dir: fixed(VM_DIR), target: fixed(ROOT_DISK_PATH) })
}

fn missing(disk: &DiskMount) -> impl FnOnce(io::Error) -> VmmError {
    |source| VmmError::DiskMissing { path: disk.source.clone(), source }
}

fn check_disk(disk: &DiskMount) -> Result<Metadata, VmmError> {
    let meta = disk.source.metadata().map_err(missing(disk))?;
    if !meta.is_file() && !meta.file_type().is_block_device() {
        return Err(missing(disk)(io::Error::other("it is neither a file nor a block device")));
    }
    Ok(meta)
}

fn make_vm_dir() -> Result<(), VmmError> {
    let failed = |source| VmmError::Prepare { what: "the directory", path: VM_DIR.into(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(VM_DIR).map_err(failed)
}

fn fixed(path: &str) -> CString {
    CString::new(path).expect("the constant has no NUL")
}

#[cfg(test)]
mod tests;

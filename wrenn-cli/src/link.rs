//! The way to a data directory's host process: found, or started.
//!
//! One process at a time has a data directory open. For the `wrenn` command that is a process in the background (`daemon.rs`),
//! started by the first command that needs it and gone when nothing runs and nobody asks. Commands are its clients, at a Unix
//! socket in the data directory, so that they work side by side and whatever runs outlives the command that began it.
//!
//! Whoever starts it has bound the socket before: nobody waits for a name to appear. A lock lets only one start, or end, at a
//! time; a client that meets an ending process begins anew.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use wrenn_host::HostClient;

use crate::daemon;

/// How often to begin anew with a host process that ends just now.
const TRIES: usize = 3;
/// How long a host process may take to open its data directory: it takes over what an earlier one left.
const START_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the path of {path} is too long for a Unix socket: choose another data directory")]
    TooLong { path: PathBuf },
    #[error("the host process of {data} did not start:\n{log}")]
    Start { data: PathBuf, log: String },
    #[error("the host process of {data} does not answer")]
    Silent {
        data: PathBuf,
        #[source]
        source: wrenn_host::HostError,
    },
}

impl LinkError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// Where the host process of a data directory is to be found.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    data: PathBuf,
    pub(crate) socket: PathBuf,
    log: PathBuf,
    lock: PathBuf,
}

impl Places {
    pub(crate) fn of(data: &Path) -> Result<Self, LinkError> {
        fs::create_dir_all(data).map_err(LinkError::io("create", data))?;
        let data = fs::canonicalize(data).map_err(LinkError::io("open", data))?;
        let socket = data.join("host.sock");
        // As of sockaddr_un, with its NUL.
        if socket.as_os_str().len() > 107 {
            return Err(LinkError::TooLong { path: socket });
        }
        Ok(Self { log: data.join("host.log"), lock: data.join("host.lock"), data, socket })
    }

    fn client(&self) -> HostClient {
        let socket = self.socket.clone();
        HostClient::over(move || tokio::net::UnixStream::connect(socket.clone()))
    }

    /// Waits until nobody else starts or ends the host process, and keeps others from it.
    pub(crate) fn hold(&self) -> Result<File, LinkError> {
        let failed = LinkError::io("lock", &self.lock);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.lock);
        let locked = lock.and_then(|lock| Ok(flock(&lock, FlockOperation::LockExclusive).map(|()| lock)?));
        locked.map_err(failed)
    }

    /// What the host process wrote since `start`.
    fn log_since(&self, start: u64) -> String {
        const MOST: u64 = 4096;
        let read = || {
            let mut log = File::open(&self.log)?;
            let end = log.metadata()?.len();
            log.seek(SeekFrom::Start(start.max(end.saturating_sub(MOST))))?;
            let mut text = Vec::new();
            log.take(MOST).read_to_end(&mut text)?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&text).trim_end().to_owned())
        };
        read().unwrap_or_else(|error| format!("{}: {error}", self.log.display()))
    }
}

/// A client of the data directory's host process, which is started if there is none.
///
/// # Errors
/// It cannot be started, or does not answer. One that was started and failed says why in the error.
pub(crate) async fn open(data: &Path) -> Result<HostClient, LinkError> {
    let places = Places::of(data)?;
    let mut tries = 0;
    loop {
        tries += 1;
        let started = find_or_start(&places)?;
        let client = places.client();
        let source = match client.clone().with_time_limit(START_LIMIT).describe().await {
            Ok(_) => return Ok(client),
            Err(error) => error,
        };
        if let Some((mut process, log_start)) = started
            && !matches!(process.try_wait(), Ok(None))
        {
            return Err(LinkError::Start { data: places.data.clone(), log: places.log_since(log_start) });
        }
        if tries == TRIES || !source.is_unreachable() {
            return Err(LinkError::Silent { data: places.data.clone(), source });
        }
    }
}

/// The process, if it had to be started, and where in the log its messages begin.
fn find_or_start(places: &Places) -> Result<Option<(Child, u64)>, LinkError> {
    if UnixStream::connect(&places.socket).is_ok() {
        return Ok(None);
    }
    let _held = places.hold()?;
    if UnixStream::connect(&places.socket).is_ok() {
        return Ok(None);
    }
    match fs::remove_file(&places.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(LinkError::io("replace", &places.socket)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&places.socket).map_err(LinkError::io("listen at", &places.socket))?;
    fs::set_permissions(&places.socket, Permissions::from_mode(0o600))
        .map_err(LinkError::io("close", &places.socket))?;
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&places.log);
    let log = log.map_err(LinkError::io("open", &places.log))?;
    let log_start = log.metadata().map_err(LinkError::io("open", &places.log))?.len();
    Ok(Some((start(places, listener, log)?, log_start)))
}

fn start(places: &Places, listener: UnixListener, log: File) -> Result<Child, LinkError> {
    let program = std::env::current_exe().map_err(LinkError::io("find", "/proc/self/exe"))?;
    let second = log.try_clone().map_err(LinkError::io("open", &places.log))?;
    // The one process beside the monitors and the pager: it has to outlive this program.
    #[allow(clippy::disallowed_methods)]
    let mut command = Command::new(&program);
    command.arg("--data").arg(&places.data).arg(daemon::NAME).current_dir("/");
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener))).stdout(log).stderr(second);
    command.spawn().map_err(LinkError::io("run", program))
}

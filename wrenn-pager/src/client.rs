//! A program's side: the pager's process, and what it is asked.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use wrenn_base::SandboxId;

use crate::error::PagerError;
use crate::program::PagerProgram;
use crate::protocol::{ImageFiles, PagingOptions, PagingStatus, Reply, Request, receive, send};

/// How long an answer may take. The longest waits for reads of a disk that are under way.
const PATIENCE: Duration = Duration::from_secs(30);
/// Enough for a log line's formatting, and for ending a monitor.
const STACK: usize = 256 << 10;
/// The variables that a pager inherits.
const KEPT: [&str; 3] = ["LD_LIBRARY_PATH", "RUST_BACKTRACE", "WRENN_PAGER_LOG"];

/// How a pager is to be started.
#[derive(Debug, Clone)]
pub struct PagerSpec {
    /// What to run.
    pub program: PagerProgram,
    /// The Unix socket that it is to be reached at; at most 107 bytes. Its directory is there, and open to nobody who must
    /// not read every sandbox's memory.
    pub socket: PathBuf,
    /// The file that its messages are appended to.
    pub log: PathBuf,
}

/// What is done about a sandbox whose pager has died.
type OnLoss = Box<dyn FnOnce() + Send>;

/// A pager that this program keeps alive. Dropping it lets go of the pager, which ends unless it serves a process still.
///
/// All calls block, for the time that it takes to answer.
pub struct PagerClient {
    socket: PathBuf,
    shared: Arc<Shared>,
    /// The connection that keeps the pager alive.
    kept: UnixStream,
    /// What came of it in the end.
    farewell: Mutex<mpsc::Receiver<Farewell>>,
    /// Of a pager that this program started.
    process: Option<Child>,
}

/// How the connection to a pager ended.
#[derive(Debug, Clone, Copy)]
enum Farewell {
    /// It ends, or has ended.
    Ended,
    /// It serves processes still.
    GoesOn,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// It has died, or this program lets go of it.
    over: bool,
    served: BTreeMap<SandboxId, OnLoss>,
}

impl PagerClient {
    /// Starts a pager. A socket that an earlier one left is replaced.
    ///
    /// The socket is there before the process is, so nobody has to wait for it.
    ///
    /// # Errors
    /// [`PagerError::Start`], and [`PagerError::Unreachable`] where it ends at once; nothing is left but the socket's name.
    pub fn start(spec: &PagerSpec) -> Result<Self, PagerError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| PagerError::Start { action, path, source }
        };
        remove_socket(&spec.socket).map_err(failed("replace", &spec.socket))?;
        let listener = UnixListener::bind(&spec.socket).map_err(failed("listen at", &spec.socket))?;
        fs::set_permissions(&spec.socket, Permissions::from_mode(0o600))
            .map_err(failed("close", &spec.socket))?;
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&spec.log);
        let log = log.map_err(failed("open", &spec.log))?;
        // The one process beside monitors: see the crate's documentation for why it is one.
        let process = start(&spec.program, listener, log).map_err(failed("run", spec.program.path()))?;
        match Self::keep(&spec.socket) {
            Ok(mut client) => {
                client.process = Some(process);
                Ok(client)
            }
            Err(source) => {
                collect(process);
                Err(PagerError::Unreachable { socket: spec.socket.clone(), source })
            }
        }
    }

    /// The pager that an earlier program left at `socket`, if there is one.
    pub fn find(socket: &Path) -> Option<Self> {
        Self::keep(socket).ok()
    }

    fn keep(socket: &Path) -> io::Result<Self> {
        let kept = connect(socket)?;
        send(&kept, &Request::Keep)?;
        match receive(&kept)? {
            Some(Reply::Done) => {}
            _ => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
        kept.set_read_timeout(None)?;
        let shared = Arc::new(Shared::default());
        let (watching, connection) = (Arc::clone(&shared), kept.try_clone()?);
        let (tell, farewell) = mpsc::channel();
        std::thread::Builder::new().name("wrenn-pager".into()).stack_size(STACK).spawn(move || {
            let ended = watching.watch(&connection);
            drop((watching, connection));
            // Nobody listens where the client was not made after all.
            let _ = tell.send(ended);
        })?;
        Ok(Self { socket: socket.to_owned(), shared, kept, farewell: Mutex::new(farewell), process: None })
    }

    /// The number of the process, where this program started it.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Whether it has died.
    pub fn is_lost(&self) -> bool {
        self.shared.state().over
    }

    /// Opens a sandbox's memory image and begins to read what will be needed first.
    ///
    /// # Errors
    /// [`PagerError::Refused`] where the image cannot be opened, [`PagerError::Unreachable`].
    pub fn begin(
        &self,
        sandbox: &SandboxId,
        image: ImageFiles,
        options: PagingOptions,
    ) -> Result<(), PagerError> {
        self.done("open a memory image", &Request::Begin { sandbox: sandbox.clone(), image, options })
    }

    /// Serves the process that connects to `socket`, which is there on return; with `cached`, from a page cache that the
    /// process maps. `on_loss` is called, on a thread of the client's, should the pager die.
    ///
    /// # Errors
    /// [`PagerError::Refused`] and [`PagerError::Unreachable`]; `on_loss` is not called then.
    pub fn serve(
        &self,
        sandbox: &SandboxId,
        socket: &Path,
        cached: bool,
        on_loss: impl FnOnce() + Send + 'static,
    ) -> Result<(), PagerError> {
        let request = Request::Serve { sandbox: sandbox.clone(), socket: socket.to_owned(), cached };
        self.done("serve a sandbox's memory", &request)?;
        self.watch_over(sandbox, on_loss)
    }

    /// Has `on_loss` called, should the pager die: for a sandbox that is being served already.
    ///
    /// # Errors
    /// [`PagerError::Unreachable`] where it has died.
    pub fn watch_over(
        &self,
        sandbox: &SandboxId,
        on_loss: impl FnOnce() + Send + 'static,
    ) -> Result<(), PagerError> {
        let mut state = self.shared.state();
        if state.over {
            return Err(self.unreachable(io::ErrorKind::BrokenPipe.into()));
        }
        state.served.insert(sandbox.clone(), Box::new(on_loss));
        Ok(())
    }

    /// Tells that the sandbox has answered its first command: what it touched until now is its working set.
    ///
    /// # Errors
    /// [`PagerError::Refused`] where that could not be kept, [`PagerError::Unreachable`].
    pub fn answered(&self, sandbox: &SandboxId) -> Result<(), PagerError> {
        self.done("keep a working set", &Request::Answered { sandbox: sandbox.clone() })
    }

    /// How the service of a sandbox stands; nothing where nothing was begun.
    ///
    /// # Errors
    /// [`PagerError::Unreachable`].
    pub fn status(&self, sandbox: &SandboxId) -> Result<Option<PagingStatus>, PagerError> {
        match self.ask("tell how it is", &Request::Status { sandbox: sandbox.clone() })? {
            Reply::Status(status) => Ok(status.map(|status| *status)),
            other => Err(unexpected("tell how it is", &other)),
        }
    }

    /// Stops serving a sandbox, whose process must be gone, and waits for that; returns what was served. One that is not
    /// known is fine.
    ///
    /// # Errors
    /// [`PagerError::Unreachable`]: where it has died, nothing is served any more.
    pub fn end(&self, sandbox: &SandboxId) -> Result<Option<PagingStatus>, PagerError> {
        self.shared.state().served.remove(sandbox);
        match self.ask("end its service", &Request::End { sandbox: sandbox.clone() })? {
            Reply::Status(status) => Ok(status.map(|status| *status)),
            other => Err(unexpected("end its service", &other)),
        }
    }

    /// The sandboxes that something was begun for.
    ///
    /// # Errors
    /// [`PagerError::Unreachable`].
    pub fn sandboxes(&self) -> Result<Vec<SandboxId>, PagerError> {
        match self.ask("list its sandboxes", &Request::List)? {
            Reply::Sandboxes(sandboxes) => Ok(sandboxes),
            other => Err(unexpected("list its sandboxes", &other)),
        }
    }

    fn done(&self, action: &'static str, request: &Request) -> Result<(), PagerError> {
        match self.ask(action, request)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(action, &other)),
        }
    }

    fn ask(&self, action: &'static str, request: &Request) -> Result<Reply, PagerError> {
        let answer = || {
            let stream = connect(&self.socket)?;
            send(&stream, request)?;
            receive(&stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        match answer().map_err(|source| self.unreachable(source))? {
            Reply::Failed { why } => Err(PagerError::Refused { action, why }),
            reply => Ok(reply),
        }
    }

    fn unreachable(&self, source: io::Error) -> PagerError {
        PagerError::Unreachable { socket: self.socket.clone(), source }
    }
}

impl Drop for PagerClient {
    /// Waits until the pager has ended, or has said that it goes on.
    fn drop(&mut self) {
        self.shared.state().over = true;
        let _ = self.kept.shutdown(Shutdown::Write);
        let farewell = self.farewell.get_mut().unwrap_or_else(PoisonError::into_inner);
        match (farewell.recv_timeout(PATIENCE), self.process.take()) {
            // Should it end before this program does, the system still shows that it has been there.
            (Ok(Farewell::GoesOn), _) | (_, None) => {}
            (Ok(Farewell::Ended), Some(process)) => collect(process),
            (Err(_), Some(mut process)) => {
                tracing::error!("the pager does not end, and is killed");
                let _ = process.kill();
                collect(process);
            }
        }
    }
}

impl std::fmt::Debug for PagerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagerClient")
            .field("socket", &self.socket)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Every change is one insert, remove or assignment, so a panic elsewhere leaves it sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of the connection, and sees to the sandboxes if this program did not ask for it.
    fn watch(&self, connection: &UnixStream) -> Farewell {
        let farewell = match receive::<Reply>(connection) {
            Ok(Some(_)) => Farewell::GoesOn,
            _ => Farewell::Ended,
        };
        let mut state = self.state();
        let expected = std::mem::replace(&mut state.over, true);
        let lost = std::mem::take(&mut state.served);
        drop(state);
        if !expected {
            tracing::error!(sandboxes = lost.len(), "the pager has died");
            lost.into_values().for_each(|on_loss| on_loss());
        }
        farewell
    }
}

#[expect(clippy::disallowed_methods, reason = "it is a program of ours, started once per host")]
fn start(program: &PagerProgram, listener: UnixListener, log: File) -> io::Result<Child> {
    let mut command = Command::new(program.path());
    if let Some(name) = program.0.argv0() {
        command.arg0(name);
    }
    // Nothing of this program's environment is its business but what its own messages depend on.
    command.env_clear().envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.current_dir("/").stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null()).stderr(log);
    command.spawn()
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn collect(mut process: Child) {
    if let Err(error) = process.wait() {
        tracing::warn!(%error, "the pager's status cannot be collected");
    }
}

fn remove_socket(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn unexpected(action: &'static str, reply: &Reply) -> PagerError {
    PagerError::Refused { action, why: format!("it answered {reply:?}") }
}

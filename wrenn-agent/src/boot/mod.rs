//! PID 1: from the initramfs to a guest that serves.
//!
//! ```text
//! /dev /proc /sys ─> modules ─> root disk (grown) ─> new root ─> /dev/pts /run … ─> network, names ─> serving
//! ```
//! **The initramfs** must hold the agent as `/init`, and may hold `/modules.list` with the modules it names. It is
//! emptied on the way; the agent itself lives on in memory.
//!
//! **Kernel command line** (see [`cmdline`]): `wrenn.root`, `wrenn.ip`, `wrenn.gw`, `wrenn.dns`,
//! `wrenn.hostname`.
//!
//! **Failures.** Each step that fails ends the guest: one line `wrenn-agent: fatal: …` on the console, then a
//! restart, which monitors take for the end of the machine (a power-off needs ACPI of them). What a guest can do
//! without is only reported as `wrenn-agent: warning: …`.

mod cmdline;
mod modules;
mod mounts;
mod network;
mod power;
mod root;

use std::fmt;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, setrlimit, umask};
use tokio::net::TcpListener;
use wrenn_agent_api::AGENT_PORT;

use crate::machine::{self, Machine};
use crate::reaper::Reaper;
use cmdline::Settings;

/// How long a device may take to appear after its driver was loaded.
const DEVICE_WAIT: Duration = Duration::from_secs(10);

/// A step that failed: what was to be done, and why it was not.
#[derive(Debug)]
struct Failure {
    what: String,
    why: String,
}

impl Failure {
    fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { what: what.into(), why: why.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.why)
    }
}

/// Gives an error the step it belongs to.
trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> During<T> for Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|why| Failure::new(what(), why))
    }
}

/// Boots the guest and serves until it is told to go down.
pub(crate) fn run() -> ! {
    let Err(failure) = boot();
    report("fatal", &failure);
    power::restart()
}

fn report(grade: &str, failure: &Failure) {
    eprintln!("wrenn-agent: {grade}: {failure}");
    // A serial line is slow, and a restart does not wait for it.
    let _ = rustix::termios::tcdrain(rustix::stdio::stderr());
}

fn boot() -> Result<std::convert::Infallible, Failure> {
    umask(Mode::from_raw_mode(0o022));
    let early = mounts::early();
    // Only now is there a console to say anything on.
    attach_console();
    early?;
    let text = fs::read_to_string("/proc/cmdline").during(|| "read the kernel command line".into())?;
    let settings = Settings::parse(&text).during(|| "use the kernel command line".into())?;
    modules::load(Path::new("/modules.list"))?;
    root::enter(&settings.root)?;
    for failure in mounts::late()? {
        report("warning", &failure);
    }
    network::configure(&settings)?;
    if let Some(name) = &settings.hostname
        && let Err(e) = machine::set_hostname(name)
    {
        report("warning", &Failure::new("set the host name", e));
    }
    raise_limits();
    power::claim_keys();
    let runtime = crate::runtime().during(|| "start the runtime".into())?;
    runtime.block_on(serve())
}

async fn serve() -> Result<std::convert::Infallible, Failure> {
    let reaper = Reaper::start().during(|| "watch over child processes".into())?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, AGENT_PORT)).await;
    let listener = listener.during(|| format!("listen on port {AGENT_PORT}"))?;
    let orders = power::Orders::listen().during(|| "listen for signals".into())?;
    tokio::select! {
        () = crate::serve(listener, reaper, Machine::Owned) => {}
        () = orders.shutdown() => {}
    }
    tokio::task::spawn_blocking(power::shut_down).await.during(|| "shut down".into())
}

/// Makes the console this process's output; a kernel that found no /dev/console in the initramfs gave it none.
fn attach_console() {
    let open = |path, flags| rustix::fs::open(path, flags | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
    if let Ok(null) = open("/dev/null", OFlags::RDWR) {
        let _ = rustix::stdio::dup2_stdin(&null);
        // Until there is something better: these numbers must never belong to anything else.
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    if let Ok(console) = open("/dev/console", OFlags::WRONLY) {
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
    }
}

/// Room for many commands at once, and for theirs: PID 1 starts with 1024 descriptors, which all inherit.
fn raise_limits() {
    let limit = Rlimit { current: Some(65_536), maximum: Some(1 << 20) };
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        report("warning", &Failure::new("raise the number of open files", e));
    }
}

/// Waits until `path` is there.
fn wait_for(path: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + DEVICE_WAIT;
    while !path.exists() {
        if Instant::now() >= deadline {
            let what = format!("find {}", path.display());
            return Err(Failure::new(
                what,
                format!("it did not appear within {DEVICE_WAIT:?}; is its driver loaded?"),
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Makes a directory unless it is there.
fn make_directory(path: &str) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

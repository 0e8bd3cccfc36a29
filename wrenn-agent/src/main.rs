//! The in-guest agent: PID 1 of a sandbox, and the service through which its host runs commands and moves files.
//!
//! As PID 1 it boots the guest from the initramfs ([`boot`]), then serves port 49983. Started as an ordinary
//! program, `wrenn-agent --listen ADDRESS`, it only serves: commands and files of the machine it runs on, whose
//! clock, randomness and name it leaves alone.
//!
//! One thread runs everything asynchronous; what may block (disk, fork) has a few more.
//!
//! Failures: what goes wrong while booting is written to the console as `wrenn-agent: fatal: …` and restarts the
//! machine, which the host sees as its end. Afterwards nothing that a client or a command does ends the agent.
#![deny(unsafe_code)]

mod boot;
mod filesystem;
mod http;
mod machine;
mod paths;
mod process;
mod reaper;
mod rpc;
mod settings;
#[allow(unsafe_code)]
mod sys;
mod users;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use http::{Connections, Routes};
use machine::Machine;
use process::Processes;
use reaper::Reaper;
use settings::Settings;

const USAGE: &str = "\
usage: wrenn-agent --listen ADDRESS:PORT

Serves commands and files of this machine to whoever sets the access token first (POST /init).
In a sandbox the agent is PID 1 and takes no arguments.
";

fn main() -> ExitCode {
    if rustix::process::getpid().is_init() {
        boot::run();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--version"] => {
            println!("wrenn-agent {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        ["--help"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        ["--listen", address] => match address.parse() {
            Ok(address) => listen(address),
            Err(_) => Err(io::Error::other(format!("{address:?} is no address with a port"))),
        },
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("wrenn-agent: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Serves on `address` as an ordinary program, and prints the address it got.
fn listen(address: SocketAddr) -> io::Result<()> {
    sys::keep_descriptors_from_commands()?;
    // Orphans of its commands become its children, as they do for PID 1.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    runtime()?.block_on(async {
        let listener = TcpListener::bind(address).await?;
        println!("listening on {}", listener.local_addr()?);
        let reaper = Reaper::start()?;
        serve(listener, reaper, Machine::Foreign).await;
        Ok(())
    })
}

/// Serves for ever.
async fn serve(listener: TcpListener, reaper: Reaper, machine: Machine) {
    let settings = Arc::new(Settings::default());
    let processes = Processes::new(reaper);
    let routes = Routes::new(settings, processes, machine, Connections::new());
    http::serve(listener, Arc::new(routes)).await;
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Threads for what blocks; idle ones go quickly, a guest's memory is dear.
        .max_blocking_threads(16)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_stack_size(256 * 1024)
        .build()
}

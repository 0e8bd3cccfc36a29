//! A Firecracker-API-compatible virtual machine monitor on rust-vmm crates.
//!
//! One process runs one microVM, driven by requests on a Unix socket: configure, boot, pause, snapshot; or load a
//! snapshot and resume. Three kinds of threads:
//!
//! ```text
//!  api ──Action──► main: controller ── machine ─┬─ vm (KVM)      vcpu0 … vcpuN
//!      ◄─Outcome──       event loop: devices    ├─ memory ◄─faults─ fault server (another process)
//!                                               └─ vcpus, devices
//! ```
//!
//! Only the main thread changes the machine; vCPU threads run the guest and serve its accesses to device
//! registers. What a guest, a snapshot or a client sends is hostile: it is checked, bounded, and never makes the
//! monitor panic.
//!
//! The program is [`run`]; embedders who ship a single binary call it first thing in `main` when they find
//! themselves re-executed as the monitor.

#![deny(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

mod action;
mod api;
mod args;
mod boot;
mod bus;
mod controller;
mod devices;
mod exit;
mod file;
mod layout;
mod limits;
mod logger;
mod machine;
mod memory;
mod output;
mod power;
mod run;
mod seccomp;
mod snapshot;
mod vcpu;
mod vm;

use action::Fault;
use args::Command;

/// What the fuzzers in `fuzz/` call.
#[doc(hidden)]
pub mod fuzzing {
    /// Takes or refuses a state file.
    pub fn state_file(bytes: &[u8]) {
        crate::snapshot::fuzz(bytes);
    }
}

/// Runs the monitor with `args`, the program's name first, until its machine has ended or cannot be run.
///
/// The exit code tells which: 0 the guest shut down or rebooted; 1 the monitor failed (standard error, or its log,
/// has the reason); 2 bad arguments; 10 the guest's kernel panicked; 11 triple fault; 12 KVM could not go on
/// running the guest; 13 the fault server hung up.
///
/// It takes over the process: a real-time signal, system call filters that cannot be lifted, the log.
///
/// ```no_run
/// let exit_code = wrenn_monitor::run(std::env::args_os());
/// ```
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match args::parse(args) {
        Ok(Command::Run(args)) => args,
        Ok(Command::Help) => {
            print!("{}", args::USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(Command::Version) => {
            println!("wrenn-monitor v{}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("wrenn-monitor: {error}\n\n{}", args::USAGE);
            return ExitCode::from(exit::BAD_ARGUMENTS);
        }
    };
    match run::run(args) {
        Ok(reason) => {
            match reason.code() {
                0 => log::info!("{reason}"),
                _ => log::error!("{reason}"),
            }
            ExitCode::from(reason.code())
        }
        Err(error) => {
            // The log may be what failed.
            eprintln!("wrenn-monitor: {}", Fault::from_error(&error));
            ExitCode::from(exit::FAILURE)
        }
    }
}

/// Every method and path that the monitor's API answers, as in `("PUT", "/drives/{drive_id}")`.
pub fn api_routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    api::routes()
}

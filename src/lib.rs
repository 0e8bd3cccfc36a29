#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub use wrenn_core::*;

/// What a process finds as its own name when it was started to be a monitor.
#[cfg(feature = "monitor")]
const MONITOR_NAME: &str = "wrenn-monitor";
/// The same for a pager.
#[cfg(feature = "monitor")]
const PAGER_NAME: &str = "wrenn-pager";

/// The running program itself as the monitor, for [`HostBuilder::monitor_program`]: nothing to install beside it.
///
/// The program has to begin its `main` with [`monitor_main`].
#[cfg(feature = "monitor")]
pub fn embedded_monitor() -> MonitorProgram {
    MonitorProgram::reexec(MONITOR_NAME)
}

/// The running program itself as the pager, for [`HostBuilder::pager_program`].
///
/// The program has to begin its `main` with [`monitor_main`].
#[cfg(feature = "monitor")]
pub fn embedded_pager() -> PagerProgram {
    PagerProgram::reexec(PAGER_NAME)
}

/// Runs the monitor, or the pager, to its end if this process was started as one, and otherwise does nothing.
///
/// To be called first thing in `main`, before any thread is started; see `examples/single_binary.rs`.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     if let Some(ended) = wrenn::monitor_main() {
///         return ended;
///     }
///     // The program itself.
///     std::process::ExitCode::SUCCESS
/// }
/// ```
#[cfg(feature = "monitor")]
pub fn monitor_main() -> Option<std::process::ExitCode> {
    let name = std::env::args_os().next()?;
    if name == PAGER_NAME {
        return Some(wrenn_pager::run());
    }
    (name == MONITOR_NAME).then(|| wrenn_monitor::run(std::env::args_os()))
}

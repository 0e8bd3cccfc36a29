//! The way down.
//!
//! The machine is restarted, not switched off: every monitor takes a restart for its guest's end, while switching
//! off needs ACPI, which the smallest ones do not have.

use std::io;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::{RebootCommand, reboot};
use tokio::signal::unix::{SignalKind, signal};

/// How long processes may take to end when asked, before they are killed.
const FAREWELL: Duration = Duration::from_secs(2);

/// The signals that mean "go down": those of `kill 1`, of Ctrl-Alt-Del, and of busybox's halt and poweroff.
pub(super) struct Orders([tokio::signal::unix::Signal; 4]);

impl Orders {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::user_defined1())?,
            signal(SignalKind::user_defined2())?,
        ]))
    }

    /// Waits for the order to go down.
    pub(super) async fn shutdown(self) {
        let [mut terminate, mut interrupt, mut first, mut second] = self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = first.recv() => {}
            _ = second.recv() => {}
        }
    }
}

/// Has Ctrl-Alt-Del sent as a signal instead of restarting the machine under everybody's feet.
pub(super) fn claim_keys() {
    let _ = reboot(RebootCommand::CadOff);
}

/// Asks all processes to end, kills the rest, brings the disk up to date, restarts. Blocks.
pub(super) fn shut_down() -> std::convert::Infallible {
    // A group of 1 means every process but this one.
    let everybody = Pid::INIT;
    let _ = kill_process_group(everybody, Signal::TERM);
    let deadline = Instant::now() + FAREWELL;
    // Stopped processes must run to hear it.
    let _ = kill_process_group(everybody, Signal::CONT);
    while rustix::process::test_kill_process_group(everybody).is_ok() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = kill_process_group(everybody, Signal::KILL);
    rustix::fs::sync();
    // Fails while something still writes; then the journal will do.
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
    restart()
}

/// Ends the guest.
pub(super) fn restart() -> ! {
    rustix::fs::sync();
    loop {
        let _ = reboot(RebootCommand::Restart);
        // Not allowed, or not possible: PID 1 must not return either.
        std::thread::sleep(Duration::from_secs(1));
    }
}

//! Taking cgroups away, with whatever runs in them.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use wrenn_base::Deadline;

use super::CgroupError;

const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Removes the cgroup `dir`, and ends the processes that are in it; nothing there is success.
pub(super) fn remove(dir: &Path, deadline: Deadline) -> Result<(), CgroupError> {
    let mut pause = SHORTEST_PAUSE;
    loop {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Processes count as being in it until they have been taken down whole, collected or not.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            result => return result.map_err(CgroupError::io("remove", dir)),
        }
        if deadline.passed() {
            return Err(CgroupError::Busy { dir: dir.to_owned() });
        }
        kill(dir)?;
        std::thread::sleep(pause.min(deadline.remaining()));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Sends SIGKILL to every process in the cgroup `dir`, and below it where the kernel does that.
pub(super) fn kill(dir: &Path) -> Result<(), CgroupError> {
    let path = dir.join("cgroup.kill");
    match fs::OpenOptions::new().write(true).open(&path) {
        Ok(file) => match rustix::io::write(&file, b"1") {
            // It was removed meanwhile.
            Err(rustix::io::Errno::NODEV) => Ok(()),
            result => result.map(drop).map_err(|e| CgroupError::io("write to", &path)(e.into())),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => kill_each(&dir.join("cgroup.procs")),
        Err(e) => Err(CgroupError::io("open", &path)(e)),
    }
}

/// Before Linux 5.14. What forks meanwhile is met by the next attempt.
fn kill_each(procs: &Path) -> Result<(), CgroupError> {
    let listed = match fs::read_to_string(procs) {
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => {
            return Ok(());
        }
        result => result.map_err(CgroupError::io("read", procs))?,
    };
    for pid in listed.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        // One that is gone by now is fine; one that stays keeps the cgroup busy, which is reported.
        let _ = kill_process(pid, Signal::KILL);
    }
    Ok(())
}

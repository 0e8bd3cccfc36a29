//! What tells a process from every other, of this boot or another, that ever has its number.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// A process, as it can be kept in a file and found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessIdentity {
    pid: i32,
    /// When it started, in clock ticks since the machine did.
    start: u64,
    /// Which run of the machine that is of.
    boot: String,
}

impl ProcessIdentity {
    /// The process that has the number `pid` now.
    ///
    /// # Errors
    /// There is none that runs, or `/proc` cannot be read.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start = start_time(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { pid, start, boot })
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A hold on the process, if it is there still.
    ///
    /// # Errors
    /// The system refuses one.
    pub fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let held = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            result => result?,
        };
        // Looked at once the process is held: from here on the number is not another's.
        Ok((Self::of(self.pid).ok().as_ref() == Some(self)).then_some(held))
    }
}

/// When a process started, in clock ticks since the machine did, unless it has ended.
fn start_time(stat: &str) -> Option<u64> {
    let ended = matches!(stat_field(stat, 3)?, "Z" | "X");
    (!ended).then(|| stat_field(stat, 22)?.parse().ok())?
}

/// A field of `/proc/<pid>/stat`, from the third on, by the number that proc(5) gives it. The second, a name in parentheses, may
/// hold anything.
pub fn stat_field(stat: &str, number: usize) -> Option<&str> {
    stat.rsplit_once(") ")?.1.trim_end().split(' ').nth(number.checked_sub(3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_again_and_another_with_its_number_is_not() {
        let own = ProcessIdentity::of(std::process::id().cast_signed()).unwrap();
        assert!(own.open().unwrap().is_some());
        let earlier = ProcessIdentity { start: own.start - 1, ..own.clone() };
        assert!(earlier.open().unwrap().is_none());
        let other_boot = ProcessIdentity { boot: "another".into(), ..own.clone() };
        assert!(other_boot.open().unwrap().is_none());
        let nobody = ProcessIdentity { pid: i32::MAX, ..own };
        assert!(nobody.open().unwrap().is_none());
    }

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(start_time(&stat.replace(" S ", " Z ")), None);
        assert_eq!(start_time("12 (a) S 1"), None);
        assert_eq!(stat_field(stat, 2), None);
        assert_eq!(stat_field(stat, 4), Some("1"));
    }
}

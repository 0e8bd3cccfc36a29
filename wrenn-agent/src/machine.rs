//! What belongs to the whole machine: its clock, its randomness, its name.

use std::fs;
use std::io;
use std::time::SystemTime;

use rustix::time::{ClockId, Timespec, clock_settime};

use crate::sys;

/// The machine, as far as it is the agent's to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// The agent is PID 1 of a guest.
    Owned,
    /// The agent runs as a program on somebody's computer: hands off.
    Foreign,
}

/// What `/init` asks to change.
#[derive(Debug, Default)]
pub(crate) struct Adjustment {
    pub(crate) time: Option<SystemTime>,
    pub(crate) entropy: Vec<u8>,
    pub(crate) hostname: Option<String>,
}

impl Machine {
    /// Makes the changes, if the machine is ours. Blocks for a moment. The error is a sentence.
    pub(crate) fn adjust(self, adjustment: &Adjustment) -> Result<(), String> {
        if self == Self::Foreign {
            return Ok(());
        }
        // Randomness first: whatever runs from here on must not share a clone's.
        if !adjustment.entropy.is_empty() {
            sys::add_entropy(&adjustment.entropy)
                .map_err(|e| format!("cannot reseed the random generator: {e}"))?;
        }
        if let Some(time) = adjustment.time {
            set_clock(time).map_err(|e| format!("cannot set the clock: {e}"))?;
        }
        if let Some(name) = &adjustment.hostname {
            set_hostname(name).map_err(|e| format!("cannot set the host name: {e}"))?;
        }
        Ok(())
    }
}

fn set_clock(time: SystemTime) -> io::Result<()> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
    let tv_sec = since.as_secs().try_into().map_err(io::Error::other)?;
    let time = Timespec { tv_sec, tv_nsec: since.subsec_nanos().into() };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// Sets the kernel's host name, and makes it resolve: programs look their own name up.
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // After a resume it mostly is what it was: then nothing becomes dirty.
    if rustix::system::uname().nodename().to_bytes() == name.as_bytes() {
        return Ok(());
    }
    rustix::system::sethostname(name.as_bytes())?;
    fs::write("/etc/hostname", format!("{name}\n"))?;
    let hosts = match fs::read_to_string("/etc/hosts") {
        Ok(hosts) => hosts,
        Err(e) if e.kind() == io::ErrorKind::NotFound => "127.0.0.1 localhost\n::1 localhost\n".into(),
        Err(e) => return Err(e),
    };
    fs::write("/etc/hosts", hosts_with(&hosts, name))
}

/// The hosts file with `name` as the machine's own, instead of an earlier one: Debian's 127.0.1.1 line.
fn hosts_with(hosts: &str, name: &str) -> String {
    let own = |line: &&str| line.split_whitespace().next() == Some("127.0.1.1");
    let mut text: String = hosts.lines().filter(|line| !own(line)).flat_map(|line| [line, "\n"]).collect();
    text.push_str(&format!("127.0.1.1 {name}\n"));
    text
}

/// Whether `name` can be a host name (RFC 1123; the kernel takes 64 bytes).
pub(crate) fn is_hostname(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.len() <= 64 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_checked() {
        for good in ["a", "box-1", "A.b.c", &"x".repeat(64)] {
            assert!(is_hostname(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a..b", ".a", "a b", "a/b", "ä", "a\n", &"x".repeat(65)] {
            assert!(!is_hostname(bad), "{bad}");
        }
    }

    #[test]
    fn the_hosts_file_names_the_machine_once() {
        let once = hosts_with("127.0.0.1 localhost\n127.0.1.1\told\n# end", "new");
        assert_eq!(once, "127.0.0.1 localhost\n# end\n127.0.1.1 new\n");
        assert_eq!(hosts_with(&once, "newer"), "127.0.0.1 localhost\n# end\n127.0.1.1 newer\n");
        assert_eq!(hosts_with("", "x"), "127.0.1.1 x\n");
    }

    #[test]
    fn a_foreign_machine_is_left_alone() {
        let adjustment = Adjustment {
            time: Some(SystemTime::UNIX_EPOCH),
            entropy: vec![1],
            hostname: Some("must-not-be-set".into()),
        };
        Machine::Foreign.adjust(&adjustment).unwrap();
        let name = rustix::system::uname();
        assert_ne!(name.nodename().to_bytes(), b"must-not-be-set");
        assert!(SystemTime::now() > SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000));
    }
}

//! What a cgroup may use, as its files say it.

use std::fmt;
use std::path::Path;

use super::{CgroupError, write};

/// The period over which CPU time is counted, in microseconds: the kernel's own default.
const PERIOD: u64 = 100_000;

/// A part of the kernel that limits what a cgroup uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// Which CPUs and memory nodes.
    Cpuset,
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
}

impl Controller {
    pub(super) const ALL: [Self; 4] = [Self::Cpu, Self::Cpuset, Self::Memory, Self::Pids];

    /// What the kernel calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a monitor may use; absent means as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU time in hundredths of a CPU: 150 is one CPU and a half.
    pub cpu_percent: Option<u32>,
    /// Memory in bytes: guest memory, what the monitor and the kernel need beside it, and cached pages of files, which
    /// are given up first.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

impl Limits {
    /// The files of a cgroup that these limits are in, and what they are to say.
    fn files(&self) -> impl Iterator<Item = (&'static str, String)> {
        let cpu = self.cpu_percent.map(|it| format!("{} {PERIOD}", u64::from(it) * PERIOD / 100));
        let memory = self.memory.map(|bytes| bytes.to_string());
        let pids = self.pids.map(|count| count.to_string());
        [("cpu.max", cpu), ("memory.max", memory), ("pids.max", pids)]
            .into_iter()
            .filter_map(|(file, value)| Some((file, value?)))
    }

    /// Puts those in force for which the cgroup `dir` has a controller.
    pub(super) fn apply(&self, dir: &Path) -> Result<(), CgroupError> {
        for (file, value) in self.files() {
            let path = dir.join(file);
            if path.exists() {
                write(&path, &value)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_where_there_is_a_controller() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cpu.max"), "max 100000\n").unwrap();
        std::fs::write(dir.path().join("pids.max"), "max\n").unwrap();
        let limits = Limits { cpu_percent: Some(250), memory: Some(1 << 30), pids: None };
        limits.apply(dir.path()).unwrap();
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((read("cpu.max").as_str(), read("pids.max").as_str()), ("250000 100000", "max\n"));
        assert!(!dir.path().join("memory.max").exists());
        assert_eq!(Limits::default().files().count(), 0);
    }
}

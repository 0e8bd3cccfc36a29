//! What the machine has.

use std::path::Path;

use connectrpc::ConnectError;
use wrenn_base::{Bytes, MiB};

use crate::Reason;

/// See above.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) cpus: u32,
    pub(super) memory_total: MiB,
    pub(super) memory_available: MiB,
    pub(super) disk_total: Bytes,
    pub(super) disk_free: Bytes,
}

/// Looks at it; the disk is the one that has `data`.
pub(super) async fn look(data: &Path) -> Result<Machine, ConnectError> {
    let data = data.to_owned();
    let looked = tokio::task::spawn_blocking(move || look_blocking(&data)).await;
    looked
        .unwrap_or_else(|e| Err(std::io::Error::other(e)))
        .map_err(|e| Reason::Internal.error(format!("cannot look at the machine: {e}")))
}

fn look_blocking(data: &Path) -> std::io::Result<Machine> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let memory = |name| meminfo_field(&meminfo, name).ok_or(std::io::ErrorKind::InvalidData);
    let disk = rustix::fs::statvfs(data)?;
    Ok(Machine {
        cpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory_total: memory("MemTotal:")?,
        memory_available: memory("MemAvailable:")?,
        disk_total: Bytes(disk.f_blocks.saturating_mul(disk.f_frsize)),
        disk_free: Bytes(disk.f_bavail.saturating_mul(disk.f_frsize)),
    })
}

fn meminfo_field(text: &str, name: &str) -> Option<MiB> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(MiB(u32::try_from(kib / 1024).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something() {
        let machine = look_blocking(Path::new("/")).unwrap();
        assert!(machine.cpus > 0 && machine.memory_total >= machine.memory_available, "{machine:?}");
        assert!(machine.memory_total > MiB(0) && machine.disk_total >= machine.disk_free, "{machine:?}");
        assert_eq!(meminfo_field("MemTotal: 2048 kB\nMemAvailable:  1024 kB", "MemAvailable:"), Some(MiB(1)));
        assert_eq!(meminfo_field("MemTotal: x kB", "MemTotal:"), None);
    }
}

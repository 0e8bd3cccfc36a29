//! What a running sandbox uses of its host, as the host itself counts it: a guest cannot make it less.

use std::fs;
use std::path::Path;
use std::time::Duration;

use wrenn_base::{Bytes, stat_field};

use crate::error::{Cause, Error};
use crate::machine::Live;
use crate::sandbox::Sandbox;
use crate::step::blocking;

/// What a running sandbox has used, since its machine was started, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// The processor time of its monitor, and so of its vCPUs.
    pub cpu: Duration,
    /// How much of its monitor's memory, guest memory included, is in this host's memory. Pages that sandboxes share count
    /// in each of them.
    pub memory_resident: Bytes,
    /// What its changes to its root disk take.
    pub disk_allocated: Bytes,
    /// What came to the guest from the network; not what this host itself asked its agent, or carried to its ports.
    pub network_received: Bytes,
    /// What the guest sent to the network, whether or not its policy let it pass.
    pub network_sent: Bytes,
}

impl Sandbox {
    /// What this sandbox uses of its host at the moment.
    ///
    /// Does not count as activity, and does not ask the guest.
    ///
    /// # Errors
    /// The guest has ended.
    pub async fn usage(&self) -> Result<Usage, Error> {
        let live = self.live();
        let counted = std::sync::Arc::clone(live);
        Ok(live.while_alive(async { blocking(move || usage(&counted)).await }).await?)
    }
}

fn usage(live: &Live) -> Result<Usage, Cause> {
    let process = Path::new("/proc").join(live.monitor.pid().to_string());
    let link = Path::new("/sys/class/net").join(live.network.slot.link()).join("statistics");
    let pages: u64 = field(&process.join("statm"), |text| text.split(' ').nth(1)?.parse().ok())?;
    Ok(Usage {
        cpu: field(&process.join("stat"), cpu_time)?,
        memory_resident: Bytes(pages * rustix::param::page_size() as u64),
        disk_allocated: live.disk.allocated()?,
        // The link is the host's end: what it sends is what the guest receives.
        network_received: Bytes(field(&link.join("tx_bytes"), number)?),
        network_sent: Bytes(field(&link.join("rx_bytes"), number)?),
    })
}

fn field<T>(path: &Path, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Cause> {
    let text = fs::read_to_string(path).map_err(|source| Cause::io("read", path, source))?;
    parse(&text).ok_or_else(|| Cause::io("understand", path, std::io::ErrorKind::InvalidData.into()))
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// User and system time, the 14th and 15th field of `/proc/<pid>/stat`.
fn cpu_time(stat: &str) -> Option<Duration> {
    let ticks = number(stat_field(stat, 14)?)? + number(stat_field(stat, 15)?)?;
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 99 1000 10\n";
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(cpu_time(stat), Some(Duration::from_secs_f64(200.0 / ticks)));
        assert_eq!(cpu_time("12 (a) S 1"), None);
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert!(cpu_time(&own).is_some());
    }
}

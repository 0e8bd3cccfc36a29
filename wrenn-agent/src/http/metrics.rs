//! `GET /metrics`: how busy the guest is and how full.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::{Response, StatusCode};
use wrenn_agent_api::http::Metrics;

use super::{Body, HttpError, Routes, json};

/// The processors' clock ticks at the last call.
#[derive(Default)]
pub(super) struct CpuMeter(Mutex<Ticks>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    all: u64,
}

impl Routes {
    pub(super) async fn metrics(&self) -> Result<Response<Body>, HttpError> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|e| {
                HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read {path}: {e}"))
            })
        };
        let (ticks, cpu_count) = parse_stat(&read("/proc/stat")?);
        let memory = read("/proc/meminfo")?;
        let kib = |name: &str| parse_meminfo(&memory, name) * 1024;
        let (mem_total, mem_free, mem_cache) =
            (kib("MemTotal"), kib("MemFree"), kib("Cached") + kib("Buffers") + kib("SReclaimable"));
        let mem_used = mem_total.saturating_sub(mem_free).saturating_sub(mem_cache);
        let disk = rustix::fs::statvfs("/")
            .map_err(|e| HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("statvfs /: {e}")))?;
        let metrics = Metrics {
            ts: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64),
            cpu_count,
            cpu_used_pct: self.cpu.used_since_last(ticks),
            mem_total,
            mem_used,
            mem_cache,
            mem_total_mib: mem_total >> 20,
            mem_used_mib: mem_used >> 20,
            disk_used: disk.f_blocks.saturating_sub(disk.f_bfree) * disk.f_frsize,
            disk_total: disk.f_blocks * disk.f_frsize,
        };
        Ok(json(StatusCode::OK, &metrics))
    }
}

impl CpuMeter {
    fn used_since_last(&self, now: Ticks) -> f32 {
        let last = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), now);
        let all = now.all.saturating_sub(last.all);
        if all == 0 {
            return 0.0;
        }
        100.0 * now.busy.saturating_sub(last.busy) as f32 / all as f32
    }
}

/// The ticks of all processors, and their number, of /proc/stat (proc(5)).
fn parse_stat(stat: &str) -> (Ticks, u32) {
    let mut ticks = Ticks::default();
    let mut count = 0;
    for line in stat.lines().filter(|line| line.starts_with("cpu")) {
        let mut fields = line.split_whitespace();
        if fields.next() != Some("cpu") {
            count += 1;
            continue;
        }
        // user nice system idle iowait irq softirq steal; what follows is counted in user already.
        let fields: Vec<u64> = fields.take(8).map(|field| field.parse().unwrap_or(0)).collect();
        ticks.all = fields.iter().sum();
        ticks.busy = ticks.all - fields.iter().skip(3).take(2).sum::<u64>();
    }
    (ticks, count)
}

/// A line of /proc/meminfo, in KiB.
fn parse_meminfo(meminfo: &str, name: &str) -> u64 {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_proc_says() {
        let stat =
            "cpu  10 0 20 60 10 0 0 0 5 0\ncpu0 5 0 10 30 5 0 0 0 0 0\ncpu1 5 0 10 30 5 0 0 0 0 0\nintr 1\n";
        assert_eq!(parse_stat(stat), (Ticks { busy: 30, all: 100 }, 2));
        assert_eq!(parse_stat(""), (Ticks::default(), 0));
        let memory = "MemTotal:        1000 kB\nMemFree:  10 kB\nCached: x kB\n";
        assert_eq!(parse_meminfo(memory, "MemTotal"), 1000);
        assert_eq!((parse_meminfo(memory, "Cached"), parse_meminfo(memory, "Mem")), (0, 0));
    }

    #[test]
    fn load_is_measured_between_calls() {
        let meter = CpuMeter::default();
        assert_eq!(meter.used_since_last(Ticks { busy: 50, all: 200 }), 25.0);
        assert_eq!(meter.used_since_last(Ticks { busy: 150, all: 300 }), 100.0);
        assert_eq!(meter.used_since_last(Ticks { busy: 150, all: 300 }), 0.0);
    }
}

//! What answering faults costs, against what the kernel allows: a quick measurement, in one run, of
//! - filling memory by bare `UFFDIO_COPY` calls of 2 MiB, without any fault: the limit;
//! - a handler of twenty lines that copies the page that was touched;
//! - the fault server with runs of 1, 16 and 64 pages.
//!
//! `cargo run --release -p wrenn-uffd --example throughput [MiB]`, memory touched in random order. Everything
//! runs on one core: across cores a wake-up costs more than all else, and differently on every machine.

#[allow(unsafe_code)]
#[path = "throughput/sys.rs"]
mod bare;
#[path = "../tests/server/peer.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod peer;
#[allow(unsafe_code)]
#[path = "plain_process/sys.rs"]
mod sys;

use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use userfaultfd::FeatureFlags;
use wrenn_base::BoxError;
use wrenn_uffd::{FaultServer, FaultServerOptions, PageSource, Run, RunKind};

use peer::{PAGE, Scratch, hand_over, shuffled, uffd_or_skip};
use sys::Mapping;

/// An image that lies in memory, all data.
struct Plain(Vec<u8>);

impl PageSource for Plain {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn lookup(&self, _offset: u64, max: u64) -> Run {
        Run { kind: RunKind::Data, len: max }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError> {
        buf.copy_from_slice(&self.0[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
}

/// The processor time that this process has used: on one core, where always somebody has work, that is the
/// time it takes on a machine that does nothing else.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn touch(memory: &Mapping, order: &[usize]) -> Duration {
    let begun = used();
    for page in order {
        memory.read(page * PAGE, &mut [0]);
    }
    used() - begun
}

fn served(image: &Arc<Plain>, order: &[usize], run_pages: u32) -> Option<(Duration, u64, Duration)> {
    let (scratch, memory) = (Scratch::new(), Mapping::new(image.0.len()).ok()?);
    let uffd = uffd_or_skip(FeatureFlags::EVENT_REMOVE)?;
    let options = FaultServerOptions { run_pages, ..FaultServerOptions::default() };
    let server = FaultServer::listen(&scratch.socket(), image.clone(), options).ok()?;
    let _stream = hand_over(&scratch.socket(), &[(&memory, 0)], &uffd);
    let took = touch(&memory, order);
    let _ = server.stop();
    drop(uffd);
    let stats = server.stats();
    Some((took, stats.faults, stats.latency_within(0.5)))
}

fn main() {
    let mib = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(256);
    let pages = mib << 20 >> 12;
    let mut core = CpuSet::new();
    core.set(0);
    if let Err(e) = sched_setaffinity(None, &core) {
        eprintln!("not pinned to one core: {e}");
    }
    let image = Arc::new(Plain((0..pages * PAGE).map(|i| (i >> 12) as u8 | 1).collect()));
    let order = shuffled(pages, 42);
    // The machine's first touch of its own memory is not what is to be measured.
    let _ = bare::bulk(&image.0);
    let Some(limit) = bare::bulk(&image.0) else { return };
    println!("{mib} MiB, {pages} pages in random order, one core");
    let row = |what: &str, took: Duration, faults: u64, median: String| {
        let micros = took.as_secs_f64() * 1e6 / pages as f64;
        let share = limit.as_secs_f64() / took.as_secs_f64();
        println!("{what:<40} {micros:>7.2} us/page  {share:>5.2} of the limit  {faults:>7} faults  {median}");
    };
    row("bare UFFDIO_COPY of 2 MiB (the limit)", limit, 0, String::new());
    if let Some(took) = bare::minimal_handler(&image.0, &order) {
        row("handler of twenty lines, single pages", took, pages as u64, String::new());
    }
    for run_pages in [1, 16, 64] {
        if let Some((took, faults, median)) = served(&image, &order, run_pages) {
            let median = format!("half answered within {median:?}");
            row(&format!("fault server, runs of {run_pages}"), took, faults, median);
        }
    }
}

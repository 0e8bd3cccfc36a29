//! What answering faults costs, against what the kernel allows, in one run:
//! - filling memory by bare `UFFDIO_COPY` calls of 2 MiB, without any fault: the limit;
//! - a handler of twenty lines that copies the page that was touched, or the run of 16, 32 or 64 pages around it:
//!   what faults and their wake-ups cost by themselves;
//! - the fault server with runs of as many pages, with a record, with a prefetch;
//! - the first and the second process on a page cache.
//!
//! `cargo bench -p wrenn-uffd`, with `WRENN_BENCH_MIB` of memory (256), touched in random order. Everything
//! runs on one core: across cores a wake-up costs more than all else, and differently on every machine.
//! What is printed is the median of `WRENN_BENCH_ROUNDS` rounds (5), in each of which everything is measured
//! once, and against the limit of the same round.

#[allow(unsafe_code)]
#[path = "sys.rs"]
mod bare;
#[path = "../../tests/server/peer.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod peer;
#[allow(unsafe_code)]
#[path = "../../examples/plain_process/sys.rs"]
mod sys;

use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use userfaultfd::FeatureFlags;
use wrenn_base::BoxError;
use wrenn_uffd::{Backing, FaultServer, FaultServerOptions, PageCache, PageSource, Prefetch, Run, RunKind};

use peer::{PAGE, Scratch, hand_over, join, shuffled, uffd_or_skip};
use sys::Mapping;

/// An image that lies in memory, all data.
struct Plain {
    content: Vec<u8>,
    /// Whether it is lent out, as what is mapped is, or copied, as what is read from a file is.
    lends: bool,
}

impl PageSource for Plain {
    fn len(&self) -> u64 {
        self.content.len() as u64
    }

    fn lookup(&self, _offset: u64, max: u64) -> Run {
        Run { kind: RunKind::Data, len: max }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError> {
        buf.copy_from_slice(&self.content[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }

    fn resident(&self, offset: u64, len: usize) -> Option<&[u8]> {
        self.lends.then(|| &self.content[offset as usize..offset as usize + len])
    }
}

/// How many pages are filled at a time, of which each divides the pages of a mebibyte.
const RUNS: [u32; 4] = [1, 16, 32, 64];

/// One measurement.
struct Measured {
    what: String,
    /// How many pages each fault brings, at most; 0 without faults.
    run_pages: u32,
    took: Duration,
    faults: u64,
    /// The latency that half of the answers did not exceed.
    median: Duration,
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

fn served(
    what: &str,
    backing: impl Into<Backing>,
    order: &[usize],
    options: FaultServerOptions,
) -> Option<Measured> {
    let (scratch, backing) = (Scratch::new(), backing.into());
    let uffd = uffd_or_skip(FeatureFlags::EVENT_REMOVE)?;
    let cached = matches!(backing, Backing::Cache(_));
    let run_pages = options.run_pages;
    let server = FaultServer::listen(&scratch.socket(), backing, options).ok()?;
    let (memory, _stream);
    if cached {
        (_stream, _, memory) = join(&scratch.socket(), &uffd);
    } else {
        memory = Mapping::new(order.len() * PAGE).ok()?;
        _stream = hand_over(&scratch.socket(), &[(&memory, 0)], &uffd);
    }
    let took = touch(&memory, order);
    let _ = server.stop();
    drop(uffd);
    let stats = server.stats();
    let median = stats.latency_within(0.5);
    Some(Measured { what: what.to_owned(), run_pages, took, faults: stats.faults, median })
}

/// Everything once, the limit first.
fn round(images: &[Arc<Plain>; 2], order: &[usize]) -> Option<Vec<Measured>> {
    let plain = |what: &str, run_pages: u32, took| Measured {
        what: what.to_owned(),
        run_pages,
        took,
        faults: (order.len() as u64).checked_div(run_pages.into()).unwrap_or(0),
        median: Duration::ZERO,
    };
    let with = |run_pages| FaultServerOptions { run_pages, ..FaultServerOptions::default() };
    let image = &images[0];
    let mut rows = vec![plain("bare UFFDIO_COPY of 2 MiB (the limit)", 0, bare::bulk(&image.content)?)];
    for run_pages in RUNS {
        let took = bare::minimal_handler(&image.content, order, run_pages as usize)?;
        let what = format!("handler of twenty lines, runs of {run_pages}");
        rows.push(plain(&what, run_pages, took));
    }
    for run_pages in RUNS {
        for (image, how) in images.iter().zip(["lent", "read"]) {
            let what = format!("fault server, runs of {run_pages}, {how}");
            rows.push(served(&what, image.clone(), order, with(run_pages))?);
        }
    }
    let record = FaultServerOptions { record: true, ..with(16) };
    rows.push(served("fault server, runs of 16, recorded", image.clone(), order, record)?);
    let ahead = FaultServerOptions { prefetch: Prefetch::All, ..with(16) };
    rows.push(served("fault server, runs of 16, prefetched", image.clone(), order, ahead)?);
    for run_pages in [16, 64] {
        let cache = PageCache::new(image.clone()).ok()?;
        let what = |which| format!("page cache, runs of {run_pages}, {which} clone");
        rows.push(served(&what("first"), cache.clone(), order, with(run_pages))?);
        rows.push(served(&what("second"), cache, order, with(run_pages))?);
    }
    Some(rows)
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() {
    let (mib, rounds) = (number("WRENN_BENCH_MIB", 256), number("WRENN_BENCH_ROUNDS", 5).max(1));
    let pages = mib << 20 >> 12;
    let mut core = CpuSet::new();
    core.set(0);
    if let Err(e) = sched_setaffinity(None, &core) {
        eprintln!("not pinned to one core: {e}");
    }
    let content: Vec<_> = (0..pages * PAGE).map(|i| (i >> 12) as u8 | 1).collect();
    let images = [true, false].map(|lends| Arc::new(Plain { content: content.clone(), lends }));
    let order = shuffled(pages, 42);
    // The machine's first touch of its own memory is not what is to be measured.
    let _ = bare::bulk(&content);
    let Some(measured) = (0..rounds).map(|_| round(&images, &order)).collect::<Option<Vec<_>>>() else {
        return;
    };
    println!("{mib} MiB, {pages} pages in random order, one core, median of {rounds} rounds");
    for (i, first) in measured[0].iter().enumerate() {
        let median_of = |figure: &dyn Fn(&[Measured]) -> f64| {
            let mut figures: Vec<_> = measured.iter().map(|round| figure(round)).collect();
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        let nanos = median_of(&|round| round[i].took.as_secs_f64() * 1e9 / pages as f64);
        let share = median_of(&|round| round[0].took.as_secs_f64() / round[i].took.as_secs_f64());
        let Measured { what, run_pages, faults, median, .. } = first;
        // The first row that brings as many pages at a time is the handler's.
        let handler = measured[0].iter().position(|row| row.run_pages == *run_pages).unwrap_or(i);
        let minimal = median_of(&|round| round[handler].took.as_secs_f64() / round[i].took.as_secs_f64());
        println!(
            "{what:<40} {nanos:>6.0} ns/page {share:>6.2} of the limit {minimal:>6.2} of the handler {faults:>6} faults, half within {median:?}"
        );
    }
}

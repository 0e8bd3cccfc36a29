//! The init of the guests that the lab tests boot.
//!
//! It keeps a model of some of its memory, changes pages at random (to a pattern, or back to zero), and says on the
//! console, tick by tick, whether memory still is what the model says: `tick 7 of 2 cpus: ok`. A guest that
//! was restored wrongly says `BAD`, ticks from the start, or says nothing.
//!
//! The kernel's command line tells it how to end: `guest.end=poweroff`, `reboot` or `panic`, at `guest.ticks=N`.

#[allow(unsafe_code)]
mod sys;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use rustix::thread::CpuSet;

const PAGE: usize = 4096;
const PAGES: usize = 256;
const CHANGES: usize = 8;
const PVPANIC_PORT: u16 = 0x505;

fn main() {
    for (kind, at) in [("proc", "/proc"), ("devtmpfs", "/dev")] {
        mount(kind, at, kind, MountFlags::empty(), c"").expect("the guest mounts what it needs");
    }
    let cmdline = std::fs::read_to_string("/proc/cmdline").expect("the kernel tells its command line");
    let option = |name: &str| cmdline.split_whitespace().find_map(|word| word.strip_prefix(name));
    let last: u64 = option("guest.ticks=").map_or(u64::MAX, |text| text.parse().expect("a number"));

    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    println!("guest: up with {cpus} cpus and {} MiB", memory_mib());
    let others: Vec<_> = (1..cpus).map(start_on).collect();
    let mut memory = Memory::new(1);
    for tick in 1.. {
        memory.change();
        let right = memory.is_right() && others.iter().all(|laps| laps.load(Ordering::Relaxed) != u64::MAX);
        println!("tick {tick} of {cpus} cpus: {}", if right { "ok" } else { "BAD" });
        if tick == last {
            end(option("guest.end=").unwrap_or("poweroff"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Works on memory of its own on one more processor; the counter goes to its maximum if that turns out wrong.
fn start_on(cpu: usize) -> Arc<AtomicU64> {
    let laps = Arc::new(AtomicU64::new(0));
    let counter = laps.clone();
    std::thread::spawn(move || {
        let mut set = CpuSet::new();
        set.set(cpu);
        rustix::thread::sched_setaffinity(None, &set).expect("the processor is there");
        let mut memory = Memory::new(cpu as u64 + 1);
        loop {
            memory.change();
            let laps = counter.load(Ordering::Relaxed);
            counter.store(if memory.is_right() { laps + 1 } else { u64::MAX }, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    laps
}

/// Pages, and what each should hold: a word all over it, or zero.
struct Memory {
    pages: Vec<u64>,
    model: [u64; PAGES],
    random: u64,
}

impl Memory {
    fn new(seed: u64) -> Self {
        Self { pages: vec![0; PAGES * PAGE / 8], model: [0; PAGES], random: seed }
    }

    /// xorshift64.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn change(&mut self) {
        for _ in 0..CHANGES {
            let random = self.next_random();
            let page = random as usize % PAGES;
            self.model[page] = if random & (1 << 40) == 0 { 0 } else { random };
            self.pages[page * PAGE / 8..(page + 1) * PAGE / 8].fill(self.model[page]);
        }
    }

    fn is_right(&self) -> bool {
        let mut pages = self.pages.chunks(PAGE / 8).zip(&self.model);
        pages.all(|(page, word)| page.iter().all(|found| found == word))
    }
}

fn memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}

fn end(how: &str) -> ! {
    let result = match how {
        "reboot" => reboot(RebootCommand::Restart).map_err(Into::into),
        // What the kernel's pvpanic driver does when the kernel panics.
        "panic" => sys::write_port(PVPANIC_PORT, 1),
        _ => reboot(RebootCommand::PowerOff).map_err(Into::into),
    };
    println!("guest: {how}: {result:?}");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

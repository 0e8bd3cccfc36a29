//! The cases of the restore benchmark.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use wrenn_core::{Host, MiB, Prefetch, RestoreMode, RestoreOptions, Template};

use super::guest::{self, Resumed};
use super::report::{Bar, Report};
use super::stats::{Samples, millis};

/// What every template of a benchmark is called first: they are removed at its end.
const PREFIX: &str = "wrenn-bench-";

const COLD: RestoreOptions = RestoreOptions {
    mode: RestoreMode::Uffd,
    prefetch: Prefetch::None,
    prefetch_limit: 0,
    share_memory: true,
};

fn options(mode: RestoreMode, prefetch: Prefetch) -> RestoreOptions {
    RestoreOptions { mode, prefetch, ..RestoreOptions::default() }
}

/// A host to measure on.
pub(super) struct Bench<'a> {
    pub(super) host: &'a Host,
    pub(super) image: &'a str,
    pub(super) rounds: usize,
}

/// One way of resuming, and what was measured of it.
struct Case {
    label: String,
    template: Template,
    options: RestoreOptions,
    loaded: Samples,
    contact: Samples,
    exec: Samples,
    faults: u64,
}

impl Case {
    fn new(label: impl Into<String>, template: &Template, options: RestoreOptions) -> Self {
        let samples = Samples::default;
        let template = template.clone();
        Self {
            label: label.into(),
            template,
            options,
            loaded: samples(),
            contact: samples(),
            exec: samples(),
            faults: 0,
        }
    }

    async fn measure(&mut self) -> Result<(), Box<dyn Error>> {
        let (sandbox, Resumed { timings, first_exec, faults }) =
            guest::spawn_one(&self.template, self.options).await?;
        sandbox.destroy().await?;
        self.loaded.push(timings.loaded);
        self.contact.push(timings.first_contact);
        self.exec.push(first_exec);
        self.faults = faults;
        Ok(())
    }

    fn bar(&self) -> Bar {
        let Self { label, loaded, contact, exec, faults, .. } = self;
        Bar::new(label.clone())
            .part("loaded", millis(loaded.median()))
            .part("guest runs", millis(contact.median()))
            .part("first exec", millis(exec.median()))
            .more("p95", millis(exec.percentile(0.95)))
            .more("p99", millis(exec.percentile(0.99)))
            .more("faults", *faults as f64)
    }
}

/// Measures each case in turn, round by round.
async fn in_turns(cases: &mut [Case], rounds: usize) -> Result<(), Box<dyn Error>> {
    for round in 1..=rounds {
        eprintln!("wrenn: round {round} of {rounds}, {} cases", cases.len());
        for case in cases.iter_mut() {
            case.measure().await.map_err(|e| format!("{}: {e}", case.label))?;
        }
    }
    Ok(())
}

fn ratio(case: &Case, to: &Case) -> f64 {
    millis(case.exec.median()) / millis(to.exec.median())
}

impl Bench<'_> {
    fn template(&self, name: &str) -> Result<Template, Box<dyn Error>> {
        Ok(self.host.template(&format!("{PREFIX}{name}"))?)
    }

    /// Removes every template of a benchmark, of an earlier one too.
    pub(super) async fn clean_up(&self) {
        for name in self.host.templates().await.unwrap_or_default() {
            if let (true, Ok(template)) =
                (name.as_str().starts_with(PREFIX), self.host.template(name.as_str()))
                && let Err(e) = template.delete().await
            {
                eprintln!("wrenn: template {name} is left: {e}");
            }
        }
    }

    /// Makes a template of a freshly booted guest.
    async fn make(&self, name: &str, memory: MiB, fill: u32) -> Result<Template, Box<dyn Error>> {
        let template = self.template(name)?;
        let _ = template.delete().await;
        let paused = guest::pause(guest::boot(self.host, self.image, memory, fill).await?).await?;
        paused.to_template(template.name().as_str()).await?;
        paused.destroy().await?;
        Ok(template)
    }

    /// Resumes of guests of all sizes, cold, with their working set, and from a file.
    pub(super) async fn sizes(
        &self,
        sizes: &[MiB],
        fill: u32,
        report: &mut Report,
    ) -> Result<(), Box<dyn Error>> {
        let mut cases = Vec::new();
        for memory in sizes {
            let template =
                self.make(&format!("size-{}", memory.0), *memory, fill * memory.0 / sizes[0].0).await?;
            // A resume learns the working set that the later ones prefetch.
            guest::spawn_one(&template, COLD).await?.0.destroy().await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let ways = [
                ("Uffd cold", COLD),
                ("Uffd + working set", options(RestoreMode::Uffd, Prefetch::WorkingSet)),
                ("File", options(RestoreMode::File, Prefetch::None)),
            ];
            cases
                .extend(ways.map(|(way, options)| Case::new(format!("{memory}, {way}"), &template, options)));
        }
        in_turns(&mut cases, self.rounds).await?;
        report.chart("Resume by memory size", "ms", cases.iter().map(Case::bar));
        let last = cases.len() - 3;
        report.ratio(
            "largest memory against smallest, working set (at most 1.3)",
            ratio(&cases[last + 1], &cases[1]),
        );
        report.ratio("largest memory against smallest, cold", ratio(&cases[last], &cases[0]));
        report.ratio("working set against cold, smallest memory (at most 0.6)", ratio(&cases[1], &cases[0]));
        report.ratio("File against cold, smallest memory", ratio(&cases[2], &cases[0]));
        let whole = self.whole_memory(&cases[last].template).await?;
        report.chart(
            "Everything paged in, largest memory",
            "ms",
            [Bar::new("all of it prefetched").part("done", millis(whole))],
        );
        Ok(())
    }

    /// How long it takes until all of a guest's memory is there: what a restore that copies it would wait for.
    async fn whole_memory(&self, template: &Template) -> Result<Duration, Box<dyn Error>> {
        let begun = Instant::now();
        let all =
            RestoreOptions { prefetch: Prefetch::All, prefetch_limit: u64::MAX, ..RestoreOptions::default() };
        let sandbox = template.builder().restore(all).spawn(1).await?.remove(0);
        let (mut last, mut seen) = (Instant::now(), 0);
        while last.elapsed() < Duration::from_secs(1) {
            let now = sandbox.fault_stats().await.map_or(0, |stats| stats.prefetched);
            if now != seen {
                (seen, last) = (now, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sandbox.destroy().await?;
        Ok(last - begun)
    }

    /// Resumes of a guest that was paused again and again.
    pub(super) async fn depths(
        &self,
        memory: MiB,
        depths: &[usize],
        report: &mut Report,
    ) -> Result<(), Box<dyn Error>> {
        let mut depths = depths.to_vec();
        depths.sort();
        let Some(deepest) = depths.last().copied() else { return Ok(()) };
        let mut cases = Vec::new();
        let mut paused = guest::pause(guest::boot(self.host, self.image, memory, 16).await?).await?;
        for depth in 1..=deepest {
            if depth > 1 {
                let sandbox = guest::resume(paused).await?;
                guest::dirty(&sandbox, 1).await?;
                paused = guest::pause(sandbox).await?;
            }
            if depths.contains(&depth) {
                let template = self.template(&format!("depth-{depth}"))?;
                let _ = template.delete().await;
                paused.to_template(template.name().as_str()).await?;
                let layers = paused.memory_usage().await?.layers;
                cases.push(Case::new(format!("{depth} pauses, {layers} layers"), &template, COLD));
            }
        }
        paused.destroy().await?;
        in_turns(&mut cases, self.rounds).await?;
        report.chart("Resume by chain depth, cold", "ms", cases.iter().map(Case::bar));
        report.ratio(
            "deepest chain against the shortest (at most 1.1)",
            ratio(&cases[cases.len() - 1], &cases[0]),
        );
        Ok(())
    }

    /// Sandboxes of one template side by side: faults, and memory.
    pub(super) async fn clones(
        &self,
        memory: MiB,
        counts: &[usize],
        fill: u32,
        report: &mut Report,
    ) -> Result<(), Box<dyn Error>> {
        let template = self.make("clones", memory, fill).await?;
        let mut bars = Vec::new();
        for count in counts {
            eprintln!("wrenn: {count} clones side by side");
            let mut clones = Vec::new();
            let mut faults = Vec::new();
            // The cache is mapped in this process too, which serves it.
            let own = std::process::id() as i32;
            let before = guest::pss(own)?;
            for _ in 0..*count {
                let (sandbox, resumed) = guest::spawn_one(&template, COLD).await?;
                faults.push(resumed.faults);
                clones.push(sandbox);
            }
            let mut total = guest::pss(own)?.saturating_sub(before);
            for sandbox in &clones {
                total += guest::pss(sandbox.monitor_pid())?;
            }
            let rest = &faults[1.min(faults.len() - 1)..];
            bars.push(
                Bar::new(format!("{count} clones"))
                    .part("Pss together, MiB", total as f64 / 1024.0)
                    .more("MiB each", total as f64 / 1024.0 / *count as f64)
                    .more("faults of the first", faults[0] as f64)
                    .more("faults of each later", rest.iter().sum::<u64>() as f64 / rest.len() as f64),
            );
            for sandbox in clones {
                sandbox.destroy().await?;
            }
        }
        report.chart("Clones of one template", "MiB", bars);
        Ok(())
    }

    /// What a pause takes, by how much the guest has written since its resume.
    pub(super) async fn pauses(
        &self,
        memory: MiB,
        dirty: &[u32],
        report: &mut Report,
    ) -> Result<(), Box<dyn Error>> {
        let sandbox = guest::boot(self.host, self.image, memory, 32).await?;
        let begun = Instant::now();
        let mut paused = guest::pause(sandbox).await?;
        let written = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut bars = vec![
            Bar::new("full")
                .part("ms", millis(begun.elapsed()))
                .more("MiB", written(paused.snapshot().memory_written.get())),
        ];
        for size in dirty {
            let sandbox = guest::resume(paused).await?;
            guest::dirty(&sandbox, *size).await?;
            let begun = Instant::now();
            paused = guest::pause(sandbox).await?;
            let took = begun.elapsed();
            bars.push(
                Bar::new(format!("{size} MiB dirtied"))
                    .part("ms", millis(took))
                    .more("MiB", written(paused.snapshot().memory_written.get())),
            );
        }
        paused.destroy().await?;
        report.chart("Pause", "ms", bars);
        Ok(())
    }

    /// How long a running guest stands still for a snapshot, against a full pause of the same guest.
    pub(super) async fn stop_of_a_running_parent(
        &self,
        memory: MiB,
        fill: u32,
        report: &mut Report,
    ) -> Result<(), Box<dyn Error>> {
        let parent = guest::boot(self.host, self.image, memory, fill).await?;
        let mut stops = Samples::default();
        for _ in 0..self.rounds.min(5) {
            let template = self.template("stop")?;
            let taken = parent.snapshot(template.name().as_str()).await?;
            stops.push(taken.stopped);
            template.delete().await?;
        }
        let begun = Instant::now();
        let paused = guest::pause(parent).await?;
        let full = begun.elapsed();
        paused.destroy().await?;
        let bar = |label: &str, took| Bar::new(label).part("ms", millis(took));
        report.chart(
            "Stop of a running guest",
            "ms",
            [bar("snapshot", stops.median()), bar("full pause", full)],
        );
        report.ratio(
            "stop of a snapshot against a full pause (at most 0.1)",
            millis(stops.median()) / millis(full),
        );
        Ok(())
    }

    /// The same guest under Firecracker, in turns with the monitor in use.
    pub(super) async fn firecracker(
        &self,
        path: &Path,
        memory: MiB,
        fill: u32,
        report: &mut Report,
    ) -> Result<(), Box<dyn Error>> {
        let data = self.host.data_dir().with_extension("firecracker");
        link_images(self.host.data_dir(), &data)?;
        let other = Host::builder().data_dir(&data).run_dir("/run/wrenn-bench").monitor(path).open().await?;
        let theirs = Bench { host: &other, image: self.image, rounds: self.rounds };
        let (own, template) =
            (self.make("own", memory, fill).await?, theirs.make("firecracker", memory, fill).await?);
        guest::spawn_one(&own, COLD).await?.0.destroy().await?;
        let mut cases = [
            Case::new("wrenn-monitor, working set", &own, RestoreOptions::default()),
            Case::new("wrenn-monitor, File", &own, options(RestoreMode::File, Prefetch::None)),
            Case::new("Firecracker, File", &template, options(RestoreMode::File, Prefetch::None)),
            Case::new("Firecracker, Uffd cold", &template, COLD),
        ];
        in_turns(&mut cases, self.rounds).await?;
        report.chart("Against Firecracker", "ms", cases.iter().map(Case::bar));
        let best = if ratio(&cases[0], &cases[1]) < 1.0 { &cases[0] } else { &cases[1] };
        report.ratio(
            "wrenn-monitor's better mode against Firecracker's File (at most 0.6)",
            ratio(best, &cases[2]),
        );
        theirs.clean_up().await;
        drop((cases, template));
        other.close().await?;
        Ok(std::fs::remove_dir_all(data)?)
    }
}

/// Another data directory with the same images and guest files.
fn link_images(from: &Path, to: &Path) -> std::io::Result<()> {
    for part in ["images", "guest"] {
        std::fs::create_dir_all(to)?;
        std::os::unix::fs::symlink(from.join(part), to.join(part))?;
    }
    Ok(())
}

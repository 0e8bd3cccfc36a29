//! `wrenn bench restore`: how long resuming takes, and what it costs.
//!
//! Cases that are compared are measured in turns within one run, so that whatever else the machine does hits all of them.
//! What is printed as a ratio is a ratio of medians of that run.

mod cases;
mod guest;
mod report;
mod stats;

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use wrenn_core::{CompactionPolicy, Host, MiB};

use report::Report;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Resume latency by memory size, prefetch, chain depth and number of clones; cost of pauses and snapshots.
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The image of the guests.
    #[arg(long, default_value = "debian")]
    image: String,
    /// How often each case is measured.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// The guests' memory, in MiB; sizes that this machine has no room for are left out.
    #[arg(long, value_delimiter = ',', default_value = "256,1024,4096")]
    memory: Vec<u32>,
    /// How many MiB of random data a guest of the smallest size holds; larger ones hold more, in proportion.
    #[arg(long, default_value_t = 64)]
    fill: u32,
    /// The numbers of pauses after which resuming is measured.
    #[arg(long, value_delimiter = ',', default_value = "1,5,10,50")]
    depth: Vec<usize>,
    /// How many sandboxes of one template run side by side.
    #[arg(long, value_delimiter = ',', default_value = "1,4,10")]
    clones: Vec<usize>,
    /// How many MiB a guest writes between two pauses.
    #[arg(long, value_delimiter = ',', default_value = "0,1,4,16,64")]
    dirty: Vec<u32>,
    /// Measure this Firecracker too, in turns with the monitor in use.
    #[arg(long, value_name = "PATH")]
    firecracker: Option<PathBuf>,
    /// Write the report as a page with plots as well.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs a benchmark on the images in `data`; sandboxes and templates are in a directory of their own below it.
pub(crate) fn run(data: &Path, command: BenchCommand) -> Result<(), Box<dyn Error>> {
    let BenchCommand::Restore(args) = command;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(restore(data, &args))?;
    print!("{}", report.text());
    if let Some(path) = &args.html {
        std::fs::write(path, report.html()).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        eprintln!("wrenn: the page is {}", path.display());
    }
    Ok(())
}

async fn restore(data: &Path, args: &RestoreArgs) -> Result<Report, Box<dyn Error>> {
    if args.rounds == 0 || args.memory.is_empty() || args.memory.contains(&0) {
        return Err("nothing to measure: give at least one round and one size of memory".into());
    }
    // Chains are to stay as long as they are made.
    let never = CompactionPolicy { max_layers: usize::MAX, ..CompactionPolicy::default() };
    let host = Host::builder().data_dir(data).compaction(never).open().await?;
    let mut report = Report::new(args.rounds);
    let bench = cases::Bench { host: &host, image: &args.image, rounds: args.rounds };
    let result = tokio::select! {
        result = measure(&bench, args, &mut report) => result,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    bench.clean_up().await;
    host.close().await?;
    result?;
    Ok(report)
}

async fn measure(
    bench: &cases::Bench<'_>,
    args: &RestoreArgs,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let smallest = MiB(*args.memory.iter().min().unwrap_or(&256));
    let sizes = guest::that_fit(&args.memory)?;
    bench.sizes(&sizes, args.fill, report).await?;
    bench.depths(smallest, &args.depth, report).await?;
    bench.clones(smallest, &args.clones, args.fill, report).await?;
    bench.pauses(smallest, &args.dirty, report).await?;
    bench.stop_of_a_running_parent(smallest, args.fill, report).await?;
    match &args.firecracker {
        Some(path) => bench.firecracker(path, smallest, args.fill, report).await?,
        None => report.note("Firecracker was not measured: --firecracker PATH does"),
    }
    Ok(())
}

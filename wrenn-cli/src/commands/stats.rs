//! `wrenn stats` and `wrenn logs`.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use wrenn_core::{Bytes, SandboxId};
use wrenn_host::{HostError, Reason, SandboxState};

use super::{Context, Result};
use crate::output::Table;

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Ids of sandboxes, or the beginnings of them; all that run if none is given.
    #[arg(value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Show them again and again, so many seconds apart, until interrupted.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    watch: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The sandbox's id, or the beginning of it.
    sandbox: String,
    /// At most so many KiB from the end.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=64))]
    tail: u32,
}

#[derive(Debug, Serialize)]
struct View {
    id: SandboxId,
    cpu_us: u64,
    memory_resident_bytes: u64,
    disk_allocated_bytes: u64,
    network_received_bytes: u64,
    network_sent_bytes: u64,
}

pub(crate) async fn run(context: &Context, args: StatsArgs) -> Result<()> {
    loop {
        let views = gather(context, &args.sandboxes).await?;
        context.format.print(&views, |views| table(views))?;
        let Some(seconds) = args.watch else { return Ok(()) };
        tokio::time::sleep(Duration::from_secs(seconds.max(1).into())).await;
    }
}

async fn gather(context: &Context, wanted: &[String]) -> Result<Vec<View>> {
    let mut sandboxes = Vec::new();
    if wanted.is_empty() {
        let all = context.host().list().await?;
        sandboxes.extend(all.into_iter().filter(|sandbox| sandbox.state == SandboxState::Running));
    }
    for text in wanted {
        sandboxes.push(context.find_running(text).await?);
    }
    let mut views = Vec::new();
    for sandbox in sandboxes {
        match context.host().stats(&sandbox.id).await {
            Ok(stats) => views.push(View {
                id: sandbox.id,
                cpu_us: u64::try_from(stats.cpu.as_micros()).unwrap_or(u64::MAX),
                memory_resident_bytes: stats.memory_resident.0,
                disk_allocated_bytes: stats.disk_allocated.0,
                network_received_bytes: stats.network_received.0,
                network_sent_bytes: stats.network_sent.0,
            }),
            // One that ended since it was listed has none.
            Err(error) if wanted.is_empty() && is_over(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(views)
}

fn is_over(error: &HostError) -> bool {
    matches!(error.reason(), Some(Reason::NoSuchSandbox | Reason::NotRunning | Reason::GuestEnded))
}

fn table(views: &[View]) -> String {
    let mut table = Table::new(["ID", "CPU TIME", "MEMORY", "DISK", "RECEIVED", "SENT"]);
    for view in views {
        table.line([
            view.id.to_string(),
            format!("{:.1} s", view.cpu_us as f64 / 1e6),
            Bytes(view.memory_resident_bytes).to_string(),
            Bytes(view.disk_allocated_bytes).to_string(),
            Bytes(view.network_received_bytes).to_string(),
            Bytes(view.network_sent_bytes).to_string(),
        ]);
    }
    table.render()
}

#[derive(Debug, Serialize)]
struct Log {
    id: SandboxId,
    log: String,
}

pub(crate) async fn logs(context: &Context, args: LogArgs) -> Result<()> {
    let sandbox = context.find_running(&args.sandbox).await?;
    let console = context.host().console(&sandbox.id, args.tail * 1024).await?;
    let log = Log { id: sandbox.id, log: String::from_utf8_lossy(&console).into_owned() };
    Ok(context.format.print(&log, |log| crate::printable(&log.log.replace("\r\n", "\n")))?)
}

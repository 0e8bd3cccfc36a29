//! `wrenn pause`, `resume`, `branch`, `rm` and `timeout`.

use std::time::Duration;

use clap::Args;
use wrenn_core::{Bytes, SandboxId};
use wrenn_host::{Branch, OnTimeout, SandboxRecord, Timeout};

use super::view::{self, Made, Paused};
use super::{Context, Result};
use crate::args::{Pair, duration};

#[derive(Debug, Args)]
pub(crate) struct Some {
    /// Ids of sandboxes, or the beginnings of them.
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BranchArgs {
    /// The sandbox's id, or the beginning of it.
    sandbox: String,
    /// How many.
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    count: u16,
    /// Something to find them by, beside the parent's.
    #[arg(short, long = "label", value_name = "NAME=VALUE")]
    labels: Vec<Pair>,
}

#[derive(Debug, Args)]
pub(crate) struct TimeoutArgs {
    /// The sandbox's id, or the beginning of it.
    sandbox: String,
    /// How long it may be idle from now on: 30s, 10m, 1h30m; `never`.
    #[arg(value_parser = timeout_of, value_name = "TIME")]
    after: Limit,
    /// Pause it then, instead of removing it.
    #[arg(long)]
    pause: bool,
}

#[derive(Debug, Clone, Copy)]
struct Limit(Option<Duration>);

fn timeout_of(text: &str) -> std::result::Result<Limit, String> {
    if text == "never" {
        return Ok(Limit(None));
    }
    match duration(text)? {
        Duration::ZERO => Err("zero leaves no time to do anything".into()),
        after => Ok(Limit(std::option::Option::Some(after))),
    }
}

/// Does something with each, and fails at the end if one failed.
async fn each(context: &Context, args: Some, what: impl AsyncFn(&SandboxRecord) -> Result<()>) -> Result<()> {
    let mut failed = 0;
    for text in &args.sandboxes {
        let done = async { what(&context.find(text).await?).await };
        if let Err(error) = done.await {
            crate::report(&*error);
            failed += 1;
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(format!("{failed} of {} failed", args.sandboxes.len()).into()),
    }
}

pub(crate) async fn pause(context: &Context, args: Some) -> Result<()> {
    each(context, args, async |sandbox| {
        let paused = context.host().pause(&sandbox.id).await?;
        let view = Paused {
            id: &sandbox.id,
            generation: paused.generation,
            memory_written_bytes: paused.memory_written.0,
        };
        let size = Bytes(view.memory_written_bytes);
        Ok(context.format.print(&view, |view| format!("{}  {size} of memory written\n", view.id))?)
    })
    .await
}

pub(crate) async fn resume(context: &Context, args: Some) -> Result<()> {
    each(context, args, async |sandbox| {
        let resumed = context.host().resume(&sandbox.id, None).await?;
        Ok(context.format.print(&Made { id: &resumed.id }, view::id_alone)?)
    })
    .await
}

pub(crate) async fn remove(context: &Context, args: Some) -> Result<()> {
    each(context, args, async |sandbox| {
        context.host().destroy(&sandbox.id).await?;
        Ok(context.format.print(&Made { id: &sandbox.id }, view::id_alone)?)
    })
    .await
}

pub(crate) async fn branch(context: &Context, args: BranchArgs) -> Result<()> {
    let parent = context.find_running(&args.sandbox).await?;
    let children = (0..args.count).map(|_| SandboxId::random()).collect();
    let mut request = Branch::new(parent.id, children);
    request.metadata = args.labels.into_iter().map(|Pair { name, value }| (name, value)).collect();
    for child in context.host().branch(request).await? {
        context.format.print(&Made { id: &child.id }, view::id_alone)?;
    }
    Ok(())
}

pub(crate) async fn timeout(context: &Context, args: TimeoutArgs) -> Result<()> {
    let sandbox = context.find_running(&args.sandbox).await?;
    let then = if args.pause { OnTimeout::Pause } else { OnTimeout::Destroy };
    let timeout = Timeout { after: args.after.0, then };
    let sandbox = context.host().set_timeout(&sandbox.id, timeout).await?;
    Ok(context.format.print(&Made { id: &sandbox.id }, view::id_alone)?)
}

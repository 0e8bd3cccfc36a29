//! `wrenn snapshot` and `wrenn templates`.

use clap::{Args, Subcommand};
use serde::Serialize;
use wrenn_core::{Bytes, TemplateName};
use wrenn_host::TemplateRecord;

use super::{Context, Result};
use crate::output::Table;

#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    /// The sandbox's id, or the beginning of it.
    sandbox: String,
    /// The template's name, which must not be taken.
    name: TemplateName,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// List them; this is what `wrenn templates` alone does.
    Ls,
    /// Remove some. Sandboxes made from them stay.
    Rm {
        #[arg(required = true, value_name = "TEMPLATE")]
        names: Vec<TemplateName>,
    },
}

#[derive(Debug, Serialize)]
struct Taken {
    template: TemplateName,
    stopped_us: u64,
    memory_written_bytes: u64,
}

#[derive(Debug, Serialize)]
struct View {
    name: String,
    image: String,
    vcpus: u32,
    memory_mib: u64,
    allocated_bytes: u64,
}

impl From<TemplateRecord> for View {
    fn from(template: TemplateRecord) -> Self {
        Self {
            name: template.name.to_string(),
            image: template.image.to_string(),
            vcpus: template.vcpus,
            memory_mib: template.memory.0.into(),
            allocated_bytes: template.allocated.0,
        }
    }
}

pub(crate) async fn snapshot(context: &Context, args: SnapshotArgs) -> Result<()> {
    let sandbox = context.find_running(&args.sandbox).await?;
    let taken = context.host().snapshot(&sandbox.id, &args.name).await?;
    let taken = Taken {
        template: args.name,
        stopped_us: u64::try_from(taken.stopped.as_micros()).unwrap_or(u64::MAX),
        memory_written_bytes: taken.memory_written.0,
    };
    Ok(context.format.print(&taken, |taken| {
        let stopped = taken.stopped_us as f64 / 1000.0;
        let written = Bytes(taken.memory_written_bytes);
        format!(
            "{}  {written} of memory written, the guest stood still for {stopped:.1} ms\n",
            taken.template
        )
    })?)
}

pub(crate) async fn run(context: &Context, command: Option<TemplateCommand>) -> Result<()> {
    if let Some(TemplateCommand::Rm { names }) = command {
        for name in &names {
            context.host().delete_template(name).await?;
        }
        return Ok(context
            .format
            .print(&names, |names| names.iter().map(|name| format!("{name}\n")).collect())?);
    }
    let views: Vec<View> = context.host().templates().await?.into_iter().map(View::from).collect();
    Ok(context.format.print(&views, |views| {
        let mut table = Table::new(["TEMPLATE", "IMAGE", "VCPUS", "MEMORY", "ON DISK"]);
        for view in views {
            let (memory, disk) =
                (format!("{} MiB", view.memory_mib), Bytes(view.allocated_bytes).to_string());
            table.line([view.name.clone(), view.image.clone(), view.vcpus.to_string(), memory, disk]);
        }
        table.render()
    })?)
}

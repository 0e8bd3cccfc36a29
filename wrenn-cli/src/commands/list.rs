//! `wrenn ps`

use clap::Args;
use wrenn_host::SandboxState;

use super::view::View;
use super::{Context, Result};
use crate::output::Table;

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Paused ones too.
    #[arg(short, long)]
    all: bool,
    /// Print ids only.
    #[arg(short, long)]
    quiet: bool,
    /// Only those with this label; NAME alone for any value of it.
    #[arg(short, long = "label", value_name = "NAME[=VALUE]")]
    labels: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: ListArgs) -> Result<()> {
    let all = context.host().list().await?;
    let wanted = all.iter().filter(|sandbox| args.all || sandbox.state != SandboxState::Paused);
    let views: Vec<View<'_>> =
        wanted.map(View::of).filter(|view| args.labels.iter().all(|label| view.has(label))).collect();
    Ok(context.format.print(&views, |views| match args.quiet {
        true => views.iter().map(|view| format!("{}\n", view.id)).collect(),
        false => table(views),
    })?)
}

fn table(views: &[View<'_>]) -> String {
    let mut table = Table::new(["ID", "STATE", "MADE OF", "VCPUS", "MEMORY", "AGE", "EXPIRES", "LABELS"]);
    for view in views {
        table.line([
            view.id.to_string(),
            view.state.to_string(),
            view.template.clone().unwrap_or_else(|| view.image.to_owned()),
            view.vcpus.to_string(),
            format!("{} MiB", view.memory_mib),
            view.age(),
            view.expires(),
            view.labels(),
        ]);
    }
    table.render()
}

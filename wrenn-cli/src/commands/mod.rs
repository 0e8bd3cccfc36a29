//! The commands about sandboxes: clients of the data directory's host process.

mod copy;
mod events;
mod forward;
mod images;
mod lifecycle;
mod list;
mod run;
mod stats;
mod templates;
mod view;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use wrenn_agent_api::AgentClient;
use wrenn_host::{HostClient, SandboxRecord, SandboxState};

use crate::link;
use crate::output::Format;

/// Any error of a command: it is only ever shown.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Subcommand)]
pub(crate) enum SandboxCommand {
    /// Run a command in a new sandbox, which is gone when the command ends.
    ///
    /// Exit status: the command's own, or 128 and the number of the signal that ended it; 124 if it ran into --timeout, 125 if
    /// Wrenn failed, 127 if the guest cannot run it, 130 if it was interrupted.
    Run(run::RunArgs),
    /// Run a command in a sandbox that runs. Exit status as of `run`.
    Exec(run::ExecArgs),
    /// List sandboxes.
    Ps(list::ListArgs),
    /// Copy files and directories from or to a sandbox.
    Cp(copy::CopyArgs),
    /// Pause sandboxes to disk.
    Pause(lifecycle::Some),
    /// Resume paused sandboxes.
    Resume(lifecycle::Some),
    /// Make sandboxes that go on where a running one is, which runs on.
    Branch(lifecycle::BranchArgs),
    /// Remove sandboxes, running or paused, with their snapshots.
    Rm(lifecycle::Some),
    /// Set how long a running sandbox may be idle.
    Timeout(lifecycle::TimeoutArgs),
    /// Make a template of a running sandbox, which runs on.
    Snapshot(templates::SnapshotArgs),
    /// List or remove templates.
    Templates {
        #[command(subcommand)]
        command: Option<templates::TemplateCommand>,
    },
    /// Show the end of a running sandbox's console.
    Logs(stats::LogArgs),
    /// Show what running sandboxes use.
    Stats(stats::StatsArgs),
    /// Show what happens to sandboxes, until interrupted.
    Events,
    /// Make ports of a guest's be had on this machine, until interrupted.
    PortForward(forward::ForwardArgs),
}

/// What all of these commands work with.
pub(crate) struct Context {
    host: HostClient,
    data: PathBuf,
    pub(crate) format: Format,
}

/// Runs one of them.
///
/// # Errors
/// The host process cannot be reached or started, or refuses; or this program's own files or streams fail.
pub(crate) async fn run(data: &Path, format: Format, command: SandboxCommand) -> Result<ExitCode> {
    let context = Context { host: link::open(data).await?, data: data.to_owned(), format };
    match command {
        SandboxCommand::Run(args) => return run::run(&context, args).await,
        SandboxCommand::Exec(args) => return run::exec(&context, args).await,
        SandboxCommand::Ps(args) => list::run(&context, args).await?,
        SandboxCommand::Cp(args) => copy::run(&context, args).await?,
        SandboxCommand::Pause(args) => lifecycle::pause(&context, args).await?,
        SandboxCommand::Resume(args) => lifecycle::resume(&context, args).await?,
        SandboxCommand::Branch(args) => lifecycle::branch(&context, args).await?,
        SandboxCommand::Rm(args) => lifecycle::remove(&context, args).await?,
        SandboxCommand::Timeout(args) => lifecycle::timeout(&context, args).await?,
        SandboxCommand::Snapshot(args) => templates::snapshot(&context, args).await?,
        SandboxCommand::Templates { command } => templates::run(&context, command).await?,
        SandboxCommand::Logs(args) => stats::logs(&context, args).await?,
        SandboxCommand::Stats(args) => stats::run(&context, args).await?,
        SandboxCommand::Events => events::run(&context).await?,
        SandboxCommand::PortForward(args) => forward::run(&context, args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses the removal of images that something needs.
///
/// # Errors
/// Something does, or the host process cannot tell.
pub(crate) async fn check_unused(data: &Path, format: Format, names: &[wrenn_core::ImageName]) -> Result<()> {
    let context = Context { host: link::open(data).await?, data: data.to_owned(), format };
    images::check_unused(&context, names).await
}

impl Context {
    pub(crate) fn host(&self) -> &HostClient {
        &self.host
    }

    /// The sandbox whose id is `text` or begins with it, if there is only one.
    async fn find(&self, text: &str) -> Result<SandboxRecord> {
        let all = self.host.list().await?;
        if let Some(exact) = all.iter().find(|sandbox| sandbox.id.as_str() == text) {
            return Ok(exact.clone());
        }
        let mut found = all.into_iter().filter(|sandbox| sandbox.id.as_str().starts_with(text));
        match (found.next(), found.next()) {
            (Some(one), None) if !text.is_empty() => Ok(one),
            (None, _) => Err(format!("there is no sandbox {text:?}").into()),
            _ => Err(format!("more than one sandbox begins with {text:?}").into()),
        }
    }

    /// The same, of those that run.
    async fn find_running(&self, text: &str) -> Result<SandboxRecord> {
        let sandbox = self.find(text).await?;
        match sandbox.state {
            SandboxState::Running => Ok(sandbox),
            other => Err(format!("sandbox {} does not run: it is {}", sandbox.id, view::state(other)).into()),
        }
    }

    fn agent(&self, sandbox: &SandboxRecord) -> Result<AgentClient> {
        let token = sandbox.token.clone();
        let token = token.ok_or_else(|| format!("sandbox {} does not run", sandbox.id))?;
        Ok(self.host.agent(&sandbox.id, token))
    }
}

//! `wrenn run` and `wrenn exec`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use wrenn_agent_api::{AgentClient, AgentError, Command};
use wrenn_core::SandboxId;
use wrenn_core::image::{ImageDetails, ImageRegistry};
use wrenn_host::{CreateSandbox, Egress, Reason, Source, Timeout};

use super::forward::Forwards;
use super::view::{self, Made};
use super::{Context, Result};
use crate::args::{MemorySize, Pair, PortMapping, Variable, duration};
use crate::attach::{AttachError, Ended, Streams, follow, status, told_to_end};
use crate::terminal;

/// How long a sandbox outlives a `run` that was killed. While the command runs its connection keeps it.
const ORPHAN_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// MiB, or with a unit: 512m, 2g.
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<MemorySize>,
    /// How many vCPUs.
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// A port of the guest to be had on this machine; `80` is at any free port.
    #[arg(short, long = "publish", value_name = "[[ADDRESS:]PORT:]GUEST-PORT")]
    publish: Vec<PortMapping>,
    /// Something to find the sandbox by.
    #[arg(short, long = "label", value_name = "NAME=VALUE")]
    labels: Vec<Pair>,
    /// The guest reaches nothing.
    #[arg(long)]
    no_network: bool,
    /// End the command after this time: 30s, 10m, 1h30m.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    timeout: Option<Duration>,
    /// Leave the sandbox running, print its id, and do not wait.
    #[arg(short, long, conflicts_with_all = ["interactive", "terminal", "publish", "timeout"])]
    detach: bool,
    #[command(flatten)]
    how: How,
    /// An image's name, or a template's.
    image: String,
    /// The command and its arguments. If not given: the image's own, with the environment, directory and user that it asks
    /// for; /bin/sh where it has none.
    #[arg(last = true)]
    command: Vec<String>,
}

/// What running a command in a new sandbox and in one that is there have in common.
#[derive(Debug, Args)]
struct How {
    /// Pass standard input on.
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long = "tty")]
    terminal: bool,
    /// A variable of the command's environment; NAME alone takes it from this one.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<Variable>,
    /// The directory to run it in.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Whom to run it as.
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    how: How,
    /// End the command after this time: 30s, 10m, 1h30m.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    timeout: Option<Duration>,
    /// The sandbox's id, or the beginning of it.
    sandbox: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs a command in a sandbox made for it.
pub(crate) async fn run(context: &Context, mut args: RunArgs) -> Result<ExitCode> {
    let id = SandboxId::random();
    let request = args.request(context, id.clone()).await?;
    if let (true, Source::Image(image)) = (args.command.is_empty(), &request.source) {
        let (data, image) = (context.data.clone(), image.clone());
        let found = tokio::task::spawn_blocking(move || ImageRegistry::open(&data)?.get(&image)).await?;
        args.command = args.how.take_program(found?.details);
    }
    if args.detach {
        let sandbox = context.host().create(request).await?;
        if !args.command.is_empty() {
            drop(context.agent(&sandbox)?.start(args.how.command(args.command, None)).await?);
        }
        context.format.print(&Made { id: &sandbox.id }, view::id_alone)?;
        return Ok(ExitCode::SUCCESS);
    }
    let ended = in_new(context, request, args).await;
    // Whatever came of it. What cannot be removed now goes when it has been idle for its time.
    match context.host().destroy(&id).await {
        Err(error) if ended.is_ok() && error.reason() != Some(Reason::NoSuchSandbox) => Err(error.into()),
        _ => ended,
    }
}

async fn in_new(context: &Context, request: CreateSandbox, args: RunArgs) -> Result<ExitCode> {
    let sandbox = tokio::select! {
        made = context.host().create(request) => made?,
        told = told_to_end() => {
            told?;
            return Ok(Ended::Interrupted.into());
        }
    };
    let _forwards = Forwards::open(context, &sandbox.id, &args.publish).await?;
    let program = if args.command.is_empty() { vec!["/bin/sh".into()] } else { args.command };
    in_sandbox(&context.agent(&sandbox)?, args.how, program, args.timeout).await
}

impl RunArgs {
    async fn request(&self, context: &Context, id: SandboxId) -> Result<CreateSandbox> {
        let mut request = CreateSandbox::new(id, source(context, &self.image).await?);
        request.vcpus = self.cpus;
        request.memory = self.memory.map(|size| size.0);
        request.metadata = self.labels.iter().map(|pair| (pair.name.clone(), pair.value.clone())).collect();
        request.egress = self.no_network.then(Egress::none);
        // Also where a template has another: one of a template's timeout would end a command that is still running.
        request.timeout = Some(match self.detach {
            true => Timeout::default(),
            false => Timeout::destroy(ORPHAN_LIMIT),
        });
        Ok(request)
    }
}

/// The image of that name, or else the template.
async fn source(context: &Context, name: &str) -> Result<Source> {
    let images = context.host().describe().await?.images;
    if let Some(image) = images.into_iter().find(|image| image.as_str() == name) {
        return Ok(Source::Image(image));
    }
    let templates = context.host().templates().await?;
    match templates.into_iter().find(|template| template.name.as_str() == name) {
        Some(template) => Ok(Source::Template(template.name)),
        None => Err(format!("there is neither an image nor a template {name:?}: see `wrenn images`").into()),
    }
}

/// Runs a command in a sandbox that is there.
pub(crate) async fn exec(context: &Context, args: ExecArgs) -> Result<ExitCode> {
    let sandbox = context.find_running(&args.sandbox).await?;
    in_sandbox(&context.agent(&sandbox)?, args.how, args.command, args.timeout).await
}

async fn in_sandbox(
    agent: &AgentClient,
    how: How,
    command: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExitCode> {
    let streams = Streams { input: how.interactive, terminal: how.terminal };
    let process = match agent.start(how.command(command, timeout)).await {
        Err(error @ AgentError::InvalidArgument { .. }) => {
            crate::report(&error);
            return Ok(status::NOT_RUN.into());
        }
        other => other?,
    };
    match follow(agent, process, streams).await {
        Err(AttachError::Agent(error @ AgentError::CommandTimeout)) => {
            crate::report(&error);
            Ok(status::TIMED_OUT.into())
        }
        other => Ok(other?.into()),
    }
}

impl How {
    /// The program that an image is for, nothing where it is for none. It is run as the image asks for, where nobody asked for
    /// anything else.
    fn take_program(&mut self, image: ImageDetails) -> Vec<String> {
        let ImageDetails { entrypoint, cmd, env, workdir, user, .. } = image;
        let program = [entrypoint, cmd].concat();
        if !program.is_empty() {
            let own = std::mem::take(&mut self.env);
            self.env =
                env.into_iter().map(|(name, value)| Variable(Pair { name, value })).chain(own).collect();
            self.workdir = self.workdir.take().or(workdir);
            // A group may stand behind it; the user's own is taken.
            let user = user.map(|user| match user.split(':').next() {
                Some("0") => "root".to_owned(),
                name => name.unwrap_or_default().to_owned(),
            });
            self.user = self.user.take().or(user.filter(|user| !user.is_empty()));
        }
        program
    }

    fn command(self, mut words: Vec<String>, timeout: Option<Duration>) -> Command {
        let mut command = Command::new(words.remove(0)).args(words).stdin(self.interactive);
        for Variable(Pair { name, value }) in self.env {
            command = command.env(name, value);
        }
        if self.terminal {
            command = command.terminal(terminal::size());
            if let Ok(kind) = std::env::var("TERM") {
                command = command.env("TERM", kind);
            }
        }
        if let Some(dir) = self.workdir {
            command = command.cwd(dir);
        }
        if let Some(user) = self.user {
            command = command.user(user);
        }
        match timeout {
            Some(limit) => command.timeout(limit),
            None => command,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how(env: &[(&str, &str)], workdir: Option<&str>, user: Option<&str>) -> How {
        let variable =
            |(name, value): &(&str, &str)| Variable(Pair { name: (*name).into(), value: (*value).into() });
        How {
            interactive: false,
            terminal: false,
            env: env.iter().map(variable).collect(),
            workdir: workdir.map(Into::into),
            user: user.map(Into::into),
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageDetails {
        ImageDetails {
            env: [("A".to_owned(), "image".to_owned()), ("B".to_owned(), "image".to_owned())].into(),
            workdir: Some("/srv".into()),
            user: Some("web:www".into()),
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..ImageDetails::default()
        }
    }

    #[test]
    fn an_images_program_is_its_entry_point_and_its_command() {
        for (entrypoint, cmd, program) in [
            (&["/entry", "-v"][..], &["serve"][..], &["/entry", "-v", "serve"][..]),
            (&["/entry"], &[], &["/entry"]),
            (&[], &["sh", "-c", "true"], &["sh", "-c", "true"]),
        ] {
            let mut asked = how(&[], None, None);
            assert_eq!(asked.take_program(image(entrypoint, cmd)), words(program));
            assert_eq!((asked.workdir.as_deref(), asked.user.as_deref()), (Some("/srv"), Some("web")));
        }
    }

    #[test]
    fn what_is_asked_for_counts_before_what_the_image_asks_for() {
        let mut asked = how(&[("B", "mine")], Some("/"), Some("root"));
        asked.take_program(image(&["/entry"], &[]));
        let env: Vec<_> =
            asked.env.iter().map(|Variable(pair)| (pair.name.as_str(), pair.value.as_str())).collect();
        // The last one of a name is the one that counts.
        assert_eq!(env, [("A", "image"), ("B", "image"), ("B", "mine")]);
        assert_eq!((asked.workdir.as_deref(), asked.user.as_deref()), (Some("/"), Some("root")));
    }

    #[test]
    fn an_image_without_a_program_changes_nothing() {
        let mut asked = how(&[], None, None);
        assert!(asked.take_program(image(&[], &[])).is_empty());
        assert!(asked.env.is_empty() && asked.workdir.is_none() && asked.user.is_none());
    }
}

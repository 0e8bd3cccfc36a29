//! `wrenn guest …`

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use wrenn_core::Bytes;
use wrenn_core::image::{GuestDetails, GuestFiles, ImageError, StagedGuest};

use crate::build::{self, Agent, BuildError, KernelPackage};
use crate::interrupt;
use crate::progress::Step;

#[derive(Debug, Subcommand)]
pub(crate) enum GuestCommand {
    /// Make the kernel and the initramfs from Debian's cloud kernel and the agent.
    Build(GuestArgs),
}

#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// The agent's static binary; found beside this program, or where Cargo puts it, if not given.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// A Debian kernel package, instead of the machine's current linux-image-cloud-amd64.
    #[arg(long, value_name = "FILE")]
    kernel_deb: Option<PathBuf>,
}

pub(crate) fn run(data: &Path, command: GuestCommand) -> Result<(), BuildError> {
    let GuestCommand::Build(args) = command;
    make(data, &Agent::find(args.agent.as_deref())?, &args)
}

/// Makes the guest files where there are none that can be used, or where they hold another agent.
pub(crate) fn ensure(data: &Path, args: &GuestArgs) -> Result<(), BuildError> {
    let agent = Agent::find(args.agent.as_deref())?;
    match GuestFiles::open(data) {
        Ok(guest) if guest.details.agent == agent.digest && args.kernel_deb.is_none() => {
            eprintln!("wrenn: the guest's kernel and initramfs are there ({})", guest.details.source);
            return Ok(());
        }
        Ok(_) => eprintln!("wrenn: the guest files are of another agent or kernel"),
        Err(ImageError::NoGuest { .. }) => {}
        Err(error) => eprintln!("wrenn: {error}"),
    }
    make(data, &agent, args)
}

fn make(data: &Path, agent: &Agent, args: &GuestArgs) -> Result<(), BuildError> {
    let package = match &args.kernel_deb {
        Some(deb) => KernelPackage::in_file(deb),
        None => KernelPackage::fetch(&data.join("cache"))?,
    };
    let staged = StagedGuest::create(data)?;
    let watched = interrupt::watch_dir(staged.path());
    let scratch = staged.path().join("scratch");
    std::fs::create_dir(&scratch).map_err(BuildError::io("create", &scratch))?;
    let kernel = package.unpack(&scratch)?;
    let step = Step::begin("decompressing the kernel");
    let length = kernel.write_elf(&staged.kernel())?;
    step.done(&Bytes(length).to_string());
    let step = Step::begin("writing the initramfs");
    let modules = kernel.guest_modules()?;
    build::write_initramfs(&staged.initramfs(), agent, &modules)?;
    let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
    step.done(&names.join(" "));
    std::fs::remove_dir_all(&scratch).map_err(BuildError::io("remove", &scratch))?;
    let details =
        GuestDetails { kernel_release: kernel.release, agent: agent.digest.clone(), source: package.name() };
    let guest = interrupt::finish(watched, || staged.register(details))?;
    eprintln!("wrenn: guest files are ready: {} and {}", guest.kernel.display(), guest.initramfs.display());
    Ok(())
}

//! `wrenn cp`

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wrenn_agent_api::{AgentClient, AgentError, Command, FileInfo, FileKind, ProcessEvent, Upload};

use super::{Context, Result};
use crate::args::Place;
use crate::progress::Step;

/// Deeper trees than this are somebody's trap.
const DEEPEST: usize = 128;
const PIECE: usize = 256 * 1024;

#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// A file or directory here, or SANDBOX:PATH.
    from: Place,
    /// The same. Into a directory that is there, it goes under its own name.
    to: Place,
}

/// What was copied.
#[derive(Debug, Default, Serialize)]
struct Copied {
    files: u64,
    directories: u64,
    bytes: u64,
    /// Neither file nor directory: links, sockets, devices.
    skipped: u64,
}

pub(crate) async fn run(context: &Context, args: CopyArgs) -> Result<()> {
    let mut copied = Copied::default();
    match (args.from, args.to) {
        (Place::Here(from), Place::Guest { sandbox, path }) => {
            let agent = context.agent(&context.find_running(&sandbox).await?)?;
            let step = Step::begin("copying to the guest");
            let to = within_guest(&agent, path, &name_of(Path::new(&from))?).await?;
            copy_in(&agent, Path::new(&from), &to, &mut copied, &step).await?;
            finish(step, &copied);
        }
        (Place::Guest { sandbox, path }, Place::Here(to)) => {
            let agent = context.agent(&context.find_running(&sandbox).await?)?;
            let step = Step::begin("copying from the guest");
            let from = agent.stat(path.as_str()).await?;
            let to = match Path::new(&to) {
                dir if dir.is_dir() => dir.join(safe_name(&from.name)?),
                path => path.to_owned(),
            };
            copy_out(&agent, from, to, &mut copied, &step).await?;
            finish(step, &copied);
        }
        _ => return Err("one of the two is to be in a sandbox (SANDBOX:PATH), and the other here".into()),
    }
    Ok(context.format.print(&copied, |_| String::new())?)
}

fn finish(step: Step, copied: &Copied) {
    let Copied { files, directories, bytes, skipped } = copied;
    let skipped =
        if *skipped == 0 { String::new() } else { format!(", {skipped} neither, which were left out") };
    step.done(&format!("{files} files, {directories} directories, {}{skipped}", wrenn_core::Bytes(*bytes)));
}

fn name_of(path: &Path) -> Result<String> {
    let name = fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let name = name.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    name.ok_or_else(|| format!("{} has no name that a guest could use", path.display()).into())
}

/// A name that a guest gave: no way out of the directory that it is put into.
fn safe_name(name: &str) -> Result<&str> {
    match name {
        "" | "." | ".." => Err(format!("the guest has a file of the name {name:?}").into()),
        name if name.contains(['/', '\0']) => {
            Err(format!("the guest has a file of the name {name:?}").into())
        }
        name => Ok(name),
    }
}

/// Where in the guest something of that name goes.
async fn within_guest(agent: &AgentClient, path: String, name: &str) -> Result<String> {
    match agent.stat(path.as_str()).await {
        Ok(FileInfo { kind: FileKind::Directory, .. }) => {
            Ok(format!("{}/{name}", path.trim_end_matches('/')))
        }
        Ok(_) => Ok(path),
        Err(AgentError::NotFound { .. }) if !path.ends_with('/') => Ok(path),
        Err(error) => Err(error.into()),
    }
}

async fn copy_in(agent: &AgentClient, from: &Path, to: &str, copied: &mut Copied, step: &Step) -> Result<()> {
    let mut work = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = work.pop() {
        let here = |error: std::io::Error| format!("{}: {error}", from.display());
        // What is named may be a link; what is found below is not followed.
        let kind = if copied.files + copied.directories == 0 {
            fs::metadata(&from)
        } else {
            fs::symlink_metadata(&from)
        };
        let kind = kind.map_err(here)?;
        if kind.is_dir() {
            match agent.make_dir(to.as_str()).await {
                Err(AgentError::Failed { code, .. }) if code == "already_exists" => {}
                other => drop(other?),
            }
            copied.directories += 1;
            for entry in fs::read_dir(&from).map_err(here)? {
                let entry = entry.map_err(here)?;
                let name = entry.file_name().into_string();
                let name =
                    name.map_err(|name| format!("{}: a guest's files have names in UTF-8", name.display()))?;
                work.push((entry.path(), format!("{to}/{name}")));
            }
        } else if kind.is_file() {
            step.note(&from.display().to_string());
            copied.bytes += upload(agent, &from, &to).await?;
            copied.files += 1;
            if kind.permissions().mode() & 0o111 != 0 {
                make_executable(agent, kind.permissions().mode() & 0o777, &to).await?;
            }
        } else {
            copied.skipped += 1;
        }
    }
    Ok(())
}

async fn upload(agent: &AgentClient, from: &Path, to: &str) -> Result<u64> {
    let file = File::open(from).await.map_err(|error| format!("{}: {error}", from.display()))?;
    let length = file.metadata().await?.len();
    // A file that grows meanwhile is copied as it was.
    let pieces = futures_util::stream::try_unfold(file.take(length), async |mut file| {
        let mut piece = Vec::with_capacity(PIECE);
        let read = (&mut file).take(PIECE as u64).read_to_end(&mut piece).await?;
        Ok::<_, std::io::Error>((read > 0).then(|| (Bytes::from(piece), file)))
    });
    agent.write_file(to, Upload::stream(pieces.boxed(), Some(length))).await?;
    Ok(length)
}

/// The agent writes plain files: what can be run is made so by the guest's own `chmod`.
async fn make_executable(agent: &AgentClient, mode: u32, path: &str) -> Result<()> {
    let command = Command::new("chmod").arg(format!("{mode:o}")).arg("--").arg(path);
    let mut process = agent.start(command).await?;
    while let Some(event) = process.next().await? {
        if let ProcessEvent::End { exit_code, .. } = event
            && exit_code != 0
        {
            return Err(format!("{path} could not be made executable in the guest").into());
        }
    }
    Ok(())
}

async fn copy_out(
    agent: &AgentClient,
    from: FileInfo,
    to: PathBuf,
    copied: &mut Copied,
    step: &Step,
) -> Result<()> {
    let mut work = vec![(from, to, 0)];
    while let Some((from, to, depth)) = work.pop() {
        let here = |error: std::io::Error| format!("{}: {error}", to.display());
        match from.kind {
            // A link that leads somewhere has the kind of what it leads to.
            _ if from.link_target.is_some() && depth > 0 => copied.skipped += 1,
            FileKind::Directory if depth == DEEPEST => {
                return Err(format!("{} is too deep", from.path).into());
            }
            FileKind::Directory => {
                match fs::create_dir(&to) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && to.is_dir() => {}
                    other => other.map_err(here)?,
                }
                copied.directories += 1;
                for entry in agent.list_dir(from.path.as_str(), 1).await? {
                    let target = to.join(safe_name(&entry.name)?);
                    work.push((entry, target, depth + 1));
                }
            }
            FileKind::File => {
                step.note(&from.path);
                copied.bytes += download(agent, &from, &to).await?;
                copied.files += 1;
            }
            _ => copied.skipped += 1,
        }
    }
    Ok(())
}

/// Under another name until it is whole.
async fn download(agent: &AgentClient, from: &FileInfo, to: &Path) -> Result<u64> {
    let here = |error: std::io::Error| format!("{}: {error}", to.display());
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = tempfile::NamedTempFile::new_in(dir).map_err(here)?;
    let mut file = File::from_std(staged.reopen().map_err(here)?);
    let mut contents = agent.read_file(from.path.as_str()).await?;
    let mut bytes = 0;
    while let Some(piece) = contents.try_next().await? {
        file.write_all(&piece).await.map_err(here)?;
        bytes += piece.len() as u64;
    }
    file.flush().await.map_err(here)?;
    // Neither set-user-id nor another user's: it is a stranger's file.
    fs::set_permissions(staged.path(), Permissions::from_mode(from.mode & 0o777)).map_err(here)?;
    staged.persist(to).map_err(|error| here(error.error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::safe_name;

    #[test]
    fn a_guests_names_lead_nowhere_else() {
        for name in ["", ".", "..", "a/b", "/etc", "a\0b"] {
            assert!(safe_name(name).is_err(), "{name:?}");
        }
        assert_eq!(safe_name("..a").unwrap(), "..a");
    }
}

//! `wrenn cp`

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
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
/// As long as the kernel lets a link be.
const LONGEST_LINK: usize = 4095;

#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// Where FROM is a link, copy what it leads to. Other links are always copied as they are.
    #[arg(short = 'L', long)]
    follow_link: bool,
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
    links: u64,
    /// None of these: sockets, devices.
    skipped: u64,
}

pub(crate) async fn run(context: &Context, args: CopyArgs) -> Result<()> {
    let mut copied = Copied::default();
    match (args.from, args.to) {
        (Place::Here(from), Place::Guest { sandbox, path }) => {
            let agent = context.agent(&context.find_running(&sandbox).await?)?;
            let step = Step::begin("copying to the guest");
            let to = within_guest(&agent, path, &name_of(Path::new(&from))?).await?;
            copy_in(&agent, Path::new(&from), &to, args.follow_link, &mut copied, &step).await?;
            finish(step, &copied);
        }
        (Place::Guest { sandbox, path }, Place::Here(to)) => {
            let agent = context.agent(&context.find_running(&sandbox).await?)?;
            let step = Step::begin("copying from the guest");
            // As everywhere: with a slash behind it a link to a directory is that directory.
            let follow = args.follow_link || path.ends_with('/');
            let from = agent.stat(path.as_str()).await?;
            let to = match Path::new(&to) {
                dir if dir.is_dir() => dir.join(safe_name(&from.name)?),
                path => path.to_owned(),
            };
            copy_out(&agent, from, to, follow, &mut copied, &step).await?;
            finish(step, &copied);
        }
        _ => return Err("one of the two is to be in a sandbox (SANDBOX:PATH), and the other here".into()),
    }
    Ok(context.format.print(&copied, |_| String::new())?)
}

fn finish(step: Step, copied: &Copied) {
    let Copied { files, directories, links, bytes, skipped } = copied;
    let skipped = if *skipped == 0 {
        String::new()
    } else {
        format!(", {skipped} of other kinds, which were left out")
    };
    let bytes = wrenn_core::Bytes(*bytes);
    step.done(&format!("{files} files, {directories} directories, {links} links, {bytes}{skipped}"));
}

/// The name under which something goes into a directory.
fn name_of(path: &Path) -> Result<String> {
    let path = match path.file_name() {
        Some(_) => path.to_owned(),
        // `.` and the like have one elsewhere.
        None => fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()))?,
    };
    let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
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

async fn copy_in(
    agent: &AgentClient,
    from: &Path,
    to: &str,
    follow: bool,
    copied: &mut Copied,
    step: &Step,
) -> Result<()> {
    // With each whether something may be in its place already, which only the guest knows.
    let mut work = vec![(from.to_owned(), to.to_owned(), true)];
    let mut top = true;
    while let Some((from, to, taken)) = work.pop() {
        let here = |error: std::io::Error| format!("{}: {error}", from.display());
        let top = std::mem::replace(&mut top, false);
        let kind = if top && follow { fs::metadata(&from) } else { fs::symlink_metadata(&from) };
        let kind = kind.map_err(here)?;
        if kind.is_dir() {
            let taken = match agent.make_dir(to.as_str()).await {
                Err(AgentError::Failed { code, .. }) if code == "already_exists" => true,
                other => other.map(|_| false)?,
            };
            // What is named may be a link to a directory; below it, one would lead out of it.
            if taken && !top && agent.stat(to.as_str()).await?.link_target.is_some() {
                return Err(format!("{to} is a link in the guest, and a directory here").into());
            }
            copied.directories += 1;
            for entry in fs::read_dir(&from).map_err(here)? {
                let entry = entry.map_err(here)?;
                let name = entry.file_name().into_string();
                let name =
                    name.map_err(|name| format!("{}: a guest's files have names in UTF-8", name.display()))?;
                work.push((entry.path(), format!("{to}/{name}"), taken));
            }
        } else if kind.is_file() {
            step.note(&from.display().to_string());
            if taken && !top {
                remove_link(agent, &to).await?;
            }
            copied.bytes += upload(agent, &from, &to).await?;
            copied.files += 1;
            if kind.permissions().mode() & 0o111 != 0 {
                make_executable(agent, kind.permissions().mode() & 0o777, &to).await?;
            }
        } else if kind.is_symlink() {
            let text = fs::read_link(&from).map_err(here)?.into_os_string().into_string();
            let text = text.map_err(|text| format!("{}: a guest's links are UTF-8", text.display()))?;
            make_link(agent, &text, &to).await?;
            copied.links += 1;
        } else {
            copied.skipped += 1;
        }
    }
    Ok(())
}

/// Takes a link away that is where a file goes: the agent would write to what it leads to.
async fn remove_link(agent: &AgentClient, path: &str) -> Result<()> {
    match agent.stat(path).await {
        Ok(info) if info.link_target.is_some() => Ok(agent.remove(path).await?),
        Ok(_) | Err(AgentError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
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
    if succeeds(agent, command).await? {
        return Ok(());
    }
    Err(format!("{path} could not be made executable in the guest").into())
}

/// Links are made by the guest's own `ln`, in the place of whatever is there but a directory.
async fn make_link(agent: &AgentClient, text: &str, path: &str) -> Result<()> {
    let command = Command::new("ln").args(["-s", "-f", "-T", "--"]).arg(text).arg(path);
    if succeeds(agent, command).await? {
        return Ok(());
    }
    Err(format!("the link {path} could not be made in the guest").into())
}

async fn succeeds(agent: &AgentClient, command: Command) -> Result<bool> {
    let mut process = agent.start(command).await?;
    while let Some(event) = process.next().await? {
        if let ProcessEvent::End { exit_code, .. } = event {
            return Ok(exit_code == 0);
        }
    }
    Err("the guest did not say how its command ended".into())
}

async fn copy_out(
    agent: &AgentClient,
    from: FileInfo,
    to: PathBuf,
    follow: bool,
    copied: &mut Copied,
    step: &Step,
) -> Result<()> {
    let mut work = vec![(from, to, 0)];
    // Made last: nothing is written while a link of the guest's is there.
    let mut links = Vec::new();
    while let Some((from, to, depth)) = work.pop() {
        let here = |error: std::io::Error| format!("{}: {error}", to.display());
        match from.kind {
            // A link that leads somewhere has the kind of what it leads to.
            _ if from.link_target.is_some() && !(depth == 0 && follow) => {
                links.push((link_text(&from)?, to));
            }
            FileKind::Directory if depth == DEEPEST => {
                return Err(format!("{} is too deep", from.path).into());
            }
            FileKind::Directory => {
                land_directory(&to, depth == 0).map_err(here)?;
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
    for (text, to) in links {
        land_link(&text, &to).map_err(|error| format!("{}: {error}", to.display()))?;
        copied.links += 1;
    }
    Ok(())
}

/// What a guest's link says, which may be anything: it is kept, and nothing here follows it.
fn link_text(link: &FileInfo) -> Result<OsString> {
    let text = link.link_text.clone().or_else(|| link.link_target.clone().map(String::into_bytes));
    match text {
        Some(text) if (1..=LONGEST_LINK).contains(&text.len()) && !text.contains(&0) => {
            Ok(OsString::from_vec(text))
        }
        _ => Err(format!("the guest's link {} says what no link can", link.path).into()),
    }
}

/// Makes a directory, or takes the one that is there. Only what the user named may be a link to one: others would lead out
/// of it, whoever made them.
fn land_directory(to: &Path, named: bool) -> std::io::Result<()> {
    match fs::create_dir(to) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let there = if named { fs::metadata(to) } else { fs::symlink_metadata(to) };
            if there?.is_dir() { Ok(()) } else { Err(error) }
        }
        other => other,
    }
}

/// Makes a link, in the place of whatever is there but a directory.
fn land_link(text: &OsStr, to: &Path) -> std::io::Result<()> {
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = tempfile::Builder::new().prefix(".wrenn-").make_in(dir, |path| symlink(text, path))?;
    staged.persist(to).map(drop).map_err(|error| error.error)
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
    use super::*;

    #[test]
    fn a_guests_names_lead_nowhere_else() {
        for name in ["", ".", "..", "a/b", "/etc", "a\0b"] {
            assert!(safe_name(name).is_err(), "{name:?}");
        }
        assert_eq!(safe_name("..a").unwrap(), "..a");
    }

    #[test]
    fn what_is_put_into_a_directory_never_follows_a_link_out_of_it() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir_all(at("outside")).unwrap();
        fs::create_dir_all(at("to/real")).unwrap();
        symlink(at("outside"), at("to/link")).unwrap();
        land_directory(&at("to/real"), false).unwrap();
        land_directory(&at("to/new"), false).unwrap();
        assert!(land_directory(&at("to/link"), false).is_err());
        // What the user names is theirs to choose.
        land_directory(&at("to/link"), true).unwrap();
        assert!(land_directory(&at("nowhere/new"), true).is_err());
    }

    #[test]
    fn links_are_kept_as_they_are_and_replace_all_but_directories() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::write(at("file"), "kept").unwrap();
        for text in ["/etc/passwd", "../..", "nothing here", "file"] {
            land_link(OsStr::new(text), &at("link")).unwrap();
            assert_eq!(fs::read_link(at("link")).unwrap(), Path::new(text));
        }
        assert_eq!(fs::read(at("file")).unwrap(), b"kept");
        land_link(OsStr::new("elsewhere"), &at("file")).unwrap();
        fs::create_dir(at("dir")).unwrap();
        assert!(land_link(OsStr::new("x"), &at("dir")).is_err());
        assert!(at("dir").is_dir());
        let left = fs::read_dir(home.path()).unwrap().count();
        assert_eq!(left, 3, "nothing staged is left");
    }

    #[test]
    fn what_is_named_goes_by_its_own_name() {
        let home = tempfile::tempdir().unwrap();
        symlink("nowhere", home.path().join("link")).unwrap();
        assert_eq!(name_of(&home.path().join("link")).unwrap(), "link");
        fs::create_dir(home.path().join("dir")).unwrap();
        assert_eq!(name_of(&home.path().join("dir/.")).unwrap(), "dir");
        assert_eq!(name_of(&home.path().join("dir/../dir/")).unwrap(), "dir");
        assert!(name_of(&home.path().join("none/..")).is_err());
    }
}

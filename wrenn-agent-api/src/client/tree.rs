//! Calls about the guest's files and directories as such; their contents are [`files`](super::files)' affair.

use std::time::{Duration, SystemTime};

use connectrpc::client::CallOptions;
use hyper::header::AUTHORIZATION;

use super::files::GuestPath;
use super::{AgentClient, AgentError, basic};
use crate::proto::filesystem as pb;

/// What something in the guest's file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A file, or a link to one; devices, sockets and named pipes count as files.
    File,
    /// A directory, or a link to one.
    Directory,
    /// A link that leads nowhere.
    BrokenLink,
}

/// Something in the guest's file system. All texts are the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileInfo {
    /// The last component of its path.
    pub name: String,
    /// Its absolute path, as it was asked for or listed: links are not resolved.
    pub path: String,
    /// What it is, or what its link leads to.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner's name, or number if there is none.
    pub owner: String,
    /// Its group's name, or number if there is none.
    pub group: String,
    /// When it was last written, by the guest's clock.
    pub modified: Option<SystemTime>,
    /// Where it leads, if it is a link: an absolute path.
    pub link_target: Option<String>,
    /// What it says, if it is a link: any bytes. Agents of old snapshots do not tell.
    pub link_text: Option<Vec<u8>>,
}

impl AgentClient {
    /// Describes what is at a path.
    ///
    /// # Errors
    /// [`AgentError::NotFound`].
    pub async fn stat(&self, path: impl Into<GuestPath>) -> Result<FileInfo, AgentError> {
        const CALL: &str = "describing a file";
        let (path, options) = on_behalf(path);
        let request = pb::StatRequest { path };
        let answer = self
            .unary(CALL, pb::FilesystemClient::new, async |client| {
                Ok(client.stat_with_options(request, options).await?.into_owned())
            })
            .await?;
        one(CALL, answer.entry.into_option())
    }

    /// Lists a directory, `depth` levels deep (at least 1): each directory before what is in it, by name. Links
    /// are not followed.
    ///
    /// # Errors
    /// [`AgentError::NotFound`]; [`AgentError::InvalidArgument`] if it is no directory;
    /// [`AgentError::Failed`] with code `resource_exhausted` if there is more than one answer can carry.
    pub async fn list_dir(
        &self,
        path: impl Into<GuestPath>,
        depth: u32,
    ) -> Result<Vec<FileInfo>, AgentError> {
        const CALL: &str = "listing a directory";
        let (path, options) = on_behalf(path);
        let request = pb::ListDirRequest { path, depth };
        let options = options.with_max_message_size(MAX_LISTING);
        let answer = self
            .unary(CALL, pb::FilesystemClient::new, async |client| {
                Ok(client.list_dir_with_options(request, options).await?.into_owned())
            })
            .await?;
        answer.entries.into_iter().map(|entry| one(CALL, Some(entry))).collect()
    }

    /// Makes a directory, and those above it that are missing, with mode 0755.
    ///
    /// # Errors
    /// [`AgentError::Failed`] with code `already_exists` if it is there; [`AgentError::InvalidArgument`] if the
    /// path is or leads through something else.
    pub async fn make_dir(&self, path: impl Into<GuestPath>) -> Result<FileInfo, AgentError> {
        const CALL: &str = "making a directory";
        let (path, options) = on_behalf(path);
        let request = pb::MakeDirRequest { path };
        let answer = self
            .unary(CALL, pb::FilesystemClient::new, async |client| {
                Ok(client.make_dir_with_options(request, options).await?.into_owned())
            })
            .await?;
        one(CALL, answer.entry.into_option())
    }

    /// Renames something within one file system, also over an existing file; makes missing directories above
    /// the destination.
    ///
    /// # Errors
    /// [`AgentError::NotFound`] if the source is not there.
    pub async fn rename(
        &self,
        source: impl Into<GuestPath>,
        destination: impl Into<String>,
    ) -> Result<FileInfo, AgentError> {
        const CALL: &str = "renaming a file";
        let (source, options) = on_behalf(source);
        let request = pb::MoveRequest { source, destination: destination.into() };
        let answer = self
            .unary(CALL, pb::FilesystemClient::new, async |client| {
                Ok(client.r#move_with_options(request, options).await?.into_owned())
            })
            .await?;
        one(CALL, answer.entry.into_option())
    }

    /// Removes a file, a link, or a directory with all that is in it. What is not there is no error.
    ///
    /// # Errors
    /// [`AgentError::InvalidArgument`] for the root directory. After an error a part may be gone.
    pub async fn remove(&self, path: impl Into<GuestPath>) -> Result<(), AgentError> {
        let (path, options) = on_behalf(path);
        let request = pb::RemoveRequest { path };
        self.unary("removing a file", pb::FilesystemClient::new, async |client| {
            client.remove_with_options(request, options).await.map(drop)
        })
        .await
    }
}

/// The largest listing that is taken, in bytes: more than the agent sends.
const MAX_LISTING: usize = 32 << 20;

fn on_behalf(path: impl Into<GuestPath>) -> (String, CallOptions) {
    let GuestPath { path, user } = path.into();
    let options = CallOptions::default();
    (
        path,
        match user {
            Some(user) => options.with_header(AUTHORIZATION, basic(&user)),
            None => options,
        },
    )
}

pub(super) fn one(call: &'static str, entry: Option<pb::EntryInfo>) -> Result<FileInfo, AgentError> {
    let entry = entry.ok_or_else(|| AgentError::protocol(call, "an answer without the entry"))?;
    let kind = match entry.r#type.as_known() {
        Some(pb::FileType::FILE_TYPE_FILE) => FileKind::File,
        Some(pb::FileType::FILE_TYPE_DIRECTORY) => FileKind::Directory,
        Some(pb::FileType::FILE_TYPE_SYMLINK) => FileKind::BrokenLink,
        _ => return Err(AgentError::protocol(call, "an entry of an unknown type")),
    };
    let size = entry.size.try_into().map_err(|_| AgentError::protocol(call, "an entry of negative size"))?;
    Ok(FileInfo {
        name: entry.name,
        path: entry.path,
        kind,
        size,
        mode: entry.mode,
        owner: entry.owner,
        group: entry.group,
        modified: entry.modified_time.into_option().and_then(|time| {
            let (seconds, nanos) = (u64::try_from(time.seconds).ok()?, u32::try_from(time.nanos).ok()?);
            let whole = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
            whole.checked_add(Duration::from_nanos(nanos.into()))
        }),
        link_target: entry.symlink_target,
        link_text: entry.link_text.map(Into::into),
    })
}

//! Files of a running sandbox. Contents are streamed through: no file's size matters here.

use std::time::SystemTime;

use axum::Json as Reply;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use wrenn_agent_api::{FileInfo, FileKind, GuestPath, Upload};

use crate::api::extract::{Json, Path, Query};
use crate::api::{Code, Error};
use crate::app::App;
use crate::auth::Member;
use crate::sandboxes::{agent, agent_failed};

/// The longest path that Linux takes.
const MOST_PATH: usize = 4096;
const MOST_DEPTH: u32 = 16;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(read, write, remove))
        .routes(routes!(list))
        .routes(routes!(stat))
        .routes(routes!(make_dir))
        .routes(routes!(rename))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct At {
    /// Absolute, or from its user's home on.
    #[param(example = "/root/hello.txt", min_length = 1, max_length = 4096, pattern = r"^[^\x00]+$")]
    path: String,
    /// Whose home, and whose the file is to be; the sandbox's own where not set.
    #[param(pattern = "^[A-Za-z0-9_.$-]{1,64}$")]
    user: Option<String>,
}

impl At {
    fn checked(self) -> Result<GuestPath, Error> {
        guest_path(self.path, self.user)
    }
}

fn guest_path(path: String, user: Option<String>) -> Result<GuestPath, Error> {
    check_path("path", &path)?;
    let path = GuestPath::new(path);
    Ok(match user {
        Some(user) => path.user(super::exec::checked_user(user)?),
        None => path,
    })
}

/// A path that a guest's kernel would take. Where it leads is the guest's business: its files are all that there is.
pub(super) fn check_path(name: &str, path: &str) -> Result<(), Error> {
    if path.is_empty() || path.len() > MOST_PATH || path.contains('\0') {
        return Err(Code::InvalidRequest.because(format!("{name}: 1 to {MOST_PATH} bytes, none of them NUL")));
    }
    Ok(())
}

/// Something in a sandbox's file system.
#[derive(Debug, Serialize, ToSchema)]
struct File {
    name: String,
    path: String,
    kind: Kind,
    size: u64,
    /// The permission bits, in octal notation.
    #[schema(example = "0644")]
    mode: String,
    owner: String,
    group: String,
    #[serde(with = "time::serde::rfc3339::option")]
    modified_at: Option<OffsetDateTime>,
    /// Where it leads, if it is a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    link_target: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = FileKind)]
enum Kind {
    File,
    Directory,
    BrokenLink,
}

impl From<FileInfo> for File {
    fn from(info: FileInfo) -> Self {
        Self {
            kind: match info.kind {
                FileKind::Directory => Kind::Directory,
                FileKind::BrokenLink => Kind::BrokenLink,
                _ => Kind::File,
            },
            mode: format!("{:04o}", info.mode & 0o7777),
            modified_at: info.modified.and_then(at),
            name: info.name,
            path: info.path,
            size: info.size,
            owner: info.owner,
            group: info.group,
            link_target: info.link_target,
        }
    }
}

/// A time by the guest's clock, if it can be written down: a guest says what it likes.
fn at(time: SystemTime) -> Option<OffsetDateTime> {
    let nanos = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).ok()?,
        Err(before) => -i128::try_from(before.duration().as_nanos()).ok()?,
    };
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().filter(|at| (0..=9999).contains(&at.year()))
}

#[derive(Debug, Serialize, ToSchema)]
struct FileList {
    files: Vec<File>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Written {
    path: String,
}

/// Read a file
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/files", tag = "files", params(("sandbox" = String, Path), At),
    responses((status = OK, body = Vec<u8>, content_type = "application/octet-stream")))]
async fn read(
    State(app): State<App>,
    member: Member,
    Path(id): Path<String>,
    Query(file): Query<At>,
) -> Result<Response, Error> {
    let path = file.checked()?;
    let agent = agent(&app, member.team, &id).await?;
    let contents = agent.read_file(path).await.map_err(|error| agent_failed(&app, &id, &error))?;
    let length = contents.len();
    // An error in the middle breaks the connection off, so that nobody takes a part for the whole.
    let mut response = Response::new(Body::from_stream(contents));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    // A guest's file is never shown as a page of this server.
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(response)
}

/// Write a file
///
/// The body is its contents, of any length. Missing directories are made. It is there at once when all has arrived;
/// until then, and after any error, what was there before is there still.
#[utoipa::path(put, path = "/v1/sandboxes/{sandbox}/files", tag = "files", params(("sandbox" = String, Path), At),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = OK, body = Written)))]
async fn write(
    State(app): State<App>,
    member: Member,
    Path(id): Path<String>,
    Query(file): Query<At>,
    headers: HeaderMap,
    body: Body,
) -> Result<Reply<Written>, Error> {
    let path = file.checked()?;
    let agent = agent(&app, member.team, &id).await?;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let upload = Upload::stream(body.into_data_stream(), length);
    let written = agent.write_file(path, upload).await.map_err(|error| agent_failed(&app, &id, &error))?;
    Ok(Reply(Written { path: written.path }))
}

/// Remove a file, or a directory with all that is in it
#[utoipa::path(delete, path = "/v1/sandboxes/{sandbox}/files", tag = "files", params(("sandbox" = String, Path), At),
    responses((status = NO_CONTENT)))]
async fn remove(
    State(app): State<App>,
    member: Member,
    Path(id): Path<String>,
    Query(file): Query<At>,
) -> Result<StatusCode, Error> {
    let path = file.checked()?;
    let agent = agent(&app, member.team, &id).await?;
    agent.remove(path).await.map_err(|error| agent_failed(&app, &id, &error))?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Below {
    /// The directory.
    #[param(example = "/root", min_length = 1, max_length = 4096, pattern = r"^[^\x00]+$")]
    path: String,
    /// Whose home a relative path begins at.
    #[param(pattern = "^[A-Za-z0-9_.$-]{1,64}$")]
    user: Option<String>,
    /// How far down.
    #[param(minimum = 1, maximum = 16, default = 1)]
    depth: Option<u32>,
}

/// List a directory
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/files/list", tag = "files",
    params(("sandbox" = String, Path), Below), responses((status = OK, body = FileList)))]
async fn list(
    State(app): State<App>,
    member: Member,
    Path(id): Path<String>,
    Query(below): Query<Below>,
) -> Result<Reply<FileList>, Error> {
    let path = guest_path(below.path, below.user)?;
    let depth = below.depth.unwrap_or(1);
    if !(1..=MOST_DEPTH).contains(&depth) {
        return Err(Code::InvalidRequest.because(format!("depth: from 1 to {MOST_DEPTH}")));
    }
    let agent = agent(&app, member.team, &id).await?;
    let found = agent.list_dir(path, depth).await.map_err(|error| agent_failed(&app, &id, &error))?;
    Ok(Reply(FileList { files: found.into_iter().map(File::from).collect() }))
}

/// What is at a path
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/files/stat", tag = "files", params(("sandbox" = String, Path), At),
    responses((status = OK, body = File)))]
async fn stat(
    State(app): State<App>,
    member: Member,
    Path(id): Path<String>,
    Query(file): Query<At>,
) -> Result<Reply<File>, Error> {
    let path = file.checked()?;
    let agent = agent(&app, member.team, &id).await?;
    let info = agent.stat(path).await.map_err(|error| agent_failed(&app, &id, &error))?;
    Ok(Reply(info.into()))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewDirectory {
    #[schema(min_length = 1, max_length = 4096, pattern = r"^[^\x00]+$")]
    path: String,
    /// Whose it is to be; the sandbox's own where not set.
    #[schema(pattern = "^[A-Za-z0-9_.$-]{1,64}$")]
    user: Option<String>,
}

/// Make a directory, with those that lead to it
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/files/mkdir", tag = "files", params(("sandbox" = String, Path)),
    request_body = NewDirectory, responses((status = CREATED, body = File)))]
async fn make_dir(
    State(app): State<App>,
    member: Member,
    Path(id): Path<String>,
    Json(new): Json<NewDirectory>,
) -> Result<(StatusCode, Reply<File>), Error> {
    let path = guest_path(new.path, new.user)?;
    let agent = agent(&app, member.team, &id).await?;
    let made = agent.make_dir(path).await.map_err(|error| agent_failed(&app, &id, &error))?;
    Ok((StatusCode::CREATED, Reply(made.into())))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Rename {
    #[schema(min_length = 1, max_length = 4096, pattern = r"^[^\x00]+$")]
    from: String,
    #[schema(min_length = 1, max_length = 4096, pattern = r"^[^\x00]+$")]
    to: String,
    /// Whose home relative paths begin at.
    #[schema(pattern = "^[A-Za-z0-9_.$-]{1,64}$")]
    user: Option<String>,
}

/// Rename or move a file or a directory
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/files/rename", tag = "files",
    params(("sandbox" = String, Path)), request_body = Rename, responses((status = OK, body = File)))]
async fn rename(
    State(app): State<App>,
    member: Member,
    Path(id): Path<String>,
    Json(asked): Json<Rename>,
) -> Result<Reply<File>, Error> {
    check_path("to", &asked.to)?;
    let from = guest_path(asked.from, asked.user)?;
    let agent = agent(&app, member.team, &id).await?;
    let moved = agent.rename(from, asked.to).await.map_err(|error| agent_failed(&app, &id, &error))?;
    Ok(Reply(moved.into()))
}

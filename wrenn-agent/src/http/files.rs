//! `GET /files`: a file's contents, streamed.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};

use super::query::Query;
use super::{Body, BoxError, HttpError, Routes, full};
use crate::paths;
use crate::settings::UserError;
use crate::users::User;

/// How much is read at once, in bytes.
const CHUNK: usize = 128 * 1024;

/// A file opened for sending, with its beginning.
struct Opened {
    file: File,
    first: Bytes,
    /// Bytes after the first chunk, where the file's length can be relied on.
    rest: Option<u64>,
    at_end: bool,
}

impl Routes {
    pub(super) async fn download(&self, request: &Request<Incoming>) -> Result<Response<Body>, HttpError> {
        let query = Query::of(request.uri());
        let user = self.user(&query)?;
        let path = query.path()?.ok_or_else(|| HttpError::bad_request("no path is given"))?;
        let path = paths::resolve(path, &user.home);
        let content_type = content_type(&path);
        let opened = tokio::task::spawn_blocking(move || open(&path)).await;
        let opened = opened.unwrap_or_else(|panic| {
            Err(HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()))
        })?;
        let mut response = Response::new(Body::default());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(rest) = opened.rest {
            let length = HeaderValue::from(opened.first.len() as u64 + rest);
            response.headers_mut().insert(CONTENT_LENGTH, length);
        }
        *response.body_mut() = if opened.at_end { full(opened.first) } else { contents(opened) };
        Ok(response)
    }

    /// The user that the query means.
    pub(super) fn user(&self, query: &Query) -> Result<User, HttpError> {
        self.settings.user(query.username.as_deref()).map_err(|error| {
            let status = match error {
                UserError::Unknown(_) => StatusCode::UNAUTHORIZED,
                UserError::Lookup(..) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            HttpError::new(status, error.to_string())
        })
    }
}

fn open(path: &str) -> Result<Opened, HttpError> {
    let failed = |e: io::Error| read_error(path, &e);
    // Without O_NONBLOCK the opening of a named pipe would hang.
    let flags = (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits();
    let mut file = File::options().read(true).custom_flags(flags as i32).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(HttpError::bad_request(format!("path '{path}' is a directory")));
    }
    if !metadata.is_file() {
        return Err(HttpError::bad_request(format!("path '{path}' is not a regular file")));
    }
    let first = read_chunk(&mut file, CHUNK).map_err(failed)?;
    let at_end = first.len() < CHUNK;
    // Files of /proc and /sys have any length that they like to say; only a file that really is longer than the
    // first chunk is trusted with its length.
    let rest = if at_end { Some(0) } else { metadata.len().checked_sub(CHUNK as u64) };
    Ok(Opened { file, first, rest, at_end })
}

/// Reads until `limit` or the end of the file.
fn read_chunk(file: &mut File, limit: usize) -> io::Result<Bytes> {
    let mut chunk = Vec::new();
    file.take(limit as u64).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}

/// The body that sends an opened file, one chunk read at a time.
///
/// If the length was told, exactly that much: a file that shrinks meanwhile breaks the connection, which the
/// receiver notices; what is appended meanwhile is left out.
fn contents(opened: Opened) -> Body {
    let Opened { file, first, rest, .. } = opened;
    let chunks = stream::try_unfold((file, Some(first), rest), |(mut file, first, rest)| async move {
        if let Some(first) = first {
            return Ok(Some((Frame::data(first), (file, None, rest))));
        }
        let limit = rest.map_or(CHUNK, |rest| rest.min(CHUNK as u64) as usize);
        if limit == 0 {
            return Ok(None);
        }
        let (file, chunk) = tokio::task::spawn_blocking(move || {
            let chunk = read_chunk(&mut file, limit);
            (file, chunk)
        })
        .await?;
        let chunk = chunk?;
        match (chunk.is_empty(), rest) {
            (true, None) => Ok(None),
            (true, Some(missing)) => Err(format!("the file shrank: {missing} bytes are missing").into()),
            (false, _) => {
                let rest = rest.map(|rest| rest - chunk.len() as u64);
                Ok::<_, BoxError>(Some((Frame::data(chunk), (file, None, rest))))
            }
        }
    });
    StreamBody::new(chunks).boxed_unsync()
}

fn read_error(path: &str, error: &io::Error) -> HttpError {
    match error.kind() {
        io::ErrorKind::NotFound => {
            HttpError::new(StatusCode::NOT_FOUND, format!("path '{path}' does not exist"))
        }
        io::ErrorKind::NotADirectory => HttpError::new(
            StatusCode::NOT_FOUND,
            format!("path '{path}' does not exist: it leads through a file"),
        ),
        _ if is_impossible_path(error) => HttpError::bad_request(format!("path '{path}': {error}")),
        // Sockets, and devices without a driver.
        _ if error.raw_os_error() == Some(libc::ENXIO) => {
            HttpError::bad_request(format!("path '{path}' is not a regular file"))
        }
        _ => HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read '{path}': {error}")),
    }
}

/// Whether the path itself cannot be: a loop of links, a name too long.
pub(super) fn is_impossible_path(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENAMETOOLONG))
}

/// The media type that a file's name suggests.
fn content_type(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).as_deref() {
        Some("txt" | "log" | "md") => "text/plain; charset=utf-8",
        Some("html" | "htm") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("csv") => "text/csv; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("json") => "application/json",
        Some("xml") => "application/xml",
        Some("pdf") => "application/pdf",
        Some("zip") => "application/zip",
        Some("gz") => "application/gzip",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("gif") => "image/gif",
        Some("svg") => "image/svg+xml",
        Some("webp") => "image/webp",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_names() {
        assert_eq!(content_type("/a/b.TXT"), "text/plain; charset=utf-8");
        assert_eq!(content_type("/a.png/b"), "application/octet-stream");
        assert_eq!(content_type("/a/b"), "application/octet-stream");
    }

    #[test]
    fn only_regular_files_open() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let status = |path: &str| open(path).err().map(|error| error.status.as_u16());
        std::fs::write(at("f"), b"abc").unwrap();
        assert_eq!(status(&at("f")), None);
        assert_eq!(status(&at("missing")), Some(404));
        assert_eq!(status(&at("f/x")), Some(404));
        assert_eq!(status(&at("")), Some(400));
        assert_eq!(status("/dev/null"), Some(400));
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
        assert_eq!(status(&at("pipe")), Some(400));
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert_eq!(status(&at("socket")), Some(400));
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        assert_eq!(status(&at("loop")), Some(400));
    }

    #[test]
    fn lengths_are_told_where_they_can_be_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let path = path.to_str().unwrap();
        for (len, told) in [(0, 0), (5, 5), (CHUNK, CHUNK), (CHUNK + 7, CHUNK + 7)] {
            std::fs::write(path, vec![1; len]).unwrap();
            let opened = open(path).unwrap_or_else(|e| panic!("{e:?}"));
            assert_eq!(opened.first.len() as u64 + opened.rest.unwrap(), told as u64);
        }
        // It says 0 and has something.
        let proc = open("/proc/self/status").unwrap_or_else(|e| panic!("{e:?}"));
        assert!(proc.first.len() > 100 && proc.rest == Some(0));
    }
}

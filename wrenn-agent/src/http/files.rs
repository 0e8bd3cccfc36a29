//! `GET /files`: a file's contents, or a part of them, streamed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LAST_MODIFIED,
    VARY,
};
use hyper::{HeaderMap, Request, Response, StatusCode};

use super::query::Query;
use super::range::{Encoding, Wanted, encoding, wanted};
use super::{Body, BoxError, HttpError, Routes, full, gzip};
use crate::paths;
use crate::settings::UserError;
use crate::users::User;

/// How much is read at once, in bytes.
const CHUNK: usize = 128 * 1024;

/// A file opened for sending, with its beginning.
struct Opened {
    file: File,
    modified: Option<SystemTime>,
    /// Where the part begins that is sent, if it is one, and how long the file is.
    part: Option<(u64, u64)>,
    first: Bytes,
    /// Bytes after the first chunk, where the file's length can be relied on.
    rest: Option<u64>,
    at_end: bool,
}

/// What comes of a request for a file.
enum Answer {
    File(Opened),
    /// The file has no such part; it is so long.
    OutOfRange(u64),
}

impl Routes {
    pub(super) async fn download(&self, request: &Request<Incoming>) -> Result<Response<Body>, HttpError> {
        let query = Query::of(request.uri());
        let user = self.user(&query)?;
        let path = query.path()?.ok_or_else(|| HttpError::bad_request("no path is given"))?;
        let path = paths::resolve(path, &user.home);
        let content_type = content_type(&path);
        let encoding = encoding(request.headers());
        if encoding == Encoding::None {
            let message = "contents come as they are, or as gzip";
            return Err(HttpError::new(StatusCode::NOT_ACCEPTABLE, message));
        }
        // Parts are of what is in the file.
        let ranges =
            if encoding == Encoding::Identity { request.headers().clone() } else { HeaderMap::new() };
        let opened = tokio::task::spawn_blocking(move || open(&path, &ranges)).await;
        let opened = opened.unwrap_or_else(|panic| {
            Err(HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()))
        })?;
        let opened = match opened {
            Answer::File(opened) => opened,
            Answer::OutOfRange(length) => return Ok(out_of_range(length)),
        };
        let mut response = Response::new(Body::default());
        if opened.part.is_some() {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        *response.headers_mut() = headers(&opened, encoding);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        *response.body_mut() = match encoding {
            Encoding::Gzip => {
                StreamBody::new(gzip::pack(chunks(opened)).map(|piece| piece.map(Frame::data))).boxed_unsync()
            }
            _ if opened.at_end => full(opened.first),
            _ => StreamBody::new(chunks(opened).map(|chunk| chunk.map(Frame::data))).boxed_unsync(),
        };
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

fn headers(opened: &Opened, encoding: Encoding) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut say = |name, value: String| {
        // Numbers and dates are fit for a header.
        if let Ok(value) = value.try_into() {
            headers.insert(name, value);
        }
    };
    say(VARY, "Accept-Encoding".into());
    // A date before 1970 or after 9999 has no form here.
    if let Some(modified) = opened.modified.filter(|time| has_http_date(*time)) {
        say(LAST_MODIFIED, httpdate::fmt_http_date(modified));
    }
    if encoding == Encoding::Gzip {
        say(CONTENT_ENCODING, "gzip".into());
        return headers;
    }
    let Some(rest) = opened.rest else { return headers };
    let sent = opened.first.len() as u64 + rest;
    say(ACCEPT_RANGES, "bytes".into());
    say(CONTENT_LENGTH, sent.to_string());
    if let Some((from, length)) = opened.part {
        say(CONTENT_RANGE, format!("bytes {from}-{}/{length}", from + sent - 1));
    }
    headers
}

fn has_http_date(time: SystemTime) -> bool {
    const YEAR_10000: u64 = 253_402_300_800;
    time.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since.as_secs() < YEAR_10000)
}

fn out_of_range(length: u64) -> Response<Body> {
    let error = HttpError::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("the file has {length} bytes"));
    let mut response = error.into_response();
    if let Ok(value) = format!("bytes */{length}").try_into() {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    response
}

fn open(path: &str, headers: &HeaderMap) -> Result<Answer, HttpError> {
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
    let modified = metadata.modified().ok().filter(|time| has_http_date(*time));
    let length = metadata.len();
    // What says that it is empty may be a file of /proc, which is read to its end.
    let wanted = if length == 0 { Wanted::Whole } else { wanted(headers, modified) };
    let Some((from, sent)) = wanted.of(length) else { return Ok(Answer::OutOfRange(length)) };
    if wanted == Wanted::Whole {
        let first = read_chunk(&mut file, CHUNK).map_err(failed)?;
        let at_end = first.len() < CHUNK;
        // Files of /proc and /sys have any length that they like to say; only a file that really is longer than the
        // first chunk is trusted with its length.
        let rest = if at_end { Some(0) } else { length.checked_sub(CHUNK as u64) };
        return Ok(Answer::File(Opened { file, modified, part: None, first, rest, at_end }));
    }
    file.seek(SeekFrom::Start(from)).map_err(failed)?;
    let chunk = sent.min(CHUNK as u64);
    let first = read_chunk(&mut file, chunk as usize).map_err(failed)?;
    let (read, rest) = (first.len() as u64, sent - chunk);
    if read < chunk {
        // It is shorter than it says.
        if read == 0 {
            return Ok(Answer::OutOfRange(from));
        }
        let part = Some((from, from + read));
        return Ok(Answer::File(Opened { file, modified, part, first, rest: Some(0), at_end: true }));
    }
    let part = Some((from, length));
    Ok(Answer::File(Opened { file, modified, part, first, rest: Some(rest), at_end: rest == 0 }))
}

/// Reads until `limit` or the end of the file.
fn read_chunk(file: &mut File, limit: usize) -> io::Result<Bytes> {
    let mut chunk = Vec::new();
    file.take(limit as u64).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}

/// An opened file, one chunk read at a time.
///
/// If the length was told, exactly that much: a file that shrinks meanwhile breaks the connection, which the
/// receiver notices; what is appended meanwhile is left out.
fn chunks(opened: Opened) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let Opened { file, first, rest, .. } = opened;
    stream::try_unfold((file, Some(first), rest), |(mut file, first, rest)| async move {
        if let Some(first) = first {
            return Ok(Some((first, (file, None, rest))));
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
                Ok::<_, BoxError>(Some((chunk, (file, None, rest))))
            }
        }
    })
}

pub(super) fn read_error(path: &str, error: &io::Error) -> HttpError {
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
        let status = |path: &str| open(path, &HeaderMap::new()).err().map(|error| error.status.as_u16());
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

    fn opened(path: &str, range: Option<&'static str>) -> Opened {
        let range = range.map(|range| (hyper::header::RANGE, HeaderValue::from_static(range)));
        match open(path, &range.into_iter().collect()) {
            Ok(Answer::File(opened)) => opened,
            Ok(Answer::OutOfRange(length)) => panic!("{path} has just {length} bytes"),
            Err(e) => panic!("{e:?}"),
        }
    }

    #[test]
    fn lengths_are_told_where_they_can_be_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let path = path.to_str().unwrap();
        for (len, told) in [(0, 0), (5, 5), (CHUNK, CHUNK), (CHUNK + 7, CHUNK + 7)] {
            std::fs::write(path, vec![1; len]).unwrap();
            let opened = opened(path, None);
            assert_eq!(opened.first.len() as u64 + opened.rest.unwrap(), told as u64);
        }
        // It says 0 and has something.
        for range in [None, Some("bytes=0-10")] {
            let proc = opened("/proc/self/status", range);
            assert!(proc.first.len() > 100 && proc.rest == Some(0) && proc.part.is_none());
        }
        // This one says a page and has less.
        let sys = opened("/sys/kernel/mm/transparent_hugepage/enabled", Some("bytes=2-"));
        assert_eq!(sys.part, Some((2, sys.first.len() as u64 + 2)));
        assert!(sys.at_end && sys.first.len() < 1000);
    }
}

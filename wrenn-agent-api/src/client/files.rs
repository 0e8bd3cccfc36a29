//! Files in the guest: read and written as streams, in constant memory.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, TryStreamExt};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RANGE};
use hyper::{Method, Request, StatusCode};

use super::transport::RequestBody;
use super::{AgentClient, AgentError, ORIGIN};
use crate::http::FileEntry;
use crate::transport::{BoxError, WatchedBody};

/// Where a file is in the guest, and on whose behalf it is touched.
///
/// Relative paths and `~` start at the user's home. The user (default: the sandbox's) also owns what is written.
#[derive(Debug, Clone)]
pub struct GuestPath {
    pub(super) path: String,
    pub(super) user: Option<String>,
}

impl GuestPath {
    /// A path on behalf of the sandbox's default user.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), user: None }
    }

    /// The same path on behalf of `name`.
    pub fn user(mut self, name: impl Into<String>) -> Self {
        self.user = Some(name.into());
        self
    }

    fn into_uri(self) -> String {
        let mut uri = format!("{ORIGIN}/files?path={}", percent_encode(&self.path));
        if let Some(user) = &self.user {
            uri.push_str("&username=");
            uri.push_str(&percent_encode(user));
        }
        uri
    }
}

impl From<&str> for GuestPath {
    fn from(path: &str) -> Self {
        Self::new(path)
    }
}

impl From<String> for GuestPath {
    fn from(path: String) -> Self {
        Self::new(path)
    }
}

/// Everything but RFC 3986's unreserved characters and `/` as `%XX`.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// What to write into a file: bytes at hand, or a stream of any length.
pub struct Upload {
    body: RequestBody,
    len: Option<u64>,
}

impl Upload {
    /// A stream of pieces. `len` is their sum in bytes, where known; the agent then checks it.
    ///
    /// An error of the stream ends the upload and leaves the file as it was.
    pub fn stream<E>(pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static, len: Option<u64>) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let frames = pieces.map(|piece| piece.map(Frame::data).map_err(|e| SourceFailed(e.into()).into()));
        Self { body: StreamBody::new(frames).boxed_unsync(), len }
    }
}

impl<T: Into<Bytes>> From<T> for Upload {
    fn from(bytes: T) -> Self {
        let bytes = bytes.into();
        let len = Some(bytes.len() as u64);
        Self { body: Full::new(bytes).map_err(|never| match never {}).boxed_unsync(), len }
    }
}

/// Marks an error as the caller's own, wherever it surfaces.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct SourceFailed(BoxError);

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrittenFile {
    /// Its absolute path in the guest.
    pub path: String,
}

/// The contents of a file on their way here: a [`Stream`] of pieces.
///
/// Nothing is read ahead but about 64 KiB and what the sockets hold. An error means that what came before is not
/// the whole file.
#[derive(Debug)]
pub struct FileStream {
    body: WatchedBody,
    len: Option<u64>,
}

impl FileStream {
    /// The file's length in bytes, where the guest knows it (it does not for files of `/proc`).
    pub fn len(&self) -> Option<u64> {
        self.len
    }

    /// Whether the file is known to be empty.
    pub fn is_empty(&self) -> bool {
        self.len == Some(0)
    }

    /// The rest of the contents in one piece, if they are no more than `limit` bytes.
    ///
    /// # Errors
    /// [`AgentError::Failed`] with code `too_large` if they are more.
    pub async fn collect(mut self, limit: usize) -> Result<Bytes, AgentError> {
        let mut contents = bytes::BytesMut::new();
        while let Some(piece) = self.try_next().await? {
            if contents.len() + piece.len() > limit {
                let message = format!("the file has more than {limit} bytes");
                return Err(AgentError::Failed { call: READ, code: "too_large".into(), message });
            }
            contents.extend_from_slice(&piece);
        }
        Ok(contents.freeze())
    }
}

const READ: &str = "reading a file";
const WRITE: &str = "writing a file";

impl Stream for FileStream {
    type Item = Result<Bytes, AgentError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(frame) = std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) else {
                return Poll::Ready(None);
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(piece)) if piece.is_empty() => {}
                Ok(Ok(piece)) => return Poll::Ready(Some(Ok(piece))),
                // Trailers: HTTP allows them, they mean nothing here.
                Ok(Err(_)) => {}
                Err(e) => {
                    return Poll::Ready(Some(Err(AgentError::Disconnected { call: READ, source: e.into() })));
                }
            }
        }
    }
}

impl AgentClient {
    /// Opens a file of the guest for reading. It is read as root.
    ///
    /// # Errors
    /// [`AgentError::NotFound`]; [`AgentError::InvalidArgument`] for a directory or a device.
    pub async fn read_file(&self, path: impl Into<GuestPath>) -> Result<FileStream, AgentError> {
        self.read(path.into(), None).await
    }

    /// The same for a part of the file: from byte `first`, at most `len` bytes if that is said. Files whose length the
    /// guest does not know, as those of `/proc`, have no parts.
    ///
    /// # Errors
    /// As [`read_file`](Self::read_file); [`AgentError::InvalidArgument`] where the file has no such part.
    pub async fn read_file_part(
        &self,
        path: impl Into<GuestPath>,
        first: u64,
        len: Option<u64>,
    ) -> Result<FileStream, AgentError> {
        let range = match len {
            None => format!("bytes={first}-"),
            Some(0) => {
                let message = "a part of no bytes".into();
                return Err(AgentError::InvalidArgument { call: READ, message });
            }
            Some(len) => format!("bytes={first}-{}", first.saturating_add(len - 1)),
        };
        self.read(path.into(), Some(range)).await
    }

    async fn read(&self, path: GuestPath, range: Option<String>) -> Result<FileStream, AgentError> {
        let wanted = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        let mut request = Request::builder().method(Method::GET).uri(path.into_uri());
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let request = request
            .body(Full::default().map_err(|never| match never {}).boxed_unsync())
            .map_err(|e| AgentError::protocol(READ, e.to_string()))?;
        let response = self.send(READ, request).await?;
        let status = response.status();
        if status == StatusCode::OK && wanted != status {
            let message = "the file has no parts".into();
            return Err(AgentError::InvalidArgument { call: READ, message });
        }
        if status != wanted {
            self.collect(READ, response).await?;
            return Err(AgentError::protocol(READ, "neither contents nor an error"));
        }
        let body = response.into_body();
        let len = body.size_hint().exact();
        Ok(FileStream { body, len })
    }

    /// Writes a file of the guest, with mode 0644 if it is new; missing directories are made, 0755.
    ///
    /// The file changes at once, when all has arrived: a reader in the guest sees the old contents or the new,
    /// and after any error the old ones. Not limited in time but by dropping the future, which leaves the file
    /// as it was, or as it should be if all had been sent.
    ///
    /// # Errors
    /// [`AgentError::NoSpace`]; [`AgentError::InvalidArgument`] if the path is a directory or leads through a
    /// file; [`AgentError::Upload`] if the upload's own stream failed.
    pub async fn write_file(
        &self,
        path: impl Into<GuestPath>,
        contents: impl Into<Upload>,
    ) -> Result<WrittenFile, AgentError> {
        let Upload { body, len } = contents.into();
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path.into().into_uri())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        if let Some(len) = len {
            request = request.header(CONTENT_LENGTH, len);
        }
        let request = request.body(body).map_err(|e| AgentError::protocol(WRITE, e.to_string()))?;
        let transport = self.transport();
        let response = transport.request(request).await.map_err(|error| {
            if let Some(source) = find_source_failure(&error) {
                return AgentError::Upload { call: WRITE, source };
            }
            transport
                .take_fault(WRITE, false)
                .unwrap_or_else(|| AgentError::Disconnected { call: WRITE, source: error.into() })
        })?;
        let body = self.collect(WRITE, response).await?;
        let files: Vec<FileEntry> =
            serde_json::from_slice(&body).map_err(|e| AgentError::protocol(WRITE, e.to_string()))?;
        match <[FileEntry; 1]>::try_from(files) {
            Ok([file]) => Ok(WrittenFile { path: file.path }),
            Err(files) => Err(AgentError::protocol(WRITE, format!("{} files written, not 1", files.len()))),
        }
    }
}

/// The caller's own error, if that is what ended the upload.
fn find_source_failure(error: &(dyn std::error::Error + 'static)) -> Option<BoxError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(SourceFailed(source)) = error.downcast_ref() {
            return Some(source.to_string().into());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_the_query() {
        let uri = GuestPath::new("/a b/ä&c=%?#+").user("bob&x").into_uri();
        assert_eq!(uri, "http://agent/files?path=/a%20b/%C3%A4%26c%3D%25%3F%23%2B&username=bob%26x");
    }
}

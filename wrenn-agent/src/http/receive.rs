//! `POST /files`: files from a raw body, or from the parts of a form.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream};
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, BodyStream};
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use hyper::{HeaderMap, Request, Response, StatusCode};
use multer::Multipart;
use wrenn_agent_api::http::FileEntry;

use super::query::Query;
use super::upload::Staged;
use super::{Body, HttpError, Routes, gzip, json};
use crate::paths;
use crate::sys::Identity;
use crate::users::User;

/// How long the rest of a refused body is still read, so that its sender gets to see the refusal.
const DRAIN: Duration = Duration::from_secs(30);

/// The most that all metadata of a file may have, in bytes.
const MAX_METADATA: usize = 4096;

type Pieces<'a> = BoxStream<'a, Result<Bytes, HttpError>>;

/// What all files of one request share.
struct Delivery {
    user: User,
    /// `None` where the agent may not give files away.
    owner: Option<Arc<Identity>>,
    path: Option<String>,
    metadata: Arc<BTreeMap<String, String>>,
}

impl Routes {
    pub(super) async fn upload(&self, request: Request<Incoming>) -> Result<Response<Body>, HttpError> {
        let (head, mut body) = request.into_parts();
        let query = Query::of(&head.uri);
        let received = match self.delivery(&query, &head.headers) {
            Ok(delivery) => receive(delivery, &head.headers, &mut body).await,
            Err(e) => Err(e),
        };
        match received {
            Ok(files) => Ok(json(StatusCode::OK, &files)),
            Err(error) => {
                // A connection closed with unread data is reset, and the answer with it.
                let drain = async { while let Some(Ok(_)) = body.frame().await {} };
                let _ = tokio::time::timeout(DRAIN, drain).await;
                Err(error)
            }
        }
    }

    fn delivery(&self, query: &Query, headers: &HeaderMap) -> Result<Delivery, HttpError> {
        let user = self.user(query)?;
        let root = rustix::process::geteuid().is_root();
        Ok(Delivery {
            owner: root.then(|| Arc::new(user.identity.clone())),
            path: query.path()?.map(str::to_owned),
            metadata: Arc::new(metadata(headers)?),
            user,
        })
    }
}

async fn receive(
    delivery: Delivery,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<Vec<FileEntry>, HttpError> {
    let lost = |e: hyper::Error| HttpError::bad_request(format!("the body broke off: {e}"));
    let frames = TryStreamExt::map_err(BodyStream::new(body), lost);
    let pieces = frames.try_filter_map(async |frame| Ok(frame.into_data().ok())).boxed();
    let pieces: Pieces<'_> = match headers.get(CONTENT_ENCODING).map(|value| value.as_bytes()) {
        None | Some(b"identity") => pieces,
        Some(b"gzip") => gzip::unpack(pieces).boxed(),
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            return Err(HttpError::bad_request(format!("a body in content encoding '{other}'")));
        }
    };
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    match content_type.split(';').next().map(str::trim) {
        Some("application/octet-stream") => {
            let path = delivery.path.clone();
            let path = path.ok_or_else(|| HttpError::bad_request("a raw body needs a path in the query"))?;
            Ok(vec![delivery.store(&path, pieces).await?])
        }
        Some("multipart/form-data") => receive_form(&delivery, content_type, pieces).await,
        _ => Err(HttpError::bad_request(format!(
            "content type '{content_type}': it must be application/octet-stream or multipart/form-data"
        ))),
    }
}

async fn receive_form(
    delivery: &Delivery,
    content_type: &str,
    pieces: Pieces<'_>,
) -> Result<Vec<FileEntry>, HttpError> {
    let broken = |e: multer::Error| HttpError::bad_request(format!("the form is broken: {e}"));
    let boundary = multer::parse_boundary(content_type).map_err(broken)?;
    let mut form = Multipart::new(OneAtATime(pieces, true), boundary);
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    while let Some(part) = form.next_field().await.map_err(broken)? {
        if part.name() != Some("file") {
            continue;
        }
        let path = delivery.path.clone().or_else(|| part.file_name().map(str::to_owned));
        let path = path.filter(|path| !path.is_empty());
        let path =
            path.ok_or_else(|| HttpError::bad_request("a file part without a file name, and no path"))?;
        if !seen.insert(paths::resolve(&path, &delivery.user.home)) {
            return Err(HttpError::bad_request(format!("path '{path}' comes twice in the form")));
        }
        files.push(delivery.store(&path, part.map_err(broken).boxed()).await?);
    }
    if files.is_empty() {
        return Err(HttpError::bad_request("the form has no part named 'file'"));
    }
    Ok(files)
}

impl Delivery {
    /// Writes one file. Memory: one piece.
    async fn store(&self, path: &str, mut pieces: Pieces<'_>) -> Result<FileEntry, HttpError> {
        if path.contains('\0') {
            return Err(HttpError::bad_request("a NUL character in the path"));
        }
        let path = paths::resolve(path, &self.user.home);
        let (destination, owner) = (path.clone(), self.owner.clone());
        let mut staged = blocking(move || Staged::begin(&destination, owner.as_deref())).await?;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            staged = blocking(move || staged.write(&piece).map(|()| staged)).await?;
        }
        let metadata = self.metadata.clone();
        blocking(move || staged.finish(&metadata)).await?;
        Ok(FileEntry {
            name: path.rsplit('/').next().unwrap_or_default().to_owned(),
            path,
            kind: "file".into(),
            metadata: self.metadata.as_ref().clone(),
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HttpError> + Send + 'static,
) -> Result<T, HttpError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string())))
}

/// The `X-Metadata-<key>` headers, by lower-case key.
fn metadata(headers: &HeaderMap) -> Result<BTreeMap<String, String>, HttpError> {
    let mut metadata = BTreeMap::new();
    let mut size = 0;
    for (name, value) in headers {
        // Header names are lower case here.
        let Some(key) = name.as_str().strip_prefix("x-metadata-") else { continue };
        let value =
            value.to_str().ok().filter(|value| value.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        let value = value
            .ok_or_else(|| HttpError::bad_request(format!("metadata '{key}' is not printable ASCII")))?;
        size += key.len() + value.len();
        if key.is_empty() || size > MAX_METADATA {
            return Err(HttpError::bad_request(format!(
                "metadata needs keys, and may have {MAX_METADATA} bytes in all"
            )));
        }
        metadata.insert(key.to_owned(), value.to_owned());
    }
    Ok(metadata)
}

/// Yields one piece per poll, with a pause in between.
///
/// The form parser takes in whatever its stream has ready before it hands anything out; from a sender that is
/// faster than the disk that would be the whole file.
struct OneAtATime<'a>(Pieces<'a>, bool);

impl Stream for OneAtATime<'_> {
    type Item = Result<Bytes, FormFailure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !std::mem::replace(&mut self.1, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = self.0.poll_next_unpin(context);
        if matches!(polled, Poll::Ready(Some(_))) {
            self.1 = false;
        }
        polled.map_err(|error| FormFailure(error.message))
    }
}

/// What the form parser is told of a failed body.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct FormFailure(String);

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[test]
    fn metadata_comes_from_headers() {
        let headers = |pairs: &[(&'static str, &str)]| {
            let pair = |(name, value): &(&'static str, &str)| {
                (name.parse::<hyper::header::HeaderName>().unwrap(), value.parse().unwrap())
            };
            pairs.iter().map(pair).collect::<HeaderMap>()
        };
        let found = metadata(&headers(&[("x-metadata-Kind", "a b"), ("content-type", "x")])).unwrap();
        assert_eq!(found, BTreeMap::from([("kind".to_owned(), "a b".to_owned())]));
        assert!(metadata(&headers(&[("x-metadata-", "v")])).is_err());
        assert!(metadata(&headers(&[("x-metadata-a", "\t")])).is_err());
        let long = "v".repeat(MAX_METADATA);
        assert!(metadata(&headers(&[("x-metadata-a", &long)])).is_err());
    }

    #[tokio::test]
    async fn a_ready_stream_is_doled_out() {
        let pieces = stream::iter((0..3u8).map(|n| Ok(Bytes::from(vec![n])))).boxed();
        let mut doled = OneAtATime(pieces, true);
        let mut context = Context::from_waker(std::task::Waker::noop());
        for n in 0..3u8 {
            assert!(
                matches!(doled.poll_next_unpin(&mut context), Poll::Ready(Some(Ok(piece))) if piece == [n][..])
            );
            assert!(doled.poll_next_unpin(&mut context).is_pending());
        }
        assert!(matches!(doled.poll_next_unpin(&mut context), Poll::Ready(None)));
    }
}

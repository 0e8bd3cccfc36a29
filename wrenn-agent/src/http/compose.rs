//! `POST /files/compose`: files put together to one, within the guest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use wrenn_agent_api::http::FileEntry;

use super::files::read_error;
use super::query::Query;
use super::upload::Staged;
use super::{Body, HttpError, Routes, json};
use crate::paths;

/// The largest request: thousands of paths.
const MAX_BODY: usize = 1 << 20;

#[derive(Deserialize)]
struct ComposeRequest {
    source_paths: Vec<String>,
    destination: String,
    username: Option<String>,
}

impl Routes {
    /// Puts files together, one after the other, and removes them when that is done. After an error all is as it was,
    /// but for sources that could not be removed.
    pub(super) async fn compose(&self, request: Request<Incoming>) -> Result<Response<Body>, HttpError> {
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|e| HttpError::bad_request(format!("cannot read the body: {e}")))?.to_bytes();
        let request: ComposeRequest = serde_json::from_slice(&body)
            .map_err(|e| HttpError::bad_request(format!("the body is not what /files/compose takes: {e}")))?;
        let user = self.user(&Query::given(None, request.username))?;
        let absolute = |path: String| {
            let path = Query::given(Some(path), None);
            path.path().map(|path| paths::resolve(path.unwrap_or_default(), &user.home))
        };
        let sources = request.source_paths.into_iter().map(absolute).collect::<Result<Vec<_>, _>>()?;
        if sources.is_empty() {
            return Err(HttpError::bad_request("source_paths: there must be at least one"));
        }
        let destination = absolute(request.destination)?;
        let owner = rustix::process::geteuid().is_root().then(|| user.identity.clone());
        let put = destination.clone();
        let done = tokio::task::spawn_blocking(move || {
            let staged = Staged::begin(&put, owner.as_ref())?;
            put_together(staged, &sources, &put)
        });
        done.await.unwrap_or_else(|panic| {
            Err(HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()))
        })?;
        Ok(json(
            StatusCode::OK,
            &FileEntry {
                name: destination.rsplit('/').next().unwrap_or_default().to_owned(),
                path: destination,
                kind: "file".into(),
                metadata: BTreeMap::new(),
            },
        ))
    }
}

fn put_together(mut staged: Staged, sources: &[String], destination: &str) -> Result<(), HttpError> {
    for source in sources {
        let failed = |e: io::Error| read_error(source, &e);
        // Without O_NONBLOCK the opening of a named pipe would hang.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut file = File::options().read(true).custom_flags(flags).open(source).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(HttpError::bad_request(format!("path '{source}' is not a regular file")));
        }
        staged.append(&mut file)?;
    }
    staged.finish(&BTreeMap::new())?;
    // Each once, and not what was just written.
    for source in sources.iter().collect::<BTreeSet<_>>() {
        if source != destination
            && let Err(e) = fs::remove_file(source)
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(HttpError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("'{destination}' is complete, but '{source}' could not be removed: {e}"),
            ));
        }
    }
    Ok(())
}

//! The HTTP side: connections, routes, the token check.
//!
//! HTTP/1.1. `/health` answers anybody and `/init` anybody until the first one set the token; everything else
//! needs the token first, known route or not.

mod compose;
mod files;
mod gzip;
mod init;
mod metrics;
mod query;
mod range;
mod receive;
mod server;
mod signature;
mod upload;

use std::sync::Arc;

use bytes::Bytes;
use connectrpc::{Chain, ConnectRpcService};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tower_service::Service;
use wrenn_agent_api::ACCESS_TOKEN_HEADER;
use wrenn_agent_api::http::ErrorBody;
use wrenn_agent_api::proto::filesystem::FilesystemServer;
use wrenn_agent_api::proto::process::ProcessServer;

use crate::filesystem::{FilesystemService, Watchers};
use crate::machine::Machine;
use crate::process::{ProcessService, Processes};
use crate::settings::Settings;
use metrics::CpuMeter;
use query::Query;
pub(crate) use server::{Connections, serve};

type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;
type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Everything that answers requests.
pub(crate) struct Routes {
    settings: Arc<Settings>,
    machine: Machine,
    connections: Connections,
    cpu: CpuMeter,
    rpc: ConnectRpcService<Chain<ProcessServer<ProcessService>, FilesystemServer<FilesystemService>>>,
}

/// An error of a plain route.
#[derive(Debug)]
struct HttpError {
    status: StatusCode,
    message: String,
}

impl HttpError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn into_response(self) -> Response<Body> {
        json(self.status, &ErrorBody { code: self.status.as_u16(), message: self.message })
    }
}

impl Routes {
    pub(crate) fn new(
        settings: Arc<Settings>,
        processes: Arc<Processes>,
        machine: Machine,
        connections: Connections,
    ) -> Self {
        let processes = ProcessServer::new(ProcessService { processes, settings: settings.clone() });
        let filesystem = FilesystemService { settings: settings.clone(), watchers: Watchers::default() };
        let filesystem = FilesystemServer::new(filesystem);
        let rpc = ConnectRpcService::new(Chain(processes, filesystem));
        Self { settings, machine, connections, cpu: CpuMeter::default(), rpc }
    }

    /// Answers one request that came over `connection`.
    async fn answer(&self, request: Request<Incoming>, connection: u64) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if let Some(refusal) = self.refuse(&path, &request) {
            return refusal;
        }
        let answered = match (request.method(), path.as_str()) {
            (&Method::GET, "/health") => Ok(no_content()),
            (&Method::POST, "/init") => self.init(request, connection).await.map(|()| no_content()),
            (&Method::GET, "/files") => self.download(&request).await,
            (&Method::POST, "/files") => self.upload(request).await,
            (&Method::POST, "/files/compose") => self.compose(request).await,
            (&Method::GET, "/envs") => Ok(json(StatusCode::OK, &self.settings.env())),
            (&Method::GET, "/metrics") => self.metrics().await,
            (_, "/health" | "/init" | "/files" | "/files/compose" | "/envs" | "/metrics") => {
                Err(HttpError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} has no such method")))
            }
            (_, rpc) if is_rpc(rpc) => return self.call(request).await,
            _ => Err(HttpError::new(StatusCode::NOT_FOUND, format!("no route {path}"))),
        };
        answered.unwrap_or_else(HttpError::into_response)
    }

    /// The answer to a request that needs the token and does not show it.
    fn refuse<T>(&self, path: &str, request: &Request<T>) -> Option<Response<Body>> {
        let shown = request.headers().get(ACCESS_TOKEN_HEADER);
        let open = path == "/health" || (path == "/init" && !self.settings.is_claimed());
        if open || shown.is_some_and(|token| self.settings.accepts(token.as_bytes())) {
            return None;
        }
        let mut message = "the access token is missing or wrong";
        if path == "/files" && shown.is_none() {
            match self.check_signature(request.method(), &Query::of(request.uri())) {
                Ok(()) => return None,
                Err(Some(why)) => message = why,
                Err(None) => {}
            }
        }
        if is_rpc(path) {
            // For an RPC client the code is the Connect one.
            let error = serde_json::json!({ "code": "unauthenticated", "message": message });
            return Some(json(StatusCode::UNAUTHORIZED, &error));
        }
        Some(HttpError::new(StatusCode::UNAUTHORIZED, message).into_response())
    }

    async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        let mut rpc = self.rpc.clone();
        // It is always ready, and answers errors as responses.
        match rpc.call(request).await {
            Ok(response) => response.map(|body| body.map_err(|never| match never {}).boxed_unsync()),
            Err(never) => match never {},
        }
    }
}

/// `/<package>.<Service>/<Method>`.
fn is_rpc(path: &str) -> bool {
    path.strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .is_some_and(|(service, _method)| service.contains('.'))
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let (status, text) = match serde_json::to_vec(value) {
        Ok(text) => (status, text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, b"{\"code\":500,\"message\":\"no JSON\"}".to_vec()),
    };
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rpc_paths_have_a_package() {
        for path in ["/process.Process/Start", "/a.b.C/D", "/filesystem.Filesystem/Stat"] {
            assert!(is_rpc(path), "{path}");
        }
        for path in ["/health", "/files", "/files/a.b", "/", "", "process.Process/Start", "/a.b"] {
            assert!(!is_rpc(path), "{path}");
        }
    }
}

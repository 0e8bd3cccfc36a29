//! Which request goes where, and who may make it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use connectrpc::{ConnectError, ConnectRpcService, ErrorCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::connections::Access;
use super::rpc::Rpc;
use super::sandboxes::Sandboxes;
use crate::{Reason, pb};

pub(super) type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// The most bytes of a request: 64 labels of the longest kind, an environment, an egress policy.
const MOST_REQUEST: usize = 2 << 20;
/// How long a request's body may take.
const BODY_LIMIT: Duration = Duration::from_secs(30);
/// The longest `Authorization` that is looked at.
const LONGEST_TOKEN: usize = 4096;
/// The most tunnels at once.
const MOST_TUNNELS: usize = 2048;
const SERVICE: &str = "/wrenn.host.v1.Host/";

/// Everything that answers requests.
pub(super) struct Routes {
    name: String,
    pub(super) sandboxes: Arc<Sandboxes>,
    rpc: ConnectRpcService<pb::HostServer<Rpc>>,
    pub(super) tunnels: Arc<Semaphore>,
}

impl Routes {
    pub(super) fn new(
        name: String,
        sandboxes: Arc<Sandboxes>,
        tasks: TaskTracker,
        ending: CancellationToken,
    ) -> Self {
        let rpc = Rpc::new(name.clone(), Arc::clone(&sandboxes), tasks, ending);
        let rpc = ConnectRpcService::new(pb::HostServer::new(rpc));
        Self { name, sandboxes, rpc, tunnels: Arc::new(Semaphore::new(MOST_TUNNELS)) }
    }

    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        access: &Access,
        stop: CancellationToken,
    ) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if path == "/health" {
            return match *request.method() {
                Method::GET | Method::HEAD => status(StatusCode::NO_CONTENT),
                _ => refuse(&Reason::InvalidArgument.error("/health is asked with GET")),
            };
        }
        if let Err(error) = self.check(&request, access) {
            let mut response = refuse(&error);
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
        if let Some(target) = path.strip_prefix("/tunnel/") {
            let target = target.to_owned();
            return self.tunnel(request, &target, stop).await.unwrap_or_else(|error| refuse(&error));
        }
        if path.starts_with(SERVICE) {
            return self.call(request).await.unwrap_or_else(|error| refuse(&error));
        }
        refuse(&ConnectError::new(ErrorCode::Unimplemented, "there is no such route"))
    }

    /// Whether the request shows what is asked for.
    fn check<T>(&self, request: &Request<T>, access: &Access) -> Result<(), ConnectError> {
        let Access::Token(secret) = access else { return Ok(()) };
        let mut shown = request.headers().get_all(AUTHORIZATION).iter();
        let missing = || Reason::Unauthenticated.error("a host token is needed: Authorization: Bearer …");
        let (Some(value), None) = (shown.next(), shown.next()) else { return Err(missing()) };
        let text = value.to_str().ok().filter(|text| text.len() <= LONGEST_TOKEN).ok_or_else(missing)?;
        let token = text.strip_prefix("Bearer ").ok_or_else(missing)?;
        match secret.verify(&self.name, token) {
            Ok(caller) => {
                tracing::debug!(caller = caller.name, path = request.uri().path(), "call");
                Ok(())
            }
            Err(error) => Err(Reason::Unauthenticated.error(error.to_string())),
        }
    }

    async fn call(&self, request: Request<Incoming>) -> Result<Response<Body>, ConnectError> {
        let (head, body) = request.into_parts();
        let too_large = || Reason::Exhausted.error(format!("a request has at most {MOST_REQUEST} bytes"));
        if body.size_hint().lower() > MOST_REQUEST as u64 {
            return Err(too_large());
        }
        // All requests are whole: nobody's slowness holds up more than his own connection.
        let body = tokio::time::timeout(BODY_LIMIT, Limited::new(body, MOST_REQUEST).collect()).await;
        let body = match body {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(e)) if e.is::<LengthLimitError>() => return Err(too_large()),
            Ok(Err(_)) => return Err(Reason::InvalidArgument.error("the request broke off")),
            Err(_) => {
                return Err(Reason::TimedOut.error(format!("the request took longer than {BODY_LIMIT:?}")));
            }
        };
        let mut rpc = self.rpc.clone();
        // It is always ready, and answers errors as responses.
        match rpc.call(Request::from_parts(head, Full::new(body))).await {
            Ok(response) => Ok(response.map(|body| body.map_err(|never| match never {}).boxed_unsync())),
            Err(never) => match never {},
        }
    }
}

/// An error as an answer, as Connect has them.
pub(super) fn refuse(error: &ConnectError) -> Response<Body> {
    let mut response = Response::new(full(error.to_json()));
    *response.status_mut() = error.http_status();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn status(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = code;
    response
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).boxed_unsync()
}

//! Requests: over pooled connections, each with a token of its own, and watched for how they fail.
//!
//! No request is ever repeated, except where a pooled connection turns out to be closed before any of it was sent.

use std::sync::Arc;
use std::time::Duration;

use connectrpc::client::{BoxFuture, ClientBody, ClientTransport};
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Request, Response};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use wrenn_agent_api::transport::{Dial, Dialer, Fault, Note, WatchedBody};

use super::HostError;
use crate::HostSecret;

/// The authority in request lines: it leads nowhere, the dial closure decides.
pub(super) const ORIGIN: &str = "http://host";

/// The most bytes read ahead of whoever consumes an answer.
const READ_AHEAD: usize = 64 * 1024;

/// How long a token lives that is signed for one call.
const LIFETIME: Duration = Duration::from_secs(60);

/// How long a connection is kept for the next call: less than hosts keep theirs, so that none is used just as it is closed.
const IDLE: Duration = Duration::from_secs(20);

/// What tokens are signed with, for whom, and in whose name.
#[derive(Clone)]
pub(super) struct Signer {
    pub(super) secret: HostSecret,
    pub(super) host: String,
    pub(super) caller: String,
}

impl Signer {
    pub(super) fn header(&self) -> HeaderValue {
        let token = self.secret.sign(&self.host, &self.caller, LIFETIME);
        let mut value =
            HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is base64url and dots");
        value.set_sensitive(true);
        value
    }
}

/// How requests get to a host; shared by all clones of a client.
pub(super) struct Link {
    pub(super) dial: Dial,
    pub(super) signer: Option<Signer>,
    pool: Client<Dialer, ClientBody>,
}

impl Link {
    pub(super) fn new(dial: Dial, signer: Option<Signer>) -> Self {
        let pool = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(16)
            .http1_max_buf_size(READ_AHEAD)
            .build(Dialer::new(Arc::clone(&dial)));
        Self { dial, signer, pool }
    }
}

/// One call's way to the host.
#[derive(Clone)]
pub(super) struct Transport {
    link: Arc<Link>,
    note: Note,
}

impl Transport {
    pub(super) fn new(link: &Arc<Link>) -> Self {
        Self { link: Arc::clone(link), note: Note::default() }
    }

    /// The connection's failure, if that is why `call` failed. `ended` says whether an end counts as one.
    pub(super) fn take_fault(&self, call: &'static str, ended: bool) -> Option<HostError> {
        match self.note.take()? {
            Fault::Dial(source) => Some(HostError::Unreachable { call, source }),
            Fault::Broken(source) => Some(HostError::Disconnected { call, source }),
            Fault::Ended if ended => {
                Some(HostError::Disconnected { call, source: "the host closed it early".into() })
            }
            Fault::Ended => None,
        }
    }
}

impl ClientTransport for Transport {
    type ResponseBody = WatchedBody;
    type Error = legacy::Error;

    fn send(
        &self,
        mut request: Request<ClientBody>,
    ) -> BoxFuture<'static, Result<Response<WatchedBody>, legacy::Error>> {
        let this = self.clone();
        if let Some(signer) = &self.link.signer {
            request.headers_mut().insert(AUTHORIZATION, signer.header());
        }
        Box::pin(async move { this.note.send(&this.link.pool, request).await })
    }
}

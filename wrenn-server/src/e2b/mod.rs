//! E2B's wire, as its unmodified clients speak it: `E2B_API_URL` and `E2B_SANDBOX_URL` (or `E2B_DOMAIN`, where there is TLS in
//! front) lead here, and `E2B_API_KEY` is a key of this server.
//!
//! Two kinds of requests come. Those for the control API are routes ([`routes`]) beside those of `/v1`, with the same teams,
//! sandboxes and snapshots. Those for a sandbox's agent are told by their `Host` or by headers, are checked, and are then
//! passed on as they come ([`divert`]).
//!
//! | E2B | here |
//! |---|---|
//! | template `base` | the image that the setting `e2b_base` names; other names are those of images and of the team's snapshots |
//! | timeout: an appointment | kept by [`ends`], beside the host's timeout for idle sandboxes |
//! | the agent's token | one of this server's own ([`token`]) |
//! | metrics over time | what is used now |
//! | pause, resume or snapshot without memory; changes of a running sandbox's network; volumes; SOCKS proxies | refused |

mod control;
mod ends;
mod error;
mod extract;
mod list;
mod snapshots;
mod token;
mod traffic;
mod types;

use axum::Router;
use axum::routing::{delete, get, post, put};

pub(crate) use self::control::wake;
pub(crate) use self::ends::keep_appointments;
use self::token::Tokens;
use self::traffic::AgentTokens;
pub(crate) use self::traffic::divert;
use crate::app::App;

/// What the routes share.
pub(crate) struct E2b {
    tokens: Tokens,
    agent_tokens: AgentTokens,
    /// Looking for whose signature a URL has takes a while: a few at a time.
    searches: tokio::sync::Semaphore,
}

impl E2b {
    pub(crate) fn new(secret: &secrecy::SecretString) -> Self {
        Self {
            tokens: Tokens::new(secret),
            agent_tokens: AgentTokens::default(),
            searches: tokio::sync::Semaphore::new(2),
        }
    }
}

/// Routes that take as long as a sandbox does.
pub(crate) const UNHURRIED: &[&str] = &[
    "/sandboxes",
    "/v2/sandboxes",
    "/sandboxes/{sandbox}",
    "/sandboxes/{sandbox}/connect",
    "/v2/sandboxes/{sandbox}/connect",
    "/sandboxes/{sandbox}/pause",
    "/sandboxes/{sandbox}/resume",
    "/sandboxes/{sandbox}/timeout",
    "/sandboxes/{sandbox}/refreshes",
    "/sandboxes/{sandbox}/snapshots",
    "/sandboxes/{sandbox}/fork",
];

/// The control API.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/sandboxes", get(list::list_old).post(control::create_old))
        .route("/v2/sandboxes", get(list::list).post(control::create))
        .route("/sandboxes/{sandbox}", get(control::get).delete(control::kill))
        .route("/sandboxes/{sandbox}/connect", post(control::connect))
        .route("/v2/sandboxes/{sandbox}/connect", post(control::connect))
        .route("/sandboxes/{sandbox}/pause", post(control::pause))
        .route("/sandboxes/{sandbox}/resume", post(control::resume))
        .route("/sandboxes/{sandbox}/timeout", post(control::set_timeout))
        .route("/sandboxes/{sandbox}/refreshes", post(control::refresh))
        .route("/sandboxes/{sandbox}/metrics", get(control::metrics))
        .route("/sandboxes/{sandbox}/network", put(control::set_network))
        .route("/sandboxes/{sandbox}/snapshots", post(snapshots::create))
        .route("/sandboxes/{sandbox}/fork", post(control::fork))
        .route("/snapshots", get(snapshots::list))
        .route("/templates/{template}", delete(snapshots::remove))
        .route("/templates/aliases/{alias}", get(snapshots::alias))
}

//! What every request's handler has at hand.

use std::ops::Deref;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{AccessTokens, Limits, Passwords};
use crate::config::Config;
use crate::e2b::E2b;
use crate::hosts::Hosts;
use crate::sandboxes::Agents;

/// The parts of a server that its requests share.
#[derive(Clone)]
pub(crate) struct App(Arc<Parts>);

pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) db: PgPool,
    pub(crate) passwords: Passwords,
    pub(crate) access_tokens: AccessTokens,
    pub(crate) limits: Limits,
    pub(crate) hosts: Hosts,
    pub(crate) agents: Agents,
    pub(crate) e2b: E2b,
    /// What goes on when nobody waits for it any more. A server that stops waits for these.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the server is told to stop.
    pub(crate) stopping: CancellationToken,
    /// Where the program has metrics of its own recorded elsewhere, there are none to show.
    pub(crate) metrics: Option<PrometheusHandle>,
}

impl App {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

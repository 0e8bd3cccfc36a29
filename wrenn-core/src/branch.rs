//! Making sandboxes of one that runs.

use std::sync::Arc;
use std::time::Duration;

use wrenn_base::SandboxId;
use wrenn_net::EgressPolicy;

use crate::changes::Changes;
use crate::error::Error;
use crate::lifetime::{Lifetime, OnTimeout};
use crate::sandbox::Sandbox;
use crate::step::blocking;
use crate::template::{self, StagedTemplate, random_ids};

/// Sandboxes that are to begin where a running one is; made by [`Sandbox::brancher`].
#[must_use = "a builder does nothing until `spawn` is awaited"]
pub struct BranchBuilder<'a> {
    parent: &'a Sandbox,
    changes: Changes,
}

impl BranchBuilder<'_> {
    /// Sets a variable in the environment of every command; the parent's others stay.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.changes.env.push((name.into(), value.into()));
        self
    }

    /// Gives each something to be found by; the parent's own stays beside it.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.changes.metadata.insert(key.into(), value.into());
        self
    }

    /// How long each may be idle, and what becomes of it then; as for the parent where not set.
    pub fn timeout(mut self, timeout: Option<Duration>, then: OnTimeout) -> Self {
        self.changes.lifetime = Some(Lifetime::new(timeout, then));
        self
    }

    /// What the guests may reach; what the parent may, where not set.
    pub fn egress(mut self, policy: EgressPolicy) -> Self {
        self.changes.egress = Some(policy);
        self
    }

    /// Makes `count` of them; see [`Sandbox::branch`].
    ///
    /// # Errors
    /// As [`Sandbox::branch`]; and what was asked for cannot be had, which is seen when the parent has been captured.
    ///
    /// # Cancel safety
    /// As [`Sandbox::branch`].
    pub async fn spawn(self, count: usize) -> Result<Vec<Sandbox>, Error> {
        self.spawn_with_ids(random_ids(count)).await
    }

    /// As [`spawn`](Self::spawn), one sandbox for each of `ids`, in their order.
    ///
    /// # Errors
    /// As `spawn`; and an id is named twice, or taken ([`Cause::SandboxExists`](crate::Cause::SandboxExists)): nothing is
    /// touched then.
    ///
    /// # Cancel safety
    /// As `spawn`.
    pub async fn spawn_with_ids(self, ids: Vec<SandboxId>) -> Result<Vec<Sandbox>, Error> {
        let Self { parent, changes } = self;
        parent.host().check_free(&ids)?;
        let held = parent.hold().await;
        let host = Arc::clone(parent.host());
        let staged = blocking(move || StagedTemplate::unnamed(&host)).await?;
        let (capture, staged) = parent.capture_into(held, staged, None).await?;
        template::spawn(parent.host(), capture.stored, &changes, ids, staged).await
    }
}

impl Sandbox {
    /// Begins sandboxes that begin where this one is, and differ from it.
    ///
    /// ```no_run
    /// # async fn example(sandbox: wrenn_core::Sandbox) -> Result<(), wrenn_core::Error> {
    /// let children = sandbox.brancher().metadata("attempt", "2").env("SEED", "7").spawn(3).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn brancher(&self) -> BranchBuilder<'_> {
        BranchBuilder { parent: self, changes: Changes::default() }
    }

    /// Makes `count` running sandboxes that begin where this one is now, while it runs on.
    ///
    /// Each has an id, a network slot, a root disk, a token and randomness of its own. Memory is captured as by
    /// [`snapshot`](Self::snapshot), and shared by the children as long as they do not write to it.
    ///
    /// # Errors
    /// The guest ended, the disk is full, or a child could not be made: then none is, and the sandbox runs on, unless
    /// its guest ended.
    ///
    /// # Cancel safety
    /// A dropped future leaves no child; the sandbox runs on.
    pub async fn branch(&self, count: usize) -> Result<Vec<Sandbox>, Error> {
        self.brancher().spawn(count).await
    }
}

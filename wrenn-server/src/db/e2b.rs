//! What the E2B-compatible routes keep of sandboxes: when they end for good, and whether requests resume them.

use sqlx::PgExecutor;
use time::OffsetDateTime;
use uuid::Uuid;

use super::sandboxes::Sandbox;

/// What is kept of one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Extra {
    pub(crate) sandbox: String,
    pub(crate) version: i64,
    pub(crate) ends_at: Option<OffsetDateTime>,
    pub(crate) auto_resume: bool,
}

/// What is kept of these sandboxes. Of those that other routes made, nothing is.
pub(crate) async fn of(executor: impl PgExecutor<'_>, sandboxes: &[String]) -> sqlx::Result<Vec<Extra>> {
    sqlx::query_as!(
        Extra,
        "SELECT sandbox, version, ends_at, auto_resume FROM e2b_sandboxes WHERE sandbox = ANY($1)",
        sandboxes,
    )
    .fetch_all(executor)
    .await
}

/// Notes when a sandbox ends that is as it was at that version. `auto_resume` stays as it is where it is `None`.
pub(crate) async fn set_end(
    executor: impl PgExecutor<'_>,
    sandbox: &str,
    version: i64,
    ends_at: OffsetDateTime,
    auto_resume: Option<bool>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO e2b_sandboxes (sandbox, version, ends_at, auto_resume) VALUES ($1, $2, $3, coalesce($4, false))
         ON CONFLICT (sandbox) DO UPDATE SET version = $2, ends_at = $3,
            auto_resume = coalesce($4, e2b_sandboxes.auto_resume)",
        sandbox,
        version,
        ends_at,
        auto_resume,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// Forgets when a sandbox ends: another timeout was set since.
pub(crate) async fn forget_end(executor: impl PgExecutor<'_>, sandbox: &str) -> sqlx::Result<()> {
    sqlx::query!("UPDATE e2b_sandboxes SET ends_at = NULL WHERE sandbox = $1", sandbox)
        .execute(executor)
        .await?;
    Ok(())
}

/// A sandbox whose time is over.
#[derive(Debug, Clone)]
pub(crate) struct Due {
    pub(crate) sandbox: String,
    pub(crate) team_id: Uuid,
    pub(crate) on_timeout: String,
}

/// Takes the running sandboxes whose time is over: each is given to one caller, who ends it.
pub(crate) async fn take_due(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Due>> {
    sqlx::query_as!(
        Due,
        "UPDATE e2b_sandboxes e SET ends_at = NULL FROM sandboxes s
         WHERE s.id = e.sandbox AND s.version = e.version AND s.state = 'running' AND e.ends_at <= now()
         RETURNING s.id AS sandbox, s.team_id, s.on_timeout",
    )
    .fetch_all(executor)
    .await
}

/// What a list is narrowed to, and how it is ordered.
#[derive(Debug, Clone)]
pub(crate) struct Filter<'a> {
    pub(crate) states: Vec<String>,
    pub(crate) metadata: &'a serde_json::Value,
    pub(crate) template: Option<&'a str>,
    /// Only those made then or later.
    pub(crate) since: Option<OffsetDateTime>,
    pub(crate) oldest_first: bool,
    /// Only those after this place in the order.
    pub(crate) after: Option<(OffsetDateTime, String)>,
    pub(crate) limit: i64,
}

/// Sandboxes of a team.
pub(crate) async fn list(
    executor: impl PgExecutor<'_>,
    team: Uuid,
    filter: Filter<'_>,
) -> sqlx::Result<Vec<Sandbox>> {
    let (after_at, after_id) = filter.after.unzip();
    sqlx::query_as!(
        Sandbox,
        "SELECT id, team_id, host, state, version, lease_until, reason, template, parent, vcpus, memory_mib, metadata,
                timeout_ms, on_timeout, created_at, changed_at, expires_at
         FROM sandboxes
         WHERE team_id = $1 AND state = ANY($2) AND metadata @> $3
           AND ($4::text IS NULL OR template = $4) AND ($5::timestamptz IS NULL OR created_at >= $5)
           AND ($6::timestamptz IS NULL
                OR CASE WHEN $8 THEN (created_at, id) > ($6, $7) ELSE (created_at, id) < ($6, $7) END)
         ORDER BY CASE WHEN $8 THEN created_at END, CASE WHEN $8 THEN id END, created_at DESC, id DESC LIMIT $9",
        team,
        &filter.states,
        filter.metadata,
        filter.template,
        filter.since,
        after_at,
        after_id,
        filter.oldest_first,
        filter.limit,
    )
    .fetch_all(executor)
    .await
}

/// The ids of the sandboxes, of all teams, whose files a request might be for; in order, after that one.
pub(crate) async fn ids_after(
    executor: impl PgExecutor<'_>,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "SELECT id FROM sandboxes WHERE id > $1 AND state IN ('running', 'pausing', 'paused', 'resuming', 'missing')
         ORDER BY id LIMIT $2",
        after,
        limit,
    )
    .fetch_all(executor)
    .await
}

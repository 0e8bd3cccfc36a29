//! Sandboxes. Every change of state is a compare-and-set: it says which version it saw, and does nothing to another.

use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_base::SandboxId;

use crate::sandboxes::State;

/// A sandbox as the database has it.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) team_id: Uuid,
    pub(crate) host: String,
    pub(crate) state: String,
    pub(crate) version: i64,
    pub(crate) lease_until: Option<OffsetDateTime>,
    pub(crate) reason: Option<String>,
    pub(crate) template: String,
    pub(crate) parent: Option<String>,
    pub(crate) vcpus: i32,
    pub(crate) memory_mib: i32,
    pub(crate) metadata: serde_json::Value,
    pub(crate) timeout_ms: Option<i64>,
    pub(crate) on_timeout: String,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) changed_at: OffsetDateTime,
    pub(crate) expires_at: Option<OffsetDateTime>,
}

impl Sandbox {
    pub(crate) fn state(&self) -> State {
        State::from_stored(&self.state)
    }

    /// Whether whoever works on it is believed dead.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.state().is_leased() && self.lease_until.is_none_or(|until| until < OffsetDateTime::now_utc())
    }

    /// Its id, which the table lets be nothing else.
    pub(crate) fn sandbox_id(&self) -> sqlx::Result<SandboxId> {
        self.id.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
    }
}

/// A query for whole rows: what comes before the columns, and what after.
macro_rules! sandboxes {
    ($before:literal, $after:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Sandbox,
            $before
                + " id, team_id, host, state, version, lease_until, reason, template, parent, vcpus, memory_mib,
                    metadata, timeout_ms, on_timeout, created_at, changed_at, expires_at "
                + $after
            $(, $argument)*
        )
    };
}

/// What a new sandbox is entered with.
#[derive(Debug, Clone)]
pub(crate) struct New<'a> {
    pub(crate) id: &'a SandboxId,
    pub(crate) team: Uuid,
    pub(crate) host: &'a str,
    pub(crate) template: &'a str,
    pub(crate) parent: Option<&'a str>,
    pub(crate) vcpus: i32,
    pub(crate) memory_mib: i32,
    pub(crate) metadata: &'a serde_json::Value,
    pub(crate) timeout_ms: Option<i64>,
    pub(crate) on_timeout: &'a str,
}

/// Enters a sandbox that is about to be made, with a lease for whoever makes it.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    new: &New<'_>,
    lease_seconds: f64,
) -> sqlx::Result<Sandbox> {
    sandboxes!(
        "INSERT INTO sandboxes (id, team_id, host, state, lease_until, template, parent, vcpus, memory_mib, metadata,
                                timeout_ms, on_timeout)
         VALUES ($1, $2, $3, 'creating', now() + make_interval(secs => $4), $5, $6, $7, $8, $9, $10, $11) RETURNING",
        "",
        new.id.as_str(),
        new.team,
        new.host,
        lease_seconds,
        new.template,
        new.parent,
        new.vcpus,
        new.memory_mib,
        new.metadata,
        new.timeout_ms,
        new.on_timeout,
    )
    .fetch_one(connection)
    .await
}

pub(crate) async fn find(
    executor: impl PgExecutor<'_>,
    team: Uuid,
    id: &str,
) -> sqlx::Result<Option<Sandbox>> {
    sandboxes!("SELECT", "FROM sandboxes WHERE id = $1 AND team_id = $2", id, team)
        .fetch_optional(executor)
        .await
}

/// A sandbox of whichever team: for who comes by its name alone, as previews do.
pub(crate) async fn find_any(executor: impl PgExecutor<'_>, id: &str) -> sqlx::Result<Option<Sandbox>> {
    sandboxes!("SELECT", "FROM sandboxes WHERE id = $1", id).fetch_optional(executor).await
}

/// What a list is narrowed to.
#[derive(Debug, Clone)]
pub(crate) struct Filter<'a> {
    pub(crate) states: Vec<String>,
    pub(crate) metadata: &'a serde_json::Value,
    /// Only those after this place in the order.
    pub(crate) after: Option<(OffsetDateTime, String)>,
    pub(crate) limit: i64,
}

/// Sandboxes of a team, the newest first.
pub(crate) async fn list(
    executor: impl PgExecutor<'_>,
    team: Uuid,
    filter: Filter<'_>,
) -> sqlx::Result<Vec<Sandbox>> {
    let (after_at, after_id) = filter.after.unzip();
    sandboxes!(
        "SELECT",
        "FROM sandboxes
         WHERE team_id = $1 AND state = ANY($2) AND metadata @> $3
           AND ($4::timestamptz IS NULL OR (created_at, id) < ($4, $5))
         ORDER BY created_at DESC, id DESC LIMIT $6",
        team,
        &filter.states,
        filter.metadata,
        after_at,
        after_id,
        filter.limit,
    )
    .fetch_all(executor)
    .await
}

/// All sandboxes of a host that are not known to be gone from it.
pub(crate) async fn of_host(executor: impl PgExecutor<'_>, host: &str) -> sqlx::Result<Vec<Sandbox>> {
    sandboxes!("SELECT", "FROM sandboxes WHERE host = $1 AND NOT cleared ORDER BY id", host)
        .fetch_all(executor)
        .await
}

/// Takes a sandbox from one of these states into one that is leased. `None` if it is in another.
pub(crate) async fn begin(
    executor: impl PgExecutor<'_>,
    team: Uuid,
    id: &str,
    from: &[State],
    into: State,
    lease_seconds: f64,
) -> sqlx::Result<Option<Sandbox>> {
    let from: Vec<String> = from.iter().map(|state| state.as_str().to_owned()).collect();
    sandboxes!(
        "UPDATE sandboxes SET state = $4, version = version + 1, changed_at = now(), reason = NULL,
                lease_until = now() + make_interval(secs => $5)
         WHERE id = $1 AND team_id = $2 AND state = ANY($3) RETURNING",
        "",
        id,
        team,
        &from,
        into.as_str(),
        lease_seconds,
    )
    .fetch_optional(executor)
    .await
}

/// Prolongs the lease of whoever holds that version; whether they still do.
pub(crate) async fn renew(
    executor: impl PgExecutor<'_>,
    id: &str,
    version: i64,
    lease_seconds: f64,
) -> sqlx::Result<bool> {
    let renewed = sqlx::query!(
        "UPDATE sandboxes SET lease_until = now() + make_interval(secs => $3) WHERE id = $1 AND version = $2",
        id,
        version,
        lease_seconds,
    )
    .execute(executor)
    .await?;
    Ok(renewed.rows_affected() > 0)
}

/// Moves a sandbox that is about to be made, and that nobody changed since that version, to another host. `None` if somebody
/// did.
pub(crate) async fn place(
    executor: impl PgExecutor<'_>,
    id: &str,
    version: i64,
    host: &str,
    lease_seconds: f64,
) -> sqlx::Result<Option<Sandbox>> {
    sandboxes!(
        "UPDATE sandboxes SET host = $3, version = version + 1, lease_until = now() + make_interval(secs => $4)
         WHERE id = $1 AND version = $2 AND state = 'creating' RETURNING",
        "",
        id,
        version,
        host,
        lease_seconds,
    )
    .fetch_optional(executor)
    .await
}

/// What a sandbox has become.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Settled {
    pub(crate) reason: Option<String>,
    pub(crate) vcpus: Option<i32>,
    pub(crate) memory_mib: Option<i32>,
    pub(crate) expires_at: Option<OffsetDateTime>,
}

/// Sets the state of a sandbox that nobody changed since that version. `None` if somebody did.
pub(crate) async fn settle(
    executor: impl PgExecutor<'_>,
    id: &str,
    version: i64,
    state: State,
    settled: &Settled,
) -> sqlx::Result<Option<Sandbox>> {
    sandboxes!(
        "UPDATE sandboxes SET state = $3, version = version + 1, changed_at = now(), lease_until = NULL, reason = $4,
                vcpus = coalesce($5, vcpus), memory_mib = coalesce($6, memory_mib), expires_at = $7
         WHERE id = $1 AND version = $2 RETURNING",
        "",
        id,
        version,
        state.as_str(),
        settled.reason,
        settled.vcpus,
        settled.memory_mib,
        settled.expires_at,
    )
    .fetch_optional(executor)
    .await
}

/// Notes what a sandbox's timeout is, and when it is over. Its state stays as it is.
pub(crate) async fn set_timeout(
    executor: impl PgExecutor<'_>,
    id: &str,
    timeout_ms: Option<i64>,
    on_timeout: &str,
    expires_at: Option<OffsetDateTime>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE sandboxes SET timeout_ms = $2, on_timeout = $3, expires_at = $4 WHERE id = $1",
        id,
        timeout_ms,
        on_timeout,
        expires_at,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// Notes when running sandboxes expire, as their host says.
pub(crate) async fn note_expiry(
    executor: impl PgExecutor<'_>,
    ids: &[String],
    expiries: &[Option<OffsetDateTime>],
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE sandboxes s SET expires_at = n.at
         FROM unnest($1::text[], $2::timestamptz[]) AS n (id, at)
         WHERE s.id = n.id AND s.state = 'running' AND s.expires_at IS DISTINCT FROM n.at",
        ids,
        expiries as _,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// Makes missing what is believed to be on a host that does not answer. What a task works on stays that task's.
pub(crate) async fn miss(executor: impl PgExecutor<'_>, host: &str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "UPDATE sandboxes SET state = 'missing', version = version + 1, changed_at = now(), lease_until = NULL,
                reason = 'its host does not answer'
         WHERE host = $1 AND (state IN ('running', 'paused')
            OR (state IN ('creating', 'pausing', 'resuming', 'destroying') AND lease_until < now()))
         RETURNING id",
        host,
    )
    .fetch_all(executor)
    .await
}

/// Notes that the host was seen without sandboxes that are over.
pub(crate) async fn clear(executor: impl PgExecutor<'_>, ids: &[String]) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE sandboxes SET cleared = true WHERE id = ANY($1) AND state IN ('destroyed', 'failed')",
        ids,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// Forgets sandboxes that have been over for a week.
pub(crate) async fn forget_old(executor: impl PgExecutor<'_>) -> sqlx::Result<u64> {
    let gone = sqlx::query!("DELETE FROM sandboxes WHERE cleared AND changed_at < now() - interval '7 days'")
        .execute(executor)
        .await?;
    Ok(gone.rows_affected())
}

/// How many sandboxes there are in each state.
pub(crate) async fn count(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(
        r#"SELECT state, count(*) AS "count!" FROM sandboxes WHERE state NOT IN ('destroyed', 'failed') GROUP BY state"#
    )
    .fetch_all(executor)
    .await?;
    Ok(rows.into_iter().map(|row| (row.state, row.count)).collect())
}

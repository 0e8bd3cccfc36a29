//! Snapshots: templates that teams made of their sandboxes.

use sqlx::PgExecutor;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) id: Uuid,
    pub(crate) host: String,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) lease_until: Option<OffsetDateTime>,
    pub(crate) sandbox: String,
    pub(crate) vcpus: i32,
    pub(crate) memory_mib: i32,
    pub(crate) size_bytes: i64,
    pub(crate) created_at: OffsetDateTime,
}

/// A query for whole rows: what comes before the columns, and what after.
macro_rules! snapshots {
    ($before:literal, $after:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Snapshot,
            $before
                + " id, host, name, state, lease_until, sandbox, vcpus, memory_mib, size_bytes, created_at "
                + $after
            $(, $argument)*
        )
    };
}

/// Enters a snapshot that is about to be made. `None` if the team has one of that name.
pub(crate) async fn insert(
    executor: impl PgExecutor<'_>,
    id: Uuid,
    source: &super::sandboxes::Sandbox,
    name: &str,
    lease_seconds: f64,
) -> sqlx::Result<Option<Snapshot>> {
    snapshots!(
        "INSERT INTO snapshots (id, team_id, host, name, state, lease_until, sandbox, vcpus, memory_mib)
         VALUES ($1, $2, $3, $4, 'creating', now() + make_interval(secs => $5), $6, $7, $8)
         ON CONFLICT (team_id, name) WHERE state <> 'failed' DO NOTHING RETURNING",
        "",
        id,
        source.team_id,
        source.host,
        name,
        lease_seconds,
        source.id,
        source.vcpus,
        source.memory_mib,
    )
    .fetch_optional(executor)
    .await
}

/// The snapshots of a team that are there, by name.
pub(crate) async fn of_team(
    executor: impl PgExecutor<'_>,
    team: Uuid,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<Snapshot>> {
    snapshots!(
        "SELECT",
        "FROM snapshots WHERE team_id = $1 AND state <> 'failed' AND name > $2 ORDER BY name LIMIT $3",
        team,
        after,
        limit,
    )
    .fetch_all(executor)
    .await
}

/// A snapshot of a team by its name.
pub(crate) async fn find(
    executor: impl PgExecutor<'_>,
    team: Uuid,
    name: &str,
) -> sqlx::Result<Option<Snapshot>> {
    snapshots!("SELECT", "FROM snapshots WHERE team_id = $1 AND name = $2 AND state <> 'failed'", team, name)
        .fetch_optional(executor)
        .await
}

/// Sets the state of a snapshot that is in another, and its size where that is known now; whether it was in that one.
pub(crate) async fn set_state(
    executor: impl PgExecutor<'_>,
    id: Uuid,
    from: &str,
    into: &str,
    size_bytes: Option<i64>,
) -> sqlx::Result<bool> {
    let set = sqlx::query!(
        "UPDATE snapshots SET state = $3, size_bytes = coalesce($4, size_bytes),
                lease_until = CASE WHEN $3 = 'deleting' THEN now() + interval '60 seconds' END
         WHERE id = $1 AND state = $2",
        id,
        from,
        into,
        size_bytes,
    )
    .execute(executor)
    .await?;
    Ok(set.rows_affected() > 0)
}

pub(crate) async fn renew(executor: impl PgExecutor<'_>, id: Uuid, lease_seconds: f64) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE snapshots SET lease_until = now() + make_interval(secs => $2) WHERE id = $1 AND state = 'creating'",
        id,
        lease_seconds,
    )
    .execute(executor)
    .await?;
    Ok(())
}

pub(crate) async fn remove(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM snapshots WHERE id = $1", id).execute(executor).await?;
    Ok(())
}

/// All snapshots that a host has, or is to have, or has no more.
pub(crate) async fn of_host(executor: impl PgExecutor<'_>, host: &str) -> sqlx::Result<Vec<Snapshot>> {
    snapshots!("SELECT", "FROM snapshots WHERE host = $1", host).fetch_all(executor).await
}

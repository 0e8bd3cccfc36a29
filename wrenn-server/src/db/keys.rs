//! API keys.

use sqlx::PgExecutor;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) prefix: String,
    pub(crate) created_by: Option<Uuid>,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) last_used_at: Option<OffsetDateTime>,
}

pub(crate) async fn create(
    executor: impl PgExecutor<'_>,
    team: Uuid,
    name: &str,
    prefix: &str,
    key_hash: &[u8; 32],
    created_by: Uuid,
) -> sqlx::Result<Key> {
    sqlx::query_as!(
        Key,
        "INSERT INTO api_keys (id, team_id, name, prefix, key_hash, created_by) VALUES ($1, $2, $3, $4, $5, $6)
         RETURNING id, name, prefix, created_by, created_at, last_used_at",
        Uuid::now_v7(),
        team,
        name,
        prefix,
        key_hash.as_slice(),
        created_by,
    )
    .fetch_one(executor)
    .await
}

/// The keys of a team that are not revoked.
pub(crate) async fn of_team(executor: impl PgExecutor<'_>, team: Uuid) -> sqlx::Result<Vec<Key>> {
    sqlx::query_as!(
        Key,
        "SELECT id, name, prefix, created_by, created_at, last_used_at FROM api_keys
         WHERE team_id = $1 AND revoked_at IS NULL ORDER BY created_at, id",
        team,
    )
    .fetch_all(executor)
    .await
}

/// Whether there was such a key to revoke.
pub(crate) async fn revoke(executor: impl PgExecutor<'_>, team: Uuid, key: Uuid) -> sqlx::Result<bool> {
    let revoked = sqlx::query!(
        "UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND team_id = $2 AND revoked_at IS NULL",
        key,
        team,
    )
    .execute(executor)
    .await?;
    Ok(revoked.rows_affected() > 0)
}

/// A key that was shown, if it is good: its id, its team, and whether its last use is to be noted.
pub(crate) async fn look_up(
    executor: impl PgExecutor<'_>,
    key_hash: &[u8; 32],
) -> sqlx::Result<Option<(Uuid, Uuid, bool)>> {
    let row = sqlx::query!(
        r#"SELECT id, team_id, (last_used_at IS NULL OR last_used_at < now() - interval '1 minute') AS "stale!"
           FROM api_keys WHERE key_hash = $1 AND revoked_at IS NULL"#,
        key_hash.as_slice(),
    )
    .fetch_optional(executor)
    .await?;
    Ok(row.map(|row| (row.id, row.team_id, row.stale)))
}

/// Notes that a key was used. To the minute, so that a busy key costs no write per request.
pub(crate) async fn note_use(executor: impl PgExecutor<'_>, key: Uuid) -> sqlx::Result<()> {
    sqlx::query!("UPDATE api_keys SET last_used_at = now() WHERE id = $1", key).execute(executor).await?;
    Ok(())
}

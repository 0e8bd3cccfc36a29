//! What requests with an `Idempotency-Key` made.

use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is new, and now stands for the resource.
    New,
    /// The same request made this before.
    Made(String),
    /// Another request came with it.
    Other,
}

/// Lets a key stand for what a request is about to make, in the transaction that enters it. Of two that come with one key
/// at the same time the second waits for the first one's transaction.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    team: Uuid,
    key: &str,
    request_hash: &[u8; 32],
    resource: &str,
) -> sqlx::Result<Claim> {
    let new = sqlx::query!(
        "INSERT INTO idempotency_keys (team_id, key, request_hash, resource) VALUES ($1, $2, $3, $4)
         ON CONFLICT (team_id, key) DO NOTHING",
        team,
        key,
        request_hash.as_slice(),
        resource,
    )
    .execute(&mut *connection)
    .await?;
    if new.rows_affected() > 0 {
        return Ok(Claim::New);
    }
    let known = sqlx::query!(
        "SELECT request_hash, resource FROM idempotency_keys WHERE team_id = $1 AND key = $2",
        team,
        key,
    )
    .fetch_one(connection)
    .await?;
    Ok(if known.request_hash == request_hash { Claim::Made(known.resource) } else { Claim::Other })
}

/// Lets the key of a request that made nothing stand for nothing, so that it can be tried again.
pub(crate) async fn release(executor: impl PgExecutor<'_>, team: Uuid, resource: &str) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM idempotency_keys WHERE team_id = $1 AND resource = $2", team, resource)
        .execute(executor)
        .await?;
    Ok(())
}

/// Forgets keys that are older than a day.
pub(crate) async fn forget_old(executor: impl PgExecutor<'_>) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM idempotency_keys WHERE created_at < now() - interval '1 day'")
        .execute(executor)
        .await?;
    Ok(())
}

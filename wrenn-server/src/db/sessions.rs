//! Sessions and their refresh tokens.

use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

/// What showing a refresh token came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refreshed {
    /// It was good, and its successor is in place.
    Rotated { session: Uuid, user: Uuid },
    /// It had been used before: someone else has it too, so its session is over.
    Reused { user: Uuid },
    /// Nothing is known of it, or its session is over.
    Refused,
}

/// A user with a session that goes on.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) operator: bool,
    /// The team that was asked for, or else the user's first.
    pub(crate) team: Option<Uuid>,
    pub(crate) role: Option<String>,
}

/// Begins a session with its first refresh token.
pub(crate) async fn begin(
    pool: &PgPool,
    user: Uuid,
    token_hash: &[u8; 32],
    expires_at: OffsetDateTime,
) -> sqlx::Result<Uuid> {
    let session = Uuid::now_v7();
    let mut transaction = pool.begin().await?;
    sqlx::query!(
        "INSERT INTO sessions (id, user_id, expires_at) VALUES ($1, $2, $3)",
        session,
        user,
        expires_at
    )
    .execute(&mut *transaction)
    .await?;
    add_token(&mut transaction, session, token_hash).await?;
    transaction.commit().await?;
    Ok(session)
}

async fn add_token(connection: &mut PgConnection, session: Uuid, token_hash: &[u8; 32]) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO refresh_tokens (token_hash, session_id) VALUES ($1, $2)",
        token_hash.as_slice(),
        session,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Trades a refresh token for its successor.
pub(crate) async fn rotate(
    pool: &PgPool,
    shown: &[u8; 32],
    successor: &[u8; 32],
    expires_at: OffsetDateTime,
) -> sqlx::Result<Refreshed> {
    let mut transaction = pool.begin().await?;
    // The row's lock decides between two who show the same token at the same time.
    let token = sqlx::query!(
        r#"SELECT t.session_id, t.used_at, s.user_id,
                  (s.revoked_at IS NULL AND s.expires_at > now()) AS "goes_on!"
           FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id
           WHERE t.token_hash = $1 FOR UPDATE"#,
        shown.as_slice(),
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(token) = token.filter(|token| token.goes_on) else { return Ok(Refreshed::Refused) };
    if token.used_at.is_some() {
        sqlx::query!("UPDATE sessions SET revoked_at = now() WHERE id = $1", token.session_id)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        return Ok(Refreshed::Reused { user: token.user_id });
    }
    sqlx::query!("UPDATE refresh_tokens SET used_at = now() WHERE token_hash = $1", shown.as_slice())
        .execute(&mut *transaction)
        .await?;
    sqlx::query!("UPDATE sessions SET expires_at = $2 WHERE id = $1", token.session_id, expires_at)
        .execute(&mut *transaction)
        .await?;
    add_token(&mut transaction, token.session_id, successor).await?;
    transaction.commit().await?;
    Ok(Refreshed::Rotated { session: token.session_id, user: token.user_id })
}

pub(crate) async fn revoke(executor: impl PgExecutor<'_>, session: Uuid) -> sqlx::Result<()> {
    sqlx::query!("UPDATE sessions SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL", session)
        .execute(executor)
        .await?;
    Ok(())
}

/// The user of a session that goes on, with their place in a team: in `team`, or else in the one they are in longest.
pub(crate) async fn live(
    executor: impl PgExecutor<'_>,
    session: Uuid,
    user: Uuid,
    team: Option<Uuid>,
) -> sqlx::Result<Option<Live>> {
    sqlx::query_as!(
        Live,
        r#"SELECT u.operator, m.team_id AS "team?", m.role AS "role?"
           FROM sessions s JOIN users u ON u.id = s.user_id
           LEFT JOIN LATERAL (
               SELECT team_id, role FROM memberships
               WHERE user_id = s.user_id AND ($3::uuid IS NULL OR team_id = $3) ORDER BY created_at, team_id LIMIT 1
           ) m ON true
           WHERE s.id = $1 AND s.user_id = $2 AND s.revoked_at IS NULL AND s.expires_at > now()"#,
        session,
        user,
        team,
    )
    .fetch_optional(executor)
    .await
}

/// Forgets sessions that ended a while ago; until then a reused token is still noticed.
pub(crate) async fn forget_old(executor: impl PgExecutor<'_>) -> sqlx::Result<u64> {
    let gone = sqlx::query!(
        "DELETE FROM sessions WHERE expires_at < now() - interval '7 days'
            OR revoked_at < now() - interval '7 days'"
    )
    .execute(executor)
    .await?;
    Ok(gone.rows_affected())
}

//! Users.

use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

/// A user as others see them.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) id: Uuid,
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) operator: bool,
    pub(crate) created_at: OffsetDateTime,
}

/// Makes a user with a team of their own, both or neither. `None` when the address is taken.
pub(crate) async fn create(
    pool: &PgPool,
    email: &str,
    name: &str,
    password_hash: &str,
    operator: bool,
) -> sqlx::Result<Option<(Uuid, Uuid)>> {
    let mut transaction = pool.begin().await?;
    let user = Uuid::now_v7();
    let made = sqlx::query!(
        "INSERT INTO users (id, email, name, password_hash, operator) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (email) DO NOTHING",
        user,
        email,
        name,
        password_hash,
        operator,
    )
    .execute(&mut *transaction)
    .await?;
    if made.rows_affected() == 0 {
        return Ok(None);
    }
    let team = super::teams::create(&mut transaction, &team_name(name, email), user).await?;
    transaction.commit().await?;
    Ok(Some((user, team)))
}

fn team_name(name: &str, email: &str) -> String {
    let whose = if name.is_empty() { email.split('@').next().unwrap_or(email) } else { name };
    format!("{whose}'s team").chars().take(100).collect()
}

pub(crate) async fn find(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<User>> {
    sqlx::query_as!(User, "SELECT id, email, name, operator, created_at FROM users WHERE id = $1", id)
        .fetch_optional(executor)
        .await
}

/// The id and the password's hash of who has the address.
pub(crate) async fn password_of(
    executor: impl PgExecutor<'_>,
    email: &str,
) -> sqlx::Result<Option<(Uuid, String)>> {
    let row = sqlx::query!("SELECT id, password_hash FROM users WHERE email = $1", email)
        .fetch_optional(executor)
        .await?;
    Ok(row.map(|row| (row.id, row.password_hash)))
}

pub(crate) async fn password_of_id(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("SELECT password_hash FROM users WHERE id = $1", id).fetch_optional(executor).await
}

/// Changes the password and ends every session of the user but one.
pub(crate) async fn set_password(
    pool: &PgPool,
    id: Uuid,
    password_hash: &str,
    but_session: Uuid,
) -> sqlx::Result<()> {
    let mut transaction = pool.begin().await?;
    sqlx::query!("UPDATE users SET password_hash = $2 WHERE id = $1", id, password_hash)
        .execute(&mut *transaction)
        .await?;
    sqlx::query!(
        "UPDATE sessions SET revoked_at = now() WHERE user_id = $1 AND id <> $2 AND revoked_at IS NULL",
        id,
        but_session,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

//! The audit log: who did what.

use sqlx::PgExecutor;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) id: i64,
    pub(crate) at: OffsetDateTime,
    pub(crate) actor: String,
    pub(crate) action: String,
    pub(crate) subject: String,
    pub(crate) detail: serde_json::Value,
}

pub(crate) async fn record(
    executor: impl PgExecutor<'_>,
    team: Option<Uuid>,
    actor: &str,
    action: &str,
    subject: &str,
    detail: &serde_json::Value,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO audit_log (team_id, actor, action, subject, detail) VALUES ($1, $2, $3, $4, $5)",
        team,
        actor,
        action,
        subject,
        detail,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// What a team's members did, the latest first, before the entry with the id `before`.
pub(crate) async fn of_team(
    executor: impl PgExecutor<'_>,
    team: Uuid,
    before: i64,
    limit: i64,
) -> sqlx::Result<Vec<Entry>> {
    sqlx::query_as!(
        Entry,
        "SELECT id, at, actor, action, subject, detail FROM audit_log
         WHERE team_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
        team,
        before,
        limit,
    )
    .fetch_all(executor)
    .await
}

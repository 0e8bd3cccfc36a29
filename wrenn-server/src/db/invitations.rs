//! Invitations to teams.

use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::auth::Role;

#[derive(Debug, Clone)]
pub(crate) struct Invitation {
    pub(crate) id: Uuid,
    pub(crate) role: String,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) expires_at: OffsetDateTime,
}

pub(crate) async fn create(
    executor: impl PgExecutor<'_>,
    team: Uuid,
    role: Role,
    code_hash: &[u8; 32],
    created_by: Uuid,
) -> sqlx::Result<Invitation> {
    sqlx::query_as!(
        Invitation,
        "INSERT INTO invitations (id, team_id, role, code_hash, created_by, expires_at)
         VALUES ($1, $2, $3, $4, $5, now() + interval '7 days') RETURNING id, role, created_at, expires_at",
        Uuid::now_v7(),
        team,
        role.as_str(),
        code_hash.as_slice(),
        created_by,
    )
    .fetch_one(executor)
    .await
}

/// The invitations of a team that can still be accepted.
pub(crate) async fn of_team(executor: impl PgExecutor<'_>, team: Uuid) -> sqlx::Result<Vec<Invitation>> {
    sqlx::query_as!(
        Invitation,
        "SELECT id, role, created_at, expires_at FROM invitations
         WHERE team_id = $1 AND accepted_at IS NULL AND expires_at > now() ORDER BY created_at, id",
        team,
    )
    .fetch_all(executor)
    .await
}

pub(crate) async fn withdraw(
    executor: impl PgExecutor<'_>,
    team: Uuid,
    invitation: Uuid,
) -> sqlx::Result<bool> {
    let gone = sqlx::query!(
        "DELETE FROM invitations WHERE id = $1 AND team_id = $2 AND accepted_at IS NULL",
        invitation,
        team,
    )
    .execute(executor)
    .await?;
    Ok(gone.rows_affected() > 0)
}

/// Makes the user a member of the team that the code is for, and uses the code up. The team, unless the code is no good.
pub(crate) async fn accept(pool: &PgPool, code_hash: &[u8; 32], user: Uuid) -> sqlx::Result<Option<Uuid>> {
    let mut transaction = pool.begin().await?;
    let invitation = sqlx::query!(
        "UPDATE invitations SET accepted_at = now()
         WHERE code_hash = $1 AND accepted_at IS NULL AND expires_at > now() RETURNING team_id, role",
        code_hash.as_slice(),
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(invitation) = invitation else { return Ok(None) };
    let role = Role::from_stored(&invitation.role);
    super::teams::join(&mut *transaction, invitation.team_id, user, role).await?;
    transaction.commit().await?;
    Ok(Some(invitation.team_id))
}

//! Teams and who is in them.

use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::auth::Role;

#[derive(Debug, Clone)]
pub(crate) struct Team {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    /// The role of who asked.
    pub(crate) role: String,
    pub(crate) created_at: OffsetDateTime,
}

#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) user_id: Uuid,
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) created_at: OffsetDateTime,
}

/// What became of a change to a team's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    Done,
    NoSuchMember,
    /// A team without an owner could never be changed again.
    LastOwner,
}

/// Makes a team with its owner.
pub(crate) async fn create(connection: &mut PgConnection, name: &str, owner: Uuid) -> sqlx::Result<Uuid> {
    let team = Uuid::now_v7();
    sqlx::query!("INSERT INTO teams (id, name) VALUES ($1, $2)", team, name)
        .execute(&mut *connection)
        .await?;
    join(connection, team, owner, Role::Owner).await?;
    Ok(team)
}

/// Makes a user a member; who is one already stays as they are.
pub(crate) async fn join(
    executor: impl PgExecutor<'_>,
    team: Uuid,
    user: Uuid,
    role: Role,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO memberships (team_id, user_id, role) VALUES ($1, $2, $3)
         ON CONFLICT (team_id, user_id) DO NOTHING",
        team,
        user,
        role.as_str(),
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// The teams of a user, the oldest membership first.
pub(crate) async fn of_user(executor: impl PgExecutor<'_>, user: Uuid) -> sqlx::Result<Vec<Team>> {
    sqlx::query_as!(
        Team,
        "SELECT t.id, t.name, m.role, t.created_at FROM teams t JOIN memberships m ON m.team_id = t.id
         WHERE m.user_id = $1 ORDER BY m.created_at, t.id",
        user,
    )
    .fetch_all(executor)
    .await
}

pub(crate) async fn find(
    executor: impl PgExecutor<'_>,
    team: Uuid,
) -> sqlx::Result<Option<(String, OffsetDateTime)>> {
    let row = sqlx::query!("SELECT name, created_at FROM teams WHERE id = $1", team)
        .fetch_optional(executor)
        .await?;
    Ok(row.map(|row| (row.name, row.created_at)))
}

pub(crate) async fn rename(executor: impl PgExecutor<'_>, team: Uuid, name: &str) -> sqlx::Result<()> {
    sqlx::query!("UPDATE teams SET name = $2 WHERE id = $1", team, name).execute(executor).await?;
    Ok(())
}

pub(crate) async fn members(executor: impl PgExecutor<'_>, team: Uuid) -> sqlx::Result<Vec<Member>> {
    sqlx::query_as!(
        Member,
        "SELECT m.user_id, u.email, u.name, m.role, m.created_at FROM memberships m JOIN users u ON u.id = m.user_id
         WHERE m.team_id = $1 ORDER BY m.created_at, m.user_id",
        team,
    )
    .fetch_all(executor)
    .await
}

/// Gives a member another role, or with `None` takes them out.
pub(crate) async fn change_member(
    pool: &PgPool,
    team: Uuid,
    user: Uuid,
    role: Option<Role>,
) -> sqlx::Result<Changed> {
    let mut transaction = pool.begin().await?;
    // Locked, so that two owners who remove each other do not both succeed.
    let owners = sqlx::query_scalar!(
        "SELECT user_id FROM memberships WHERE team_id = $1 AND role = 'owner' ORDER BY user_id FOR UPDATE",
        team,
    )
    .fetch_all(&mut *transaction)
    .await?;
    if owners == [user] && role != Some(Role::Owner) {
        return Ok(Changed::LastOwner);
    }
    let changed = match role {
        Some(role) => {
            sqlx::query!(
                "UPDATE memberships SET role = $3 WHERE team_id = $1 AND user_id = $2",
                team,
                user,
                role.as_str()
            )
            .execute(&mut *transaction)
            .await?
        }
        None => {
            sqlx::query!("DELETE FROM memberships WHERE team_id = $1 AND user_id = $2", team, user)
                .execute(&mut *transaction)
                .await?
        }
    };
    transaction.commit().await?;
    Ok(if changed.rows_affected() == 0 { Changed::NoSuchMember } else { Changed::Done })
}

//! Teams, their members, and invitations to them.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::api::extract::{Json, Path};
use crate::api::{Code, Error};
use crate::app::App;
use crate::auth::{self, OfTeam, Role, SecretText, Session};
use crate::db;
use crate::db::teams::Changed;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, rename))
        .routes(routes!(members))
        .routes(routes!(change_member, remove_member))
        .routes(routes!(invitations, invite))
        .routes(routes!(withdraw))
        .routes(routes!(accept))
}

#[derive(Serialize, ToSchema)]
pub(super) struct Team {
    id: Uuid,
    name: String,
    /// What the caller may do in it.
    role: Role,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<db::teams::Team> for Team {
    fn from(team: db::teams::Team) -> Self {
        let db::teams::Team { id, name, role, created_at } = team;
        Self { id, name, role: Role::from_stored(&role), created_at }
    }
}

#[derive(Serialize, ToSchema)]
struct TeamList {
    teams: Vec<Team>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TeamName {
    #[schema(
        min_length = 1,
        max_length = 100,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    name: String,
}

#[derive(Serialize, ToSchema)]
struct TeamMember {
    user_id: Uuid,
    email: String,
    name: String,
    role: Role,
    #[serde(with = "time::serde::rfc3339")]
    joined_at: OffsetDateTime,
}

#[derive(Serialize, ToSchema)]
struct MemberList {
    members: Vec<TeamMember>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRole {
    role: Role,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewInvitation {
    role: Invited,
}

/// Nobody is invited as an owner.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Invited {
    Member,
    Admin,
}

#[derive(Serialize, ToSchema)]
struct Invitation {
    id: Uuid,
    role: Role,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
    /// Lets whoever has it join, once. Shown here and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
}

impl Invitation {
    fn with_code(stored: db::invitations::Invitation, code: Option<String>) -> Self {
        let db::invitations::Invitation { id, role, created_at, expires_at } = stored;
        Self { id, role: Role::from_stored(&role), created_at, expires_at, code }
    }
}

#[derive(Serialize, ToSchema)]
struct InvitationList {
    invitations: Vec<Invitation>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct InvitationCode {
    #[schema(example = "wri_…")]
    code: String,
}

/// The teams of the user who asks
#[utoipa::path(get, path = "/v1/teams", tag = "teams", responses((status = OK, body = TeamList)))]
async fn list(State(app): State<App>, session: Session) -> Result<Reply<TeamList>, Error> {
    let teams = db::teams::of_user(&app.db, session.user).await?;
    Ok(Reply(TeamList { teams: teams.into_iter().map(Team::from).collect() }))
}

/// Make a team
#[utoipa::path(post, path = "/v1/teams", tag = "teams", request_body = TeamName,
    responses((status = CREATED, body = Team)))]
async fn create(
    State(app): State<App>,
    session: Session,
    Json(new): Json<TeamName>,
) -> Result<(StatusCode, Reply<Team>), Error> {
    let name = checked_name(&new.name)?;
    let mut transaction = app.db.begin().await?;
    let id = db::teams::create(&mut transaction, &name, session.user).await?;
    let (actor, detail) = (format!("user:{}", session.user), serde_json::json!({ "name": name }));
    db::audit::record(&mut *transaction, Some(id), &actor, "team.create", &id.to_string(), &detail).await?;
    transaction.commit().await?;
    let created_at = OffsetDateTime::now_utc();
    Ok((StatusCode::CREATED, Reply(Team { id, name, role: Role::Owner, created_at })))
}

/// One team
#[utoipa::path(get, path = "/v1/teams/{team}", tag = "teams", params(("team" = Uuid, Path)),
    responses((status = OK, body = Team)))]
async fn get(State(app): State<App>, OfTeam(member): OfTeam) -> Result<Reply<Team>, Error> {
    let found = db::teams::find(&app.db, member.team).await?;
    let (name, created_at) = found.ok_or_else(|| Code::NotFound.because("there is no such team"))?;
    Ok(Reply(Team { id: member.team, name, role: member.role, created_at }))
}

/// Rename a team
#[utoipa::path(patch, path = "/v1/teams/{team}", tag = "teams", params(("team" = Uuid, Path)),
    request_body = TeamName, responses((status = OK, body = Team)))]
async fn rename(
    State(app): State<App>,
    OfTeam(member): OfTeam,
    Json(new): Json<TeamName>,
) -> Result<Reply<Team>, Error> {
    member.needs(Role::Admin)?;
    let name = checked_name(&new.name)?;
    db::teams::rename(&app.db, member.team, &name).await?;
    super::record(
        &app,
        &member,
        "team.rename",
        &member.team.to_string(),
        serde_json::json!({ "name": name }),
    )
    .await?;
    get(State(app), OfTeam(member)).await
}

/// The members of a team
#[utoipa::path(get, path = "/v1/teams/{team}/members", tag = "teams", params(("team" = Uuid, Path)),
    responses((status = OK, body = MemberList)))]
async fn members(State(app): State<App>, OfTeam(member): OfTeam) -> Result<Reply<MemberList>, Error> {
    let members = db::teams::members(&app.db, member.team).await?;
    let members = members.into_iter().map(|member| TeamMember {
        user_id: member.user_id,
        email: member.email,
        name: member.name,
        role: Role::from_stored(&member.role),
        joined_at: member.created_at,
    });
    Ok(Reply(MemberList { members: members.collect() }))
}

/// Give a member another role
#[utoipa::path(patch, path = "/v1/teams/{team}/members/{user}", tag = "teams",
    params(("team" = Uuid, Path), ("user" = Uuid, Path)), request_body = NewRole, responses((status = NO_CONTENT)))]
async fn change_member(
    State(app): State<App>,
    OfTeam(member): OfTeam,
    Path((_, user)): Path<(Uuid, Uuid)>,
    Json(new): Json<NewRole>,
) -> Result<StatusCode, Error> {
    member.needs(Role::Owner)?;
    changed(db::teams::change_member(&app.db, member.team, user, Some(new.role)).await?)?;
    let detail = serde_json::json!({ "role": new.role });
    super::record(&app, &member, "member.role", &user.to_string(), detail).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Take a member out, or leave
#[utoipa::path(delete, path = "/v1/teams/{team}/members/{user}", tag = "teams",
    params(("team" = Uuid, Path), ("user" = Uuid, Path)), responses((status = NO_CONTENT)))]
async fn remove_member(
    State(app): State<App>,
    OfTeam(member): OfTeam,
    Path((_, user)): Path<(Uuid, Uuid)>,
) -> Result<StatusCode, Error> {
    if member.user() != Some(user) {
        member.needs(Role::Admin)?;
        let others = db::teams::members(&app.db, member.team).await?;
        let owner = others.iter().any(|other| other.user_id == user && other.role == Role::Owner.as_str());
        if owner {
            member.needs(Role::Owner)?;
        }
    }
    changed(db::teams::change_member(&app.db, member.team, user, None).await?)?;
    super::record(&app, &member, "member.remove", &user.to_string(), serde_json::json!({})).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn changed(outcome: Changed) -> Result<(), Error> {
    match outcome {
        Changed::Done => Ok(()),
        Changed::NoSuchMember => Err(Code::NotFound.because("there is no such member")),
        Changed::LastOwner => Err(Code::Conflict.because("the last owner of a team stays its owner")),
    }
}

/// The invitations that nobody accepted yet
#[utoipa::path(get, path = "/v1/teams/{team}/invitations", tag = "teams", params(("team" = Uuid, Path)),
    responses((status = OK, body = InvitationList)))]
async fn invitations(State(app): State<App>, OfTeam(member): OfTeam) -> Result<Reply<InvitationList>, Error> {
    member.needs(Role::Admin)?;
    let invitations = db::invitations::of_team(&app.db, member.team).await?;
    let invitations = invitations.into_iter().map(|one| Invitation::with_code(one, None)).collect();
    Ok(Reply(InvitationList { invitations }))
}

/// Make a code that lets whoever has it join the team, once, for a week
#[utoipa::path(post, path = "/v1/teams/{team}/invitations", tag = "teams", params(("team" = Uuid, Path)),
    request_body = NewInvitation, responses((status = CREATED, body = Invitation)))]
async fn invite(
    State(app): State<App>,
    OfTeam(member): OfTeam,
    Json(new): Json<NewInvitation>,
) -> Result<(StatusCode, Reply<Invitation>), Error> {
    let (role, needed) = match new.role {
        Invited::Member => (Role::Member, Role::Admin),
        Invited::Admin => (Role::Admin, Role::Owner),
    };
    member.needs(needed)?;
    let Some(user) = member.user() else {
        return Err(Code::Forbidden.because("invitations are users' to make, not keys'"));
    };
    let code = SecretText::random("wri_");
    let made = db::invitations::create(&app.db, member.team, role, &code.hash, user).await?;
    let detail = serde_json::json!({ "role": role });
    super::record(&app, &member, "invitation.create", &made.id.to_string(), detail).await?;
    Ok((StatusCode::CREATED, Reply(Invitation::with_code(made, Some(code.text)))))
}

/// Withdraw an invitation
#[utoipa::path(delete, path = "/v1/teams/{team}/invitations/{invitation}", tag = "teams",
    params(("team" = Uuid, Path), ("invitation" = Uuid, Path)), responses((status = NO_CONTENT)))]
async fn withdraw(
    State(app): State<App>,
    OfTeam(member): OfTeam,
    Path((_, invitation)): Path<(Uuid, Uuid)>,
) -> Result<StatusCode, Error> {
    member.needs(Role::Admin)?;
    if !db::invitations::withdraw(&app.db, member.team, invitation).await? {
        return Err(Code::NotFound.because("there is no such invitation"));
    }
    super::record(&app, &member, "invitation.withdraw", &invitation.to_string(), serde_json::json!({}))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Join a team with an invitation's code
#[utoipa::path(post, path = "/v1/invitations/accept", tag = "teams", request_body = InvitationCode,
    responses((status = OK, body = Team)))]
async fn accept(
    State(app): State<App>,
    session: Session,
    Json(shown): Json<InvitationCode>,
) -> Result<Reply<Team>, Error> {
    let team = db::invitations::accept(&app.db, &auth::digest(&shown.code), session.user).await?;
    let gone = || Code::NotFound.because("the invitation is not valid, or no longer");
    let team = team.ok_or_else(gone)?;
    let actor = format!("user:{}", session.user);
    db::audit::record(
        &app.db,
        Some(team),
        &actor,
        "member.join",
        &session.user.to_string(),
        &serde_json::json!({}),
    )
    .await?;
    let teams = db::teams::of_user(&app.db, session.user).await?;
    let team = teams.into_iter().find(|one| one.id == team).ok_or_else(gone)?;
    Ok(Reply(team.into()))
}

/// A name as it is stored: 1 to 100 characters, none of them a control character.
pub(super) fn checked_name(name: &str) -> Result<String, Error> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
        return Err(
            Code::InvalidRequest.because("name: 1 to 100 characters, none of them a control character")
        );
    }
    Ok(name.to_owned())
}

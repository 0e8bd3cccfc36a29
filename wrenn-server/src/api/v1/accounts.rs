//! Signing up, logging in, and what a user sees of themselves.

use std::time::Duration;

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::teams::Team;
use crate::api::extract::Json;
use crate::api::{Code, Error};
use crate::app::App;
use crate::auth::{self, Peer, SecretText, Session};
use crate::config::SignUp;
use crate::db;
use crate::db::sessions::Refreshed;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(sign_up))
        .routes(routes!(log_in))
        .routes(routes!(refresh))
        .routes(routes!(log_out))
        .routes(routes!(me))
        .routes(routes!(change_password))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewAccount {
    #[schema(format = "email", max_length = 254, example = "ada@example.org")]
    email: String,
    #[schema(value_type = String, format = "password", min_length = 10, max_length = 256)]
    password: SecretString,
    #[serde(default)]
    #[schema(max_length = 100)]
    name: String,
}

#[derive(Serialize, ToSchema)]
struct Accepted {
    /// Always the same, whether or not the address had an account before.
    #[schema(example = "accepted")]
    status: &'static str,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LogIn {
    #[schema(format = "email", example = "ada@example.org")]
    email: String,
    #[schema(value_type = String, format = "password")]
    password: SecretString,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Refresh {
    refresh_token: String,
}

#[derive(Serialize, ToSchema)]
struct Tokens {
    /// For `Authorization: Bearer`.
    access_token: String,
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// The access token is good for so many seconds.
    expires_in: u64,
    /// To be traded for new tokens, once. Showing it again ends the session.
    refresh_token: String,
}

#[derive(Serialize, ToSchema)]
struct Me {
    id: Uuid,
    email: String,
    name: String,
    /// Whether this user sees and drains hosts.
    operator: bool,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// The first of them is meant where a request names none by `X-Team-Id`.
    teams: Vec<Team>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    #[schema(value_type = String, format = "password")]
    current: SecretString,
    #[schema(value_type = String, format = "password", min_length = 10, max_length = 256)]
    new: SecretString,
}

/// Make an account, with a team of its own
///
/// The answer is the same for an address that has an account, which stays as it is: log in to see whether it worked.
#[utoipa::path(post, path = "/v1/auth/signup", tag = "accounts", request_body = NewAccount, security(()),
    responses((status = ACCEPTED, body = Accepted)))]
async fn sign_up(
    State(app): State<App>,
    Peer(address): Peer,
    Json(new): Json<NewAccount>,
) -> Result<(StatusCode, Reply<Accepted>), Error> {
    if app.config.sign_up == SignUp::Closed {
        return Err(Code::SignUpClosed.because("the operator makes accounts here"));
    }
    app.limits.check_address(address).map_err(too_often)?;
    let account = checked_account(&new.email, &new.name, &new.password)?;
    // Hashed before the database is asked, so that the answer for an address that is taken takes as long.
    let hash = app.passwords.hash(new.password).await?;
    if let Some((user, team)) =
        db::users::create(&app.db, &account.email, &account.name, &hash, false).await?
    {
        let detail = serde_json::json!({});
        db::audit::record(
            &app.db,
            Some(team),
            &format!("user:{user}"),
            "user.sign_up",
            &user.to_string(),
            &detail,
        )
        .await?;
    }
    Ok((StatusCode::ACCEPTED, Reply(Accepted { status: "accepted" })))
}

/// Log in
#[utoipa::path(post, path = "/v1/auth/login", tag = "accounts", request_body = LogIn, security(()),
    responses((status = OK, body = Tokens)))]
async fn log_in(
    State(app): State<App>,
    Peer(address): Peer,
    Json(shown): Json<LogIn>,
) -> Result<Reply<Tokens>, Error> {
    app.limits.check_address(address).map_err(too_often)?;
    let email = shown.email.trim().to_lowercase();
    app.limits.check_account(&email).map_err(too_often)?;
    let wrong = || Code::InvalidCredentials.because("address and password do not go together");
    if secrecy::ExposeSecret::expose_secret(&shown.password).len() > auth::MOST_BYTES {
        return Err(wrong());
    }
    let known = if is_email(&email) { db::users::password_of(&app.db, &email).await? } else { None };
    let (user, hash) = known.unzip();
    if !app.passwords.verify(shown.password, hash).await? {
        return Err(wrong());
    }
    let user = user.ok_or_else(wrong)?;
    let refresh = SecretText::random("wrr_");
    let session = db::sessions::begin(&app.db, user, &refresh.hash, session_end(&app)).await?;
    db::audit::record(
        &app.db,
        None,
        &format!("user:{user}"),
        "user.log_in",
        &session.to_string(),
        &serde_json::json!({}),
    )
    .await?;
    tokens(&app, user, session, refresh)
}

/// Trade a refresh token for new tokens
///
/// Each refresh token is good once. Whoever shows one again that was traded already ends the session, as one of the two
/// who have it must have stolen it.
#[utoipa::path(post, path = "/v1/auth/refresh", tag = "accounts", request_body = Refresh, security(()),
    responses((status = OK, body = Tokens)))]
async fn refresh(State(app): State<App>, Json(shown): Json<Refresh>) -> Result<Reply<Tokens>, Error> {
    let successor = SecretText::random("wrr_");
    let shown = auth::digest(&shown.refresh_token);
    match db::sessions::rotate(&app.db, &shown, &successor.hash, session_end(&app)).await? {
        Refreshed::Rotated { session, user } => tokens(&app, user, session, successor),
        refused => {
            if let Refreshed::Reused { user } = refused {
                tracing::warn!(%user, "a refresh token was shown twice; its session is over");
                let actor = format!("user:{user}");
                db::audit::record(
                    &app.db,
                    None,
                    &actor,
                    "session.reuse",
                    &user.to_string(),
                    &serde_json::json!({}),
                )
                .await?;
            }
            Err(Code::InvalidCredentials.because("the refresh token is not valid, or no longer"))
        }
    }
}

/// End the session, with its access and refresh tokens
#[utoipa::path(post, path = "/v1/auth/logout", tag = "accounts", responses((status = NO_CONTENT)))]
async fn log_out(State(app): State<App>, session: Session) -> Result<StatusCode, Error> {
    db::sessions::revoke(&app.db, session.session).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The user who asks
#[utoipa::path(get, path = "/v1/me", tag = "accounts", responses((status = OK, body = Me)))]
async fn me(State(app): State<App>, session: Session) -> Result<Reply<Me>, Error> {
    let user = db::users::find(&app.db, session.user)
        .await?
        .ok_or_else(|| Code::Unauthenticated.because("the user is gone"))?;
    let teams = db::teams::of_user(&app.db, user.id).await?.into_iter().map(Team::from).collect();
    let db::users::User { id, email, name, operator, created_at } = user;
    Ok(Reply(Me { id, email, name, operator, created_at, teams }))
}

/// Change the password
///
/// All other sessions of the user end.
#[utoipa::path(post, path = "/v1/me/password", tag = "accounts", request_body = NewPassword,
    responses((status = NO_CONTENT)))]
async fn change_password(
    State(app): State<App>,
    session: Session,
    Json(change): Json<NewPassword>,
) -> Result<StatusCode, Error> {
    app.limits.check_account(&session.user.to_string()).map_err(too_often)?;
    checked_password(&change.new)?;
    let hash = db::users::password_of_id(&app.db, session.user).await?;
    if !app.passwords.verify(change.current, hash).await? {
        return Err(Code::InvalidCredentials.because("the current password is another"));
    }
    let hash = app.passwords.hash(change.new).await?;
    db::users::set_password(&app.db, session.user, &hash, session.session).await?;
    let actor = format!("user:{}", session.user);
    db::audit::record(
        &app.db,
        None,
        &actor,
        "user.password",
        &session.user.to_string(),
        &serde_json::json!({}),
    )
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn tokens(app: &App, user: Uuid, session: Uuid, refresh: SecretText) -> Result<Reply<Tokens>, Error> {
    let access_token = app
        .access_tokens
        .issue(user, session)
        .map_err(|error| Error::internal("an access token could not be signed", &error))?;
    Ok(Reply(Tokens {
        access_token,
        token_type: "Bearer",
        expires_in: app.access_tokens.life().as_secs(),
        refresh_token: refresh.text,
    }))
}

fn session_end(app: &App) -> OffsetDateTime {
    let life: Duration = app.config.refresh_token_life;
    OffsetDateTime::now_utc() + life
}

fn too_often(seconds: u64) -> Error {
    Code::RateLimited.because("too many attempts").retry_after(seconds)
}

/// The parts of an account in the form that they are stored in.
pub(crate) struct Account {
    pub(crate) email: String,
    pub(crate) name: String,
}

/// Checks what an account is to be made of.
pub(crate) fn checked_account(email: &str, name: &str, password: &SecretString) -> Result<Account, Error> {
    let email = email.trim().to_lowercase();
    if !is_email(&email) {
        return Err(Code::InvalidRequest.because("email: this is no address"));
    }
    let name = name.trim().to_owned();
    if name.chars().count() > 100 || name.chars().any(char::is_control) {
        return Err(
            Code::InvalidRequest.because("name: at most 100 characters, none of them a control character")
        );
    }
    checked_password(password)?;
    Ok(Account { email, name })
}

fn checked_password(password: &SecretString) -> Result<(), Error> {
    let password = secrecy::ExposeSecret::expose_secret(password);
    if password.chars().count() < auth::LEAST_CHARS || password.len() > auth::MOST_BYTES {
        let (least, most) = (auth::LEAST_CHARS, auth::MOST_BYTES);
        return Err(
            Code::InvalidRequest.because(format!("password: from {least} characters to {most} bytes"))
        );
    }
    Ok(())
}

/// Something before and after one `@`. Whether mail arrives there only mail could tell.
fn is_email(text: &str) -> bool {
    let fine = |c: char| !c.is_control() && !c.is_whitespace() && c != '@';
    let Some((local, domain)) = text.split_once('@') else { return false };
    text.len() <= 254
        && !local.is_empty()
        && local.chars().all(fine)
        && !domain.is_empty()
        && domain.chars().all(fine)
        && !domain.starts_with('.')
        && !domain.ends_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_one_at_sign_and_no_blanks() {
        assert!(is_email("ada@example.org") && is_email("ada+x@localhost"));
        for not in
            ["", "ada", "@b", "a@", "a@b@c", "a b@c", "a@b\0", "a@.b", &format!("{}@b", "a".repeat(260))]
        {
            assert!(!is_email(not), "{not:?}");
        }
    }
}

//! Who a request is from, as what its handler asks for: [`Session`] for a user, [`Member`] for someone of a team,
//! [`Operator`] for who runs the place.
//!
//! Without credentials each of them is refused with 401. What exists but is none of the caller's business is 404.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use axum::http::request::Parts;
use uuid::Uuid;

use super::{Role, digest};
use crate::api::{Code, Error};
use crate::app::App;
use crate::db;

/// The address that a connection comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// The client's address: of the connection, or what the outermost trusted proxy says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

impl FromRequestParts<App> for Peer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let connection = parts.extensions.get::<PeerAddress>();
        let connection = connection.map_or(IpAddr::from([0, 0, 0, 0]), |address| address.0.ip());
        Ok(Self(forwarded(&parts.headers, app.config.trusted_proxies).unwrap_or(connection)))
    }
}

/// The address that the outermost of so many proxies wrote down; what is before it, anyone may have written.
fn forwarded(headers: &HeaderMap, proxies: usize) -> Option<IpAddr> {
    let from_the_end = proxies.checked_sub(1)?;
    let all: Vec<&str> = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .collect();
    let at = all.len().checked_sub(from_the_end + 1)?;
    all[at].trim().parse().ok()
}

/// Whoever did something, for the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Actor {
    User(Uuid),
    Key(Uuid),
    /// The server itself.
    System,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "user:{id}"),
            Self::Key(id) => write!(f, "key:{id}"),
            Self::System => f.write_str("system"),
        }
    }
}

/// A user who logged in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Session {
    pub(crate) user: Uuid,
    pub(crate) session: Uuid,
    pub(crate) operator: bool,
}

/// Someone of a team: a user, or a program with a key of the team's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) team: Uuid,
    pub(crate) role: Role,
    pub(crate) actor: Actor,
}

impl Member {
    /// The user, where it is one.
    pub(crate) fn user(&self) -> Option<Uuid> {
        match self.actor {
            Actor::User(user) => Some(user),
            Actor::Key(_) | Actor::System => None,
        }
    }

    /// Goes on only for users with that role or more. Keys have the role of a member.
    pub(crate) fn needs(&self, role: Role) -> Result<(), Error> {
        if self.role >= role {
            return Ok(());
        }
        Err(Code::Forbidden.because(format!("this takes a user who is {} of the team", role.as_str())))
    }
}

/// A host, which shows a token that it signed for control planes.
#[derive(Debug, Clone)]
pub(crate) struct HostItself(pub(crate) String);

/// A user who runs the whole installation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operator(pub(crate) Session);

/// What a request came with.
enum Credentials {
    Key(String),
    Token(String),
}

impl Credentials {
    fn of(headers: &HeaderMap) -> Result<Self, Error> {
        if let Some(key) = headers.get("x-api-key") {
            return key.to_str().map(|key| Self::Key(key.to_owned())).map_err(|_| bad_credentials());
        }
        let Some(authorization) = headers.get(AUTHORIZATION) else {
            if let Some(token) = offered(headers, "wrenn.token.") {
                return Ok(Self::Token(token.to_owned()));
            }
            return Err(Code::Unauthenticated
                .because("this takes an access token (Authorization: Bearer) or an API key (X-API-Key)"));
        };
        let authorization = authorization.to_str().map_err(|_| bad_credentials())?;
        match authorization.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(Self::Token(token.trim().to_owned()))
            }
            _ => Err(bad_credentials()),
        }
    }
}

/// What a WebSocket's client offered as a subprotocol of that kind: browsers let pages set nothing else.
fn offered<'a>(headers: &'a HeaderMap, kind: &str) -> Option<&'a str> {
    let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|offers| offers.to_str().ok());
    let mut offers = offers.flat_map(|offers| offers.split(','));
    offers.find_map(|offer| offer.trim().strip_prefix(kind))
}

/// The team that a request is for, where it names one.
fn named_team(headers: &HeaderMap) -> Result<Option<Uuid>, Error> {
    let named = match headers.get("x-team-id") {
        Some(id) => Some(id.to_str().unwrap_or_default()),
        None => offered(headers, "wrenn.team."),
    };
    named.map(|id| id.parse().map_err(|_| Code::NotFound.because("there is no such team"))).transpose()
}

/// One answer for whatever is wrong with them.
fn bad_credentials() -> Error {
    Code::Unauthenticated.because("the access token or API key is not valid, or no longer")
}

async fn log_in(
    app: &App,
    token: &str,
    team: Option<Uuid>,
) -> Result<(Session, Option<(Uuid, Role)>), Error> {
    let claims = app.access_tokens.read(token).ok_or_else(bad_credentials)?;
    let live =
        db::sessions::live(&app.db, claims.sid, claims.sub, team).await?.ok_or_else(bad_credentials)?;
    let place = live.team.zip(live.role.as_deref().map(Role::from_stored));
    Ok((Session { user: claims.sub, session: claims.sid, operator: live.operator }, place))
}

impl FromRequestParts<App> for Session {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        match Credentials::of(&parts.headers)? {
            Credentials::Token(token) => Ok(log_in(app, &token, None).await?.0),
            Credentials::Key(key) => {
                key_of(app, &key).await?;
                Err(Code::Forbidden.because("this takes a user's access token; a key does not do"))
            }
        }
    }
}

impl FromRequestParts<App> for Operator {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let hidden = || Code::NotFound.because("there is no such thing");
        match Credentials::of(&parts.headers)? {
            Credentials::Token(token) => {
                let (session, _) = log_in(app, &token, None).await?;
                if session.operator { Ok(Self(session)) } else { Err(hidden()) }
            }
            Credentials::Key(key) => {
                key_of(app, &key).await?;
                Err(hidden())
            }
        }
    }
}

impl FromRequestParts<App> for HostItself {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        if let Credentials::Token(token) = Credentials::of(&parts.headers)?
            && let Some(host) = app.hosts.bearer(&token)
        {
            return Ok(Self(host));
        }
        // Whoever else it is, this is none of theirs; nobody is told which of both it was that failed.
        let Operator(_) = Operator::from_request_parts(parts, app).await?;
        Err(Code::NotFound.because("there is no such thing"))
    }
}

impl FromRequestParts<App> for Member {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        match Credentials::of(&parts.headers)? {
            Credentials::Key(key) => key_of(app, &key).await,
            Credentials::Token(token) => {
                let (session, place) = log_in(app, &token, named_team(&parts.headers)?).await?;
                let (team, role) = place.ok_or_else(|| Code::NotFound.because("there is no such team"))?;
                Ok(Self { team, role, actor: Actor::User(session.user) })
            }
        }
    }
}

/// Someone of the team that the path names, as `{team}`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfTeam(pub(crate) Member);

impl FromRequestParts<App> for OfTeam {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let credentials = Credentials::of(&parts.headers)?;
        let no_team = || Code::NotFound.because("there is no such team");
        let path = RawPathParams::from_request_parts(parts, app).await;
        let team = path.ok().and_then(|path| {
            path.iter().find(|(name, _)| *name == "team").and_then(|(_, id)| id.parse::<Uuid>().ok())
        });
        match credentials {
            Credentials::Key(key) => {
                let member = key_of(app, &key).await?;
                if Some(member.team) == team { Ok(Self(member)) } else { Err(no_team()) }
            }
            Credentials::Token(token) => {
                let (session, place) = log_in(app, &token, Some(team.unwrap_or(Uuid::nil()))).await?;
                let (team, role) = place.ok_or_else(no_team)?;
                Ok(Self(Member { team, role, actor: Actor::User(session.user) }))
            }
        }
    }
}

async fn key_of(app: &App, key: &str) -> Result<Member, Error> {
    let (id, team, stale) = db::keys::look_up(&app.db, &digest(key)).await?.ok_or_else(bad_credentials)?;
    if stale {
        db::keys::note_use(&app.db, id).await?;
    }
    Ok(Member { team, role: Role::Member, actor: Actor::Key(id) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_trusted_proxies_wrote_counts() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "6.6.6.6, 1.1.1.1".parse().unwrap());
        headers.append("x-forwarded-for", "2.2.2.2".parse().unwrap());
        let address = |text: &str| Some(text.parse().unwrap());
        assert_eq!(forwarded(&headers, 0), None);
        assert_eq!(forwarded(&headers, 1), address("2.2.2.2"));
        assert_eq!(forwarded(&headers, 2), address("1.1.1.1"));
        assert_eq!(forwarded(&headers, 4), None);
    }
}

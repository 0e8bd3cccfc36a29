//! Snapshots, which are templates with a name, and what there is of templates beside.

use axum::Json as Reply;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::Error;
use super::extract::{Caller, Id, Json, Path, Query};
use super::types::{NewSnapshot, Snapshot, template};
use crate::app::App;
use crate::{db, sandboxes};

/// What begins the names of snapshots that their makers gave none.
const UNNAMED: &str = "unnamed-";
const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");

fn described(name: String) -> Snapshot {
    let names = if name.starts_with(UNNAMED) { Vec::new() } else { vec![name.clone()] };
    Snapshot { snapshot_id: name, names }
}

/// A name that a snapshot can have.
fn checked(name: &str) -> Option<&str> {
    name.parse::<wrenn_base::TemplateName>().is_ok().then_some(name)
}

pub(super) async fn create(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Id(id): Id,
    Json(new): Json<NewSnapshot>,
) -> Result<(StatusCode, Reply<Snapshot>), Error> {
    if new.memory == Some(false) {
        return Err(Error::unsupported("a snapshot without memory"));
    }
    let name = new.name.unwrap_or_else(|| format!("{UNNAMED}{}", Uuid::new_v4().simple()));
    if checked(&name).is_none() {
        let wrong = "name: 1 to 64 letters, digits, dots, dashes and underscores, of which it begins with a letter or digit";
        return Err(Error::bad_request(wrong));
    }
    let made = sandboxes::snapshot(&app, &member, &id, &name).await?;
    Ok((StatusCode::CREATED, Reply(described(made.name))))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Filter {
    #[serde(rename = "sandboxID")]
    sandbox_id: Option<String>,
    name: Option<String>,
    limit: Option<i64>,
    next_token: Option<String>,
}

pub(super) async fn list(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Query(filter): Query<Filter>,
) -> Result<(HeaderMap, Reply<Vec<Snapshot>>), Error> {
    let limit = match filter.limit.unwrap_or(100) {
        limit @ 1..=100 => limit,
        _ => return Err(Error::bad_request("limit: from 1 to 100")),
    };
    let after = filter.next_token.unwrap_or_default();
    if !after.is_empty() && checked(&after).is_none() {
        return Err(Error::bad_request("nextToken: this is none"));
    }
    let wanted = |row: &db::snapshots::Snapshot| {
        row.state == "ready"
            && filter.sandbox_id.as_ref().is_none_or(|id| *id == row.sandbox)
            && filter.name.as_ref().is_none_or(|name| *name == row.name)
    };
    let (mut found, mut headers) = (Vec::new(), HeaderMap::new());
    let mut place = after;
    // Those that are asked for may be few among many.
    while i64::try_from(found.len()).unwrap_or(i64::MAX) <= limit {
        let page = db::snapshots::of_team(&app.db, member.team, &place, 100).await?;
        let Some(last) = page.last() else { break };
        place.clone_from(&last.name);
        found.extend(page.into_iter().filter(wanted).map(|row| row.name));
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if found.len() > limit {
        found.truncate(limit);
        if let Some(token) = found.last().and_then(|name| HeaderValue::from_str(name).ok()) {
            headers.insert(NEXT_TOKEN, token);
        }
    }
    Ok((headers, Reply(found.into_iter().map(described).collect())))
}

pub(super) async fn remove(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Path(name): Path,
) -> Result<StatusCode, Error> {
    let none = || Error::new(StatusCode::NOT_FOUND, "there is no such template");
    let name = checked(&name).ok_or_else(none)?;
    crate::api::remove_snapshot(&app, &member, name).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Serialize)]
pub(super) struct Alias {
    #[serde(rename = "templateID")]
    template_id: String,
    public: bool,
}

/// Whether there is a template of that name: a snapshot of the team's, or an image of some host's.
pub(super) async fn alias(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Path(name): Path,
) -> Result<Reply<Alias>, Error> {
    let none = || Error::new(StatusCode::NOT_FOUND, "there is no such template");
    let name = template(&app, &name);
    let name = name.parse::<wrenn_base::ImageName>().map_err(|_| none())?;
    let own = db::snapshots::find(&app.db, member.team, name.as_str()).await?;
    let own = own.is_some_and(|snapshot| snapshot.state == "ready");
    if !own && !db::hosts::have_image(&app.db, name.as_str()).await? {
        return Err(none());
    }
    Ok(Reply(Alias { template_id: name.as_str().to_owned(), public: !own }))
}

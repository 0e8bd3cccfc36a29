//! Lists of sandboxes.

use std::collections::BTreeMap;

use axum::Json as Reply;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::ends;
use super::error::Error;
use super::extract::{Caller, Query};
use super::types::{Listed, plain_state, template};
use crate::api::check_metadata;
use crate::app::App;
use crate::auth::Member;
use crate::db;
use crate::sandboxes::{State, cursor_after, read_cursor};

/// Where the next page begins; left out on the last one.
const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");
const MOST: i64 = 100;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Filter {
    metadata: Option<String>,
    state: Option<String>,
    order: Option<String>,
    started_after: Option<String>,
    template: Option<String>,
    limit: Option<i64>,
    next_token: Option<String>,
}

/// States that are one to clients.
fn states_like(plain: &str) -> impl Iterator<Item = String> {
    State::ALL
        .iter()
        .filter(move |state| plain_state(**state) == Some(plain))
        .map(|state| state.as_str().to_owned())
}

impl Filter {
    fn states(&self) -> Result<Vec<String>, Error> {
        let asked = self.state.as_deref().filter(|text| !text.is_empty()).unwrap_or("running,paused");
        let mut states = Vec::new();
        for plain in asked.split(',') {
            if !["running", "paused"].contains(&plain) {
                return Err(Error::bad_request("state: running, paused, or both with a comma"));
            }
            states.extend(states_like(plain));
        }
        Ok(states)
    }

    /// `key=value&…`, in which both were encoded before they were put together, and again then.
    fn metadata(&self) -> Result<serde_json::Value, Error> {
        let wrong = || Error::bad_request("metadata: pairs of a query, percent-encoded UTF-8");
        let plain = |text: &str| {
            percent_decode_str(text).decode_utf8().map(|text| text.into_owned()).map_err(|_| wrong())
        };
        let mut pairs = BTreeMap::new();
        for (key, value) in form_urlencoded::parse(self.metadata.as_deref().unwrap_or_default().as_bytes()) {
            pairs.insert(plain(&key)?, plain(&value)?);
        }
        check_metadata(&pairs)?;
        Ok(serde_json::json!(pairs))
    }

    fn oldest_first(&self) -> Result<bool, Error> {
        match self.order.as_deref() {
            None | Some("" | "desc") => Ok(false),
            Some("asc") => Ok(true),
            Some(_) => Err(Error::bad_request("order: asc or desc")),
        }
    }

    fn since(&self) -> Result<Option<OffsetDateTime>, Error> {
        let read = |text: &String| OffsetDateTime::parse(text, &Rfc3339);
        let since = self.started_after.as_ref().map(read).transpose();
        since.map_err(|_| Error::bad_request("startedAfter: a time as of RFC 3339, with its zone"))
    }

    fn after(&self) -> Result<Option<(OffsetDateTime, String)>, Error> {
        let Some(token) = &self.next_token else { return Ok(None) };
        read_cursor(token).map(Some).ok_or_else(|| Error::bad_request("nextToken: this is none"))
    }

    fn limit(&self) -> Result<i64, Error> {
        match self.limit.unwrap_or(MOST) {
            limit @ 1..=MOST => Ok(limit),
            _ => Err(Error::bad_request(format!("limit: from 1 to {MOST}"))),
        }
    }
}

/// A team's sandboxes, the newest first where nothing else is asked for.
pub(super) async fn list(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Query(filter): Query<Filter>,
) -> Result<(HeaderMap, Reply<Vec<Listed>>), Error> {
    let limit = filter.limit()?;
    let (mut rows, mut headers) = (rows(&app, &member, &filter, limit + 1).await?, HeaderMap::new());
    if i64::try_from(rows.len()).unwrap_or(i64::MAX) > limit {
        rows.pop();
        if let Some(token) = rows.last().and_then(|row| HeaderValue::from_str(&cursor_after(row)).ok()) {
            headers.insert(NEXT_TOKEN, token);
        }
    }
    Ok((headers, Reply(listed(&app, rows).await?)))
}

/// What older clients call: those that run, without pages.
pub(super) async fn list_old(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Query(filter): Query<Filter>,
) -> Result<Reply<Vec<Listed>>, Error> {
    let filter = Filter { metadata: filter.metadata, state: Some("running".to_owned()), ..Filter::default() };
    let rows = rows(&app, &member, &filter, 1000).await?;
    Ok(Reply(listed(&app, rows).await?))
}

async fn rows(
    app: &App,
    member: &Member,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<db::sandboxes::Sandbox>, Error> {
    let metadata = filter.metadata()?;
    let template = filter.template.as_deref().map(|name| template(app, name));
    if template.as_ref().is_some_and(|name| name.contains('\0')) {
        return Ok(Vec::new());
    }
    let narrowed = db::e2b::Filter {
        states: filter.states()?,
        metadata: &metadata,
        template: template.as_deref(),
        since: filter.since()?,
        oldest_first: filter.oldest_first()?,
        after: filter.after()?,
        limit,
    };
    Ok(db::e2b::list(&app.db, member.team, narrowed).await?)
}

async fn listed(app: &App, rows: Vec<db::sandboxes::Sandbox>) -> Result<Vec<Listed>, Error> {
    let lifecycles = ends::lifecycles(app, &rows).await?;
    Ok(rows.into_iter().zip(&lifecycles).filter_map(|(row, lifecycle)| Listed::new(row, lifecycle)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_what_clients_encoded_twice() {
        let of = |text: &str| Filter { metadata: Some(text.to_owned()), ..Filter::default() }.metadata();
        // What is left of `k%3Dv%252520a` once the query was decoded.
        assert_eq!(of("k=v%2520a").unwrap(), serde_json::json!({"k": "v a"}));
        assert_eq!(of("k=1&l=%2526").unwrap(), serde_json::json!({"k": "1", "l": "&"}));
        assert_eq!(of("").unwrap(), serde_json::json!({}));
        assert!(of("k=%25ff").is_err() && of("k=%2500").is_err());
    }

    #[test]
    fn states_are_two() {
        let of = |text: &str| Filter { state: Some(text.to_owned()), ..Filter::default() }.states();
        assert_eq!(of("running").unwrap(), ["running", "pausing"]);
        assert_eq!(of("").unwrap().len(), 4);
        assert_eq!(of("running,paused").unwrap().len(), 4);
        assert!(of("destroyed").is_err() && of("running,").is_err());
    }
}

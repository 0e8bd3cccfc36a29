//! The lives of sandboxes.

use std::time::Duration;

use axum::Json as Reply;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use tokio::time::Instant;
use wrenn_host::Timeout;

use super::ends;
use super::error::Error;
use super::extract::{Caller, Id, Json};
use super::types::{
    Connect, Detail, Fork, Forked, Metric, NewSandbox, NewTimeout, Pause, Refresh, Sandbox, plain_state,
    seconds, some_seconds,
};
use crate::api::{self, idempotent};
use crate::app::App;
use crate::auth::Member;
use crate::db::sandboxes::Sandbox as Row;
use crate::sandboxes::State;
use crate::{db, sandboxes};

/// The timeout of who asks for none: of today's clients, and of the older ones.
const DEFAULT_TIMEOUT: i64 = 300;
const OLD_DEFAULT_TIMEOUT: i64 = 15;
/// How long a request waits for what is being done with its sandbox.
const PATIENCE: Duration = Duration::from_secs(120);
const MOMENT: Duration = Duration::from_millis(100);

pub(super) async fn create(
    app: Shared<App>,
    caller: Caller,
    headers: HeaderMap,
    new: Json<NewSandbox>,
) -> Result<(StatusCode, Reply<Sandbox>), Error> {
    make(app, caller, headers, new, DEFAULT_TIMEOUT).await
}

pub(super) async fn create_old(
    app: Shared<App>,
    caller: Caller,
    headers: HeaderMap,
    new: Json<NewSandbox>,
) -> Result<(StatusCode, Reply<Sandbox>), Error> {
    make(app, caller, headers, new, OLD_DEFAULT_TIMEOUT).await
}

async fn make(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    headers: HeaderMap,
    Json(new): Json<NewSandbox>,
    default_timeout: i64,
) -> Result<(StatusCode, Reply<Sandbox>), Error> {
    let timeout = some_seconds(new.timeout.unwrap_or(default_timeout))?;
    let (new, auto_resume) = new.checked(&app, timeout)?;
    let idempotent = idempotent(&headers, "e2b create", &(&new, auto_resume))?;
    let row = sandboxes::create(&app, &member, new, idempotent).await?;
    if row.state() == State::Running {
        ends::appoint(&app, &row, timeout, Some(auto_resume)).await?;
    }
    Ok((StatusCode::CREATED, Reply(Sandbox::new(&app, row))))
}

/// A sandbox once nothing is being done with it.
async fn at_rest(app: &App, member: &Member, id: &str) -> Result<Row, Error> {
    let row = sandboxes::find(app, member.team, id).await?;
    if !row.state().is_leased() {
        return Ok(row);
    }
    let settled = tokio::time::timeout(PATIENCE, sandboxes::settled(app, member.team, id)).await;
    let row = settled
        .map_err(|_| Error::new(StatusCode::CONFLICT, "something else is being done with the sandbox"))??;
    if row.state().is_over() { Err(Error::no_such_sandbox()) } else { Ok(row) }
}

/// Whether something failed because somebody else did something with the sandbox since it was seen: then, after a moment, it
/// is worth another look.
async fn was_overtaken(
    app: &App,
    member: &Member,
    seen: &Row,
    error: &Error,
    begun: Instant,
) -> Result<bool, Error> {
    if !error.is_about_state() || begun.elapsed() > PATIENCE {
        return Ok(false);
    }
    tokio::time::sleep(MOMENT).await;
    let row = sandboxes::find(app, member.team, &seen.id).await?;
    Ok(row.version != seen.version)
}

pub(super) async fn get(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Id(id): Id,
) -> Result<Reply<Detail>, Error> {
    let row = sandboxes::find(&app, member.team, &id).await?;
    if row.state() == State::Missing {
        return Err(sandboxes::host_unavailable().into());
    }
    let lifecycle = ends::lifecycle(&app, &row).await?;
    Detail::new(&app, row, &lifecycle).map(Reply).ok_or_else(Error::no_such_sandbox)
}

pub(super) async fn kill(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Id(id): Id,
) -> Result<StatusCode, Error> {
    sandboxes::destroy(&app, &member, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn pause(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Id(id): Id,
    Json(asked): Json<Pause>,
) -> Result<StatusCode, Error> {
    if asked.memory == Some(false) {
        return Err(Error::unsupported("a pause without memory"));
    }
    let begun = Instant::now();
    loop {
        let row = at_rest(&app, &member, &id).await?;
        if row.state() == State::Paused {
            return Err(Error::new(StatusCode::CONFLICT, "the sandbox is paused already"));
        }
        let Err(error) = sandboxes::pause(&app, &member, &id).await else {
            return Ok(StatusCode::NO_CONTENT);
        };
        let error = Error::from(error);
        if !was_overtaken(&app, &member, &row, &error, begun).await? {
            return Err(error);
        }
    }
}

/// Makes sure that a sandbox runs, for at least so long. Also whether it was resumed for that.
async fn bring_up(app: &App, member: &Member, id: &str, asked: &Connect) -> Result<(Row, bool), Error> {
    let timeout = some_seconds(asked.timeout.unwrap_or(DEFAULT_TIMEOUT))?;
    let begun = Instant::now();
    loop {
        let row = at_rest(app, member, id).await?;
        let done = match row.state() {
            State::Running => prolong(app, member, &row, timeout).await.map(|()| (row.clone(), false)),
            State::Paused => resume_for(app, member, id, timeout, asked, &row).await.map(|row| (row, true)),
            _ => return Err(sandboxes::host_unavailable().into()),
        };
        match done {
            Err(error) if was_overtaken(app, member, &row, &error, begun).await? => {}
            done => return done,
        }
    }
}

/// Lets a running sandbox end so long from now, if it would not live as long anyway.
async fn prolong(app: &App, member: &Member, row: &Row, timeout: Duration) -> Result<(), Error> {
    let remaining = ends::lifecycle(app, row).await?.ends_at - time::OffsetDateTime::now_utc();
    if remaining < timeout { ends::set(app, member, row, timeout).await } else { Ok(()) }
}

async fn resume_for(
    app: &App,
    member: &Member,
    id: &str,
    timeout: Duration,
    asked: &Connect,
    row: &Row,
) -> Result<Row, Error> {
    if asked.memory == Some(false) {
        return Err(Error::unsupported("a resume without memory"));
    }
    let then = match asked.auto_pause {
        Some(true) => wrenn_host::OnTimeout::Pause,
        Some(false) => wrenn_host::OnTimeout::Destroy,
        None => ends::then(row),
    };
    let row = sandboxes::resume(app, member, id, Some(Timeout { after: Some(timeout), then })).await?;
    ends::appoint(app, &row, timeout, None).await?;
    Ok(row)
}

/// Resumes a paused sandbox that a request is for, if it is one that requests resume.
pub(crate) async fn wake(app: &App, row: &Row) -> Result<Option<Row>, api::Error> {
    let known = db::e2b::of(&app.db, std::slice::from_ref(&row.id)).await?;
    if !known.first().is_some_and(|extra| extra.auto_resume) {
        return Ok(None);
    }
    let timeout = row.timeout_ms.map_or(DEFAULT_TIMEOUT, |millis| (millis / 1000).max(1));
    let asked = Connect { timeout: Some(timeout), ..Connect::default() };
    match bring_up(app, &ends::system(row.team_id), &row.id, &asked).await {
        Ok((row, _)) => Ok(Some(row)),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn connect(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Id(id): Id,
    Json(asked): Json<Connect>,
) -> Result<(StatusCode, Reply<Sandbox>), Error> {
    let (row, resumed) = bring_up(&app, &member, &id, &asked).await?;
    let status = if resumed { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Reply(Sandbox::new(&app, row))))
}

/// What older clients connect with: the sandbox has to be paused.
pub(super) async fn resume(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Id(id): Id,
    Json(asked): Json<Connect>,
) -> Result<(StatusCode, Reply<Sandbox>), Error> {
    if at_rest(&app, &member, &id).await?.state() == State::Running {
        return Err(Error::new(StatusCode::CONFLICT, "the sandbox runs already"));
    }
    let (row, _) = bring_up(&app, &member, &id, &asked).await?;
    Ok((StatusCode::CREATED, Reply(Sandbox::new(&app, row))))
}

/// A sandbox that runs; one that is paused counts as none.
async fn running(app: &App, member: &Member, id: &str) -> Result<Row, Error> {
    let row = at_rest(app, member, id).await?;
    match row.state() {
        State::Running => Ok(row),
        State::Paused => Err(Error::new(StatusCode::NOT_FOUND, "the sandbox is paused")),
        _ => Err(sandboxes::host_unavailable().into()),
    }
}

pub(super) async fn set_timeout(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Id(id): Id,
    Json(asked): Json<NewTimeout>,
) -> Result<StatusCode, Error> {
    let timeout = seconds(asked.timeout)?;
    let row = running(&app, &member, &id).await?;
    ends::set(&app, &member, &row, timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// As a timeout, but it only ever prolongs.
pub(super) async fn refresh(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Id(id): Id,
    Json(asked): Json<Refresh>,
) -> Result<StatusCode, Error> {
    running(&app, &member, &id).await?;
    let asked =
        Connect { timeout: Some(asked.duration.unwrap_or(OLD_DEFAULT_TIMEOUT)), ..Connect::default() };
    bring_up(&app, &member, &id, &asked).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn fork(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Id(id): Id,
    Json(asked): Json<Fork>,
) -> Result<(StatusCode, Reply<Vec<Forked>>), Error> {
    let count = asked.count.unwrap_or(1);
    if !(1..=20).contains(&count) {
        return Err(Error::bad_request("count: from 1 to 20"));
    }
    let timeout = some_seconds(asked.timeout.unwrap_or(DEFAULT_TIMEOUT))?;
    let parent = running(&app, &member, &id).await?;
    let auto_resume = ends::lifecycle(&app, &parent).await?.auto_resume;
    let set = Timeout { after: Some(timeout), then: ends::then(&parent) };
    let made =
        sandboxes::branch(&app, &member, &id, count, std::collections::BTreeMap::new(), Some(set), None)
            .await;
    let rows = match made {
        Ok(rows) => rows,
        // The source is well: each of them failed.
        Err(error) => {
            let failed = (0..count).map(|_| Forked::Error(Error::from(error.clone()).into_body()));
            return Ok((StatusCode::CREATED, Reply(failed.collect())));
        }
    };
    let mut forked = Vec::with_capacity(rows.len());
    for row in rows {
        ends::appoint(&app, &row, timeout, Some(auto_resume)).await?;
        forked.push(Forked::Sandbox(Sandbox::new(&app, row)));
    }
    Ok((StatusCode::CREATED, Reply(forked)))
}

/// Of the past nothing is kept: what is told is what the sandbox uses now.
pub(super) async fn metrics(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Id(id): Id,
    super::extract::Query(range): super::extract::Query<Range>,
) -> Result<Reply<Vec<Metric>>, Error> {
    let row = at_rest(&app, &member, &id).await?;
    if plain_state(row.state()) != Some("running") {
        return Ok(Reply(Vec::new()));
    }
    let agent = sandboxes::agent(&app, member.team, &id).await?;
    let now = agent.metrics().await.map_err(|error| sandboxes::agent_failed(&app, &id, &error))?;
    // By this server's clock: the range is the client's.
    let timestamp = time::OffsetDateTime::now_utc();
    let unix = timestamp.unix_timestamp();
    if range.start.is_some_and(|start| unix < start) || range.end.is_some_and(|end| unix > end) {
        return Ok(Reply(Vec::new()));
    }
    Ok(Reply(vec![Metric {
        timestamp,
        timestamp_unix: unix,
        cpu_count: now.cpu_count,
        cpu_used_pct: now.cpu_used_pct,
        mem_used: now.mem_used,
        mem_total: now.mem_total,
        mem_cache: now.mem_cache,
        disk_used: now.disk_used,
        disk_total: now.disk_total,
    }]))
}

/// Seconds since 1970.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Range {
    start: Option<i64>,
    end: Option<i64>,
}

/// What a running sandbox may reach cannot be changed.
pub(super) async fn set_network(
    Shared(app): Shared<App>,
    Caller(member): Caller,
    Id(id): Id,
) -> Result<StatusCode, Error> {
    sandboxes::find(&app, member.team, &id).await?;
    Err(Error::unsupported("changing the network of a sandbox that there is"))
}

//! Making sandboxes: of images, of snapshots, and of a sandbox that runs.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use uuid::Uuid;
use wrenn_base::{ImageName, MiB, SandboxId};
use wrenn_host::{Branch, CreateSandbox, Egress, HostError, SandboxRecord, Timeout};

use super::operate::{as_task, holding, recorded, settle, settled};
use super::place;
use super::{LEASE, State, host_failed, host_of, running, stored_timeout, template_name};
use crate::api::{Code, Error};
use crate::app::App;
use crate::auth::Member;
use crate::db;
use crate::db::idempotency::Claim;
use crate::db::sandboxes::{New, Sandbox, Settled};

/// What a host gives a sandbox of an image that says nothing else.
const DEFAULT_VCPUS: u8 = 1;
const DEFAULT_MEMORY_MIB: u32 = 256;

/// A sandbox that is asked for, checked as far as its fields go.
#[derive(Debug, Clone)]
pub(crate) struct NewSandbox {
    /// A snapshot of the team's, or an image of the hosts'.
    pub(crate) template: String,
    pub(crate) vcpus: Option<u8>,
    pub(crate) memory_mib: Option<u32>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) timeout: Timeout,
    pub(crate) egress: Option<Egress>,
    pub(crate) hostname: Option<String>,
    /// A variable of the environment that is to hold the sandbox's id.
    pub(crate) id_variable: Option<&'static str>,
}

/// What a template's name stands for.
#[derive(Debug, Clone)]
enum Source {
    Image(ImageName),
    Snapshot(db::snapshots::Snapshot),
}

impl Source {
    async fn find(app: &App, team: Uuid, name: &str) -> Result<Self, Error> {
        let none = || Code::NotFound.because("there is no such template");
        let image: ImageName = name.parse().map_err(|_| none())?;
        if let Some(snapshot) = db::snapshots::find(&app.db, team, name).await? {
            return match snapshot.state.as_str() {
                "ready" => Ok(Self::Snapshot(snapshot)),
                _ => Err(Code::Conflict.because("the snapshot is not ready")),
            };
        }
        if db::hosts::have_image(&app.db, name).await? { Ok(Self::Image(image)) } else { Err(none()) }
    }
}

/// A key that a client sent, with the hash of what it asks for.
#[derive(Debug, Clone)]
pub(crate) struct Idempotent {
    pub(crate) key: String,
    pub(crate) request_hash: [u8; 32],
}

impl Idempotent {
    /// `kind` tells requests of different routes apart.
    pub(crate) fn new(key: String, kind: &str, request: &impl std::fmt::Debug) -> Self {
        let request_hash = Sha256::digest(format!("{kind}\0{request:?}")).into();
        Self { key, request_hash }
    }
}

fn another() -> Error {
    Code::IdempotencyKeyReused.because("another request came with this Idempotency-Key before")
}

/// Makes a sandbox, or finds the one that the same request made before.
pub(crate) async fn create(
    app: &App,
    member: &Member,
    new: NewSandbox,
    idempotent: Option<Idempotent>,
) -> Result<Sandbox, Error> {
    let source = Source::find(app, member.team, &new.template).await?;
    let (vcpus, memory) = match &source {
        Source::Image(_) => (
            i32::from(new.vcpus.unwrap_or(DEFAULT_VCPUS)),
            i32::try_from(new.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB)).unwrap_or(i32::MAX),
        ),
        // What a snapshot has is what it had: its memory is of that size.
        Source::Snapshot(_) if new.vcpus.is_some() || new.memory_mib.is_some() => {
            return Err(Code::InvalidRequest.because("vcpus, memory_mib: those of a snapshot are its own"));
        }
        Source::Snapshot(snapshot) => (snapshot.vcpus, snapshot.memory_mib),
    };
    let id = SandboxId::random();
    let mut transaction = app.db.begin().await?;
    if let Some(Idempotent { key, request_hash }) = &idempotent {
        match db::idempotency::claim(&mut transaction, member.team, key, request_hash, id.as_str()).await? {
            Claim::New => {}
            Claim::Other => return Err(another()),
            Claim::Made(made) => {
                drop(transaction);
                return made_before(app, member.team, &made).await;
            }
        }
    }
    let host = match &source {
        Source::Image(image) => {
            let need = db::hosts::Need { image: image.as_str(), memory_mib: memory.into(), except: &[] };
            let full = || Code::NoCapacity.because("no host has room for it just now").retry_after(10);
            db::hosts::choose(&mut transaction, need).await?.ok_or_else(full)?
        }
        Source::Snapshot(snapshot) => snapshot.host.clone(),
    };
    let (timeout_ms, on_timeout) = stored_timeout(&new.timeout);
    let row = New {
        id: &id,
        team: member.team,
        host: &host,
        template: &new.template,
        parent: None,
        vcpus,
        memory_mib: memory,
        metadata: &serde_json::json!(new.metadata),
        timeout_ms,
        on_timeout,
    };
    let row = db::sandboxes::insert(&mut transaction, &row, LEASE).await?;
    let (actor, detail) =
        (member.actor.to_string(), serde_json::json!({ "template": new.template, "host": host }));
    db::audit::record(&mut *transaction, Some(member.team), &actor, "sandbox.create", id.as_str(), &detail)
        .await?;
    transaction.commit().await?;
    let mut env = new.env;
    if let Some(name) = new.id_variable {
        env.entry(name.to_owned()).or_insert_with(|| id.as_str().to_owned());
    }
    let asked = CreateSandbox {
        vcpus: new.vcpus,
        memory: new.memory_mib.map(MiB),
        env,
        metadata: new.metadata,
        timeout: Some(new.timeout),
        egress: new.egress,
        hostname: new.hostname,
        ..CreateSandbox::new(
            id,
            match source {
                Source::Image(image) => wrenn_host::Source::Image(image),
                Source::Snapshot(snapshot) => wrenn_host::Source::Template(template_name(snapshot.id)),
            },
        )
    };
    let owned = app.clone();
    let made = as_task(app, async move {
        let app = owned;
        let (row, outcome) = place::make(&app, row, &asked).await;
        conclude(&app, vec![row], outcome.map(|made| made.map(|record| vec![record]))).await
    });
    one(made.await?)
}

/// Waits for what the same request is making, or finds what it made.
async fn made_before(app: &App, team: Uuid, id: &str) -> Result<Sandbox, Error> {
    let row = settled(app, team, id).await?;
    if row.state() == State::Failed {
        let why = row.reason.unwrap_or_default();
        return Err(Code::HostFailed.because(format!("the sandbox could not be made: {why}")));
    }
    Ok(row)
}

fn one(mut rows: Vec<Sandbox>) -> Result<Sandbox, Error> {
    rows.pop().ok_or_else(|| Error::internal("a host made no sandbox", &"its answer is empty"))
}

/// Enters the end of sandboxes' making: all of them came to be, or none.
async fn conclude(
    app: &App,
    rows: Vec<Sandbox>,
    outcome: Result<Result<Vec<SandboxRecord>, HostError>, Error>,
) -> Result<Vec<Sandbox>, Error> {
    let (state, told) = match outcome {
        Ok(Ok(records)) => {
            let mut made = Vec::with_capacity(rows.len());
            for row in rows {
                let record = records.iter().find(|record| record.id.as_str() == row.id);
                let (state, settled) = record.map_or((State::Missing, Settled::default()), recorded);
                made.push(settle(app, &row, state, &settled).await?);
            }
            return Ok(made);
        }
        // Whether they came to be only the host knows.
        Ok(Err(
            error @ (HostError::Disconnected { .. } | HostError::Timeout { .. } | HostError::Protocol { .. }),
        )) => (State::Missing, host_failed(&error)),
        Ok(Err(error)) => (State::Failed, host_failed(&error)),
        Err(error) => (State::Failed, error),
    };
    for row in &rows {
        let settled = Settled { reason: Some(told.message.clone()), ..Settled::default() };
        settle(app, row, state, &settled).await?;
    }
    if let (State::Failed, Some(first)) = (state, rows.first()) {
        let all: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        db::idempotency::release(&app.db, first.team_id, &all.join(",")).await?;
    }
    Err(told)
}

/// Makes sandboxes that go on where a running one is.
pub(crate) async fn branch(
    app: &App,
    member: &Member,
    id: &str,
    count: usize,
    metadata: BTreeMap<String, String>,
    timeout: Option<Timeout>,
    idempotent: Option<Idempotent>,
) -> Result<Vec<Sandbox>, Error> {
    let parent = running(app, member.team, id).await?;
    let children: Vec<SandboxId> = (0..count).map(|_| SandboxId::random()).collect();
    let mut transaction = app.db.begin().await?;
    if let Some(Idempotent { key, request_hash }) = &idempotent {
        let all: Vec<&str> = children.iter().map(SandboxId::as_str).collect();
        match db::idempotency::claim(&mut transaction, member.team, key, request_hash, &all.join(",")).await?
        {
            Claim::New => {}
            Claim::Other => return Err(another()),
            Claim::Made(made) => {
                drop(transaction);
                let mut rows = Vec::new();
                for id in made.split(',') {
                    rows.push(made_before(app, member.team, id).await?);
                }
                return Ok(rows);
            }
        }
    }
    let (timeout_ms, on_timeout) = match &timeout {
        Some(timeout) => stored_timeout(timeout),
        None => (parent.timeout_ms, parent.on_timeout.as_str()),
    };
    let mut all = parent.metadata.clone();
    if let Some(all) = all.as_object_mut() {
        all.extend(metadata.iter().map(|(key, value)| (key.clone(), value.clone().into())));
    }
    let mut rows = Vec::with_capacity(count);
    for child in &children {
        let row = New {
            id: child,
            team: member.team,
            host: &parent.host,
            template: &parent.template,
            parent: Some(&parent.id),
            vcpus: parent.vcpus,
            memory_mib: parent.memory_mib,
            metadata: &all,
            timeout_ms,
            on_timeout,
        };
        rows.push(db::sandboxes::insert(&mut transaction, &row, LEASE).await?);
    }
    let (actor, detail) = (member.actor.to_string(), serde_json::json!({ "children": children }));
    db::audit::record(&mut *transaction, Some(member.team), &actor, "sandbox.branch", id, &detail).await?;
    transaction.commit().await?;
    let asked = Branch { metadata, timeout, ..Branch::new(parent.sandbox_id()?, children) };
    let owned = app.clone();
    as_task(app, async move {
        let app = owned;
        let held: Vec<_> = rows.iter().map(|row| (row.id.clone(), row.version)).collect();
        let outcome = holding(&app, &held, async {
            let host = host_of(&app, &parent.host).await?;
            Ok(host.branch(asked).await)
        })
        .await;
        conclude(&app, rows, outcome).await
    })
    .await
}

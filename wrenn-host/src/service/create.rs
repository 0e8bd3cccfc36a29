//! Sandboxes come to be: of an image, of a template, of a running one.

use std::collections::BTreeMap;

use connectrpc::ConnectError;
use wrenn_base::SandboxId;
use wrenn_core::{Cause, Sandbox};

use super::refusal::refusal;
use super::request::{self, Mark};
use super::sandboxes::{Changing, Sandboxes};
use crate::Reason;
use crate::types::{Branch, CreateSandbox, SandboxRecord, Source};

impl Sandboxes {
    /// Makes a sandbox, or finds that the same request has made it; the latter is told.
    pub(super) async fn create(&self, request: CreateSandbox) -> Result<(SandboxRecord, bool), ConnectError> {
        let (id, mark) = (request.id.clone(), Mark::of_create(&request));
        let mut held = self.change(&id).await;
        if self.is_there(&id, &mark).await? {
            return Ok((self.get(&id).await?, true));
        }
        self.check_open()?;
        *held = Some(self.make(request, mark).await?);
        Ok((self.get(&id).await?, false))
    }

    /// Whether the sandbox is there, made by the request that `mark` is of.
    async fn is_there(&self, id: &SandboxId, mark: &Mark) -> Result<bool, ConnectError> {
        match self.host.get(id).await {
            Ok(info) if mark.is_on(&info.metadata) => Ok(true),
            Ok(_) => {
                let why = format!("there is another sandbox {id}, which was asked for otherwise");
                Err(Reason::AlreadyExists.error(why))
            }
            Err(error) if matches!(error.cause(), Cause::NoSuchSandbox { .. }) => Ok(false),
            Err(error) => Err(refusal(&error)),
        }
    }

    async fn make(&self, request: CreateSandbox, mark: Mark) -> Result<Sandbox, ConnectError> {
        let metadata = mark.put_on(request.metadata.clone())?;
        match &request.source {
            Source::Image(name) => self.boot(name.as_str(), &request, metadata).await,
            Source::Template(name) => self.spawn(name.as_str(), &request, metadata).await,
        }
    }

    async fn boot(
        &self,
        image: &str,
        request: &CreateSandbox,
        metadata: BTreeMap<String, String>,
    ) -> Result<Sandbox, ConnectError> {
        let mut builder = self.host.sandbox(image).map_err(|e| refusal(&e))?.id(request.id.clone());
        if let Some(count) = request.vcpus {
            builder = builder.vcpus(count);
        }
        if let Some(size) = request.memory {
            builder = builder.memory(size);
        }
        for (name, value) in &request.env {
            builder = builder.env(name, value);
        }
        for (key, value) in metadata {
            builder = builder.metadata(key, value);
        }
        if let Some((Some(after), then)) = request.timeout.map(request::timeout) {
            builder = builder.timeout(after, then);
        }
        if let Some(policy) = &request.egress {
            builder = builder.egress(request::egress(policy)?);
        }
        if let Some(name) = &request.hostname {
            builder = builder.hostname(name);
        }
        if let Some(limit) = request.ready_timeout {
            builder = builder.ready_timeout(limit);
        }
        builder.create().await.map_err(|e| refusal(&e))
    }

    async fn spawn(
        &self,
        template: &str,
        request: &CreateSandbox,
        metadata: BTreeMap<String, String>,
    ) -> Result<Sandbox, ConnectError> {
        let mut builder = self.host.template(template).map_err(|e| refusal(&e))?.builder();
        if let Some(count) = request.vcpus {
            builder = builder.vcpus(count);
        }
        if let Some(size) = request.memory {
            builder = builder.memory(size);
        }
        for (name, value) in &request.env {
            builder = builder.env(name, value);
        }
        for (key, value) in metadata {
            builder = builder.metadata(key, value);
        }
        if let Some((after, then)) = request.timeout.map(request::timeout) {
            builder = builder.timeout(after, then);
        }
        if let Some(policy) = &request.egress {
            builder = builder.egress(request::egress(policy)?);
        }
        if let Some(name) = &request.hostname {
            builder = builder.hostname(name);
        }
        if let Some(limit) = request.ready_timeout {
            builder = builder.ready_timeout(limit);
        }
        let made = builder.spawn_with_ids(vec![request.id.clone()]).await.map_err(|e| refusal(&e))?;
        made.into_iter()
            .next()
            .ok_or_else(|| Reason::Internal.error("one sandbox was asked for, and none made"))
    }

    /// Makes sandboxes of a running one, or finds that the same request has made all of them.
    pub(super) async fn branch(&self, request: Branch) -> Result<Vec<SandboxRecord>, ConnectError> {
        let mark = Mark::of_branch(&request);
        let (parent, mut slots) = self.lock_for(&request).await?;
        let mut there = 0;
        for child in &request.children {
            there += usize::from(self.is_there(child, &mark).await?);
        }
        if there == 0 {
            self.check_open()?;
            let Some(parent) = parent.as_deref() else { return Err(self.absent(&request.parent).await) };
            let made = Self::grow(parent, &request, mark).await?;
            for sandbox in made {
                let slot = slots.iter_mut().find(|(id, _)| id == sandbox.id());
                let (_, held) = slot.ok_or_else(|| Reason::Internal.error("a child has another id"))?;
                **held = Some(sandbox);
            }
        } else if there < request.children.len() {
            let why = format!("{there} of the children are there, and the rest has been removed since");
            return Err(Reason::AlreadyExists.error(why));
        }
        let mut records = Vec::with_capacity(request.children.len());
        for child in &request.children {
            records.push(self.get(child).await?);
        }
        Ok(records)
    }

    /// The parent's slot, shared, and those of the children. In the order of the ids, as everybody does who needs several:
    /// nobody waits for one who waits for him.
    async fn lock_for(
        &self,
        request: &Branch,
    ) -> Result<(Option<ParentHeld>, Vec<(SandboxId, Changing)>), ConnectError> {
        if request.children.contains(&request.parent) {
            return Err(Reason::InvalidArgument.error("children: a sandbox is no child of its own"));
        }
        let mut all: Vec<&SandboxId> = request.children.iter().chain([&request.parent]).collect();
        all.sort();
        let (mut parent, mut slots) = (None, Vec::new());
        for id in all {
            match *id == request.parent {
                true => parent = self.share(id).await.ok(),
                false => slots.push((id.clone(), self.change(id).await)),
            }
        }
        Ok((parent, slots))
    }

    /// Why there is no running sandbox of this id.
    async fn absent(&self, id: &SandboxId) -> ConnectError {
        match self.share(id).await {
            Err(error) => error,
            Ok(_) => Reason::Busy.error(format!("sandbox {id} has just come to run; ask again")),
        }
    }

    async fn grow(parent: &Sandbox, request: &Branch, mark: Mark) -> Result<Vec<Sandbox>, ConnectError> {
        let mut builder = parent.brancher();
        for (key, value) in mark.put_on(request.metadata.clone())? {
            builder = builder.metadata(key, value);
        }
        for (name, value) in &request.env {
            builder = builder.env(name, value);
        }
        if let Some((after, then)) = request.timeout.map(request::timeout) {
            builder = builder.timeout(after, then);
        }
        if let Some(policy) = &request.egress {
            builder = builder.egress(request::egress(policy)?);
        }
        builder.spawn_with_ids(request.children.clone()).await.map_err(|e| refusal(&e))
    }
}

type ParentHeld = tokio::sync::OwnedRwLockReadGuard<Option<Sandbox>, Sandbox>;

//! The RPC service `wrenn.host.v1.Host`.

use std::future::Future;
use std::sync::Arc;

use connectrpc::{ConnectError, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wrenn_base::{SandboxId, TemplateName};

use super::refusal::malformed;
use super::sandboxes::Sandboxes;
use super::watch;
use crate::types::{Branch, CreateSandbox, Timeout, name};
use crate::{Reason, pb};

/// The most calls under way at once, those whose callers are gone included.
const MOST_CALLS: usize = 1024;

/// The service.
pub(super) struct Rpc {
    name: String,
    /// Another for each service that there ever was.
    instance: String,
    sandboxes: Arc<Sandboxes>,
    tasks: TaskTracker,
    ending: CancellationToken,
    room: Arc<Semaphore>,
}

impl Rpc {
    pub(super) fn new(
        name: String,
        sandboxes: Arc<Sandboxes>,
        tasks: TaskTracker,
        ending: CancellationToken,
    ) -> Self {
        let instance = SandboxId::random().as_str().to_owned();
        Self { name, instance, sandboxes, tasks, ending, room: Arc::new(Semaphore::new(MOST_CALLS)) }
    }

    /// Does a call's work as a task of its own, which comes to its end whoever waits.
    async fn run<T, F>(&self, work: impl FnOnce(Arc<Sandboxes>) -> F) -> Result<T, ConnectError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ConnectError>> + Send + 'static,
    {
        if self.ending.is_cancelled() {
            return Err(Reason::Draining.error("this host agent is ending"));
        }
        let place = Arc::clone(&self.room)
            .try_acquire_owned()
            .map_err(|_| Reason::Exhausted.error("the host is at as many calls as it will be"))?;
        let work = work(Arc::clone(&self.sandboxes));
        let task = self.tasks.spawn(async move {
            let done = work.await;
            drop(place);
            done
        });
        task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a call failed in a way that it should not");
            Err(Reason::Internal.error("the call failed; the host's log has more"))
        })
    }
}

fn sandbox(text: &str) -> Result<SandboxId, ConnectError> {
    name("id", text).map_err(malformed)
}

fn template(text: &str) -> Result<TemplateName, ConnectError> {
    name("name", text).map_err(malformed)
}

// The trait promises less about the answers than these types say; nobody but the generated code calls them.
#[allow(refining_impl_trait)]
impl pb::Host for Rpc {
    async fn describe(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, pb::DescribeRequest>,
    ) -> ServiceResult<pb::DescribeResponse> {
        let (name, instance) = (self.name.clone(), self.instance.clone());
        let description = self.run(|host| async move { host.describe(name, instance).await }).await?;
        Response::ok(description.into_wire())
    }

    async fn create(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::CreateRequest>,
    ) -> ServiceResult<pb::CreateResponse> {
        let request = CreateSandbox::of_wire(request.to_owned_message()).map_err(malformed)?;
        let (sandbox, existed) = self.run(|host| async move { host.create(request).await }).await?;
        Response::ok(pb::CreateResponse { sandbox: sandbox.into_wire().into(), existed })
    }

    async fn get(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::GetRequest>,
    ) -> ServiceResult<pb::GetResponse> {
        let id = sandbox(&request.to_owned_message().id)?;
        let found = self.run(|host| async move { host.get(&id).await }).await?;
        Response::ok(pb::GetResponse { sandbox: found.into_wire().into() })
    }

    async fn list(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::ListRequest>,
    ) -> ServiceResult<pb::ListResponse> {
        let pb::ListRequest { after, limit } = request.to_owned_message();
        let after = if after.is_empty() { None } else { Some(name("after", &after).map_err(malformed)?) };
        let (page, more) = self.run(|host| async move { host.page(after, limit).await }).await?;
        let sandboxes = page.into_iter().map(|one| one.into_wire()).collect();
        Response::ok(pb::ListResponse { sandboxes, more })
    }

    async fn pause(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::PauseRequest>,
    ) -> ServiceResult<pb::PauseResponse> {
        let id = sandbox(&request.to_owned_message().id)?;
        let paused = self.run(|host| async move { host.pause(&id).await }).await?;
        Response::ok(pb::PauseResponse {
            sandbox: paused.sandbox.into_wire().into(),
            generation: paused.generation,
            memory_written_bytes: paused.memory_written.get(),
        })
    }

    async fn resume(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::ResumeRequest>,
    ) -> ServiceResult<pb::ResumeResponse> {
        let request = request.to_owned_message();
        let id = sandbox(&request.id)?;
        let timeout = request.timeout.into_option().map(Timeout::of_wire).transpose().map_err(malformed)?;
        let resumed = self.run(|host| async move { host.resume(&id, timeout).await }).await?;
        Response::ok(pb::ResumeResponse { sandbox: resumed.into_wire().into() })
    }

    async fn branch(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::BranchRequest>,
    ) -> ServiceResult<pb::BranchResponse> {
        let request = Branch::of_wire(request.to_owned_message()).map_err(malformed)?;
        let children = self.run(|host| async move { host.branch(request).await }).await?;
        let sandboxes = children.into_iter().map(|child| child.into_wire()).collect();
        Response::ok(pb::BranchResponse { sandboxes })
    }

    async fn destroy(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::DestroyRequest>,
    ) -> ServiceResult<pb::DestroyResponse> {
        let id = sandbox(&request.to_owned_message().id)?;
        self.run(|host| async move { host.destroy(&id).await }).await?;
        Response::ok(pb::DestroyResponse::default())
    }

    async fn set_timeout(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::SetTimeoutRequest>,
    ) -> ServiceResult<pb::SetTimeoutResponse> {
        let request = request.to_owned_message();
        let id = sandbox(&request.id)?;
        let wire = request.timeout.into_option();
        let wire = wire.ok_or_else(|| Reason::InvalidArgument.error("timeout: there is none"))?;
        let timeout = Timeout::of_wire(wire).map_err(malformed)?;
        let changed = self.run(|host| async move { host.set_timeout(&id, timeout).await }).await?;
        Response::ok(pb::SetTimeoutResponse { sandbox: changed.into_wire().into() })
    }

    async fn snapshot(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::SnapshotRequest>,
    ) -> ServiceResult<pb::SnapshotResponse> {
        let request = request.to_owned_message();
        let (id, name) = (sandbox(&request.id)?, template(&request.name)?);
        let taken = self.run(|host| async move { host.snapshot(&id, &name).await }).await?;
        Response::ok(pb::SnapshotResponse {
            template: taken.template.into_wire().into(),
            stopped_us: u64::try_from(taken.stopped.as_micros()).unwrap_or(u64::MAX),
            memory_written_bytes: taken.memory_written.get(),
        })
    }

    async fn list_templates(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, pb::ListTemplatesRequest>,
    ) -> ServiceResult<pb::ListTemplatesResponse> {
        let templates = self.run(|host| async move { host.templates().await }).await?;
        let templates = templates.into_iter().map(|one| one.into_wire()).collect();
        Response::ok(pb::ListTemplatesResponse { templates })
    }

    async fn delete_template(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::DeleteTemplateRequest>,
    ) -> ServiceResult<pb::DeleteTemplateResponse> {
        let name = template(&request.to_owned_message().name)?;
        self.run(|host| async move { host.delete_template(name.as_str()).await }).await?;
        Response::ok(pb::DeleteTemplateResponse::default())
    }

    async fn stats(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::StatsRequest>,
    ) -> ServiceResult<pb::StatsResponse> {
        let id = sandbox(&request.to_owned_message().id)?;
        let stats = self.run(|host| async move { host.stats(&id).await }).await?;
        Response::ok(stats.to_wire())
    }

    async fn console(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::ConsoleRequest>,
    ) -> ServiceResult<pb::ConsoleResponse> {
        let request = request.to_owned_message();
        let (id, most) = (sandbox(&request.id)?, request.max_bytes);
        let log = self.run(|host| async move { host.console(&id, most).await }).await?;
        Response::ok(pb::ConsoleResponse { log: log.into() })
    }

    async fn watch(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, pb::WatchRequest>,
    ) -> ServiceResult<ServiceStream<pb::WatchResponse>> {
        Response::stream_ok(watch::watch(Arc::clone(&self.sandboxes), self.ending.clone()))
    }

    async fn drain(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::DrainRequest>,
    ) -> ServiceResult<pb::DrainResponse> {
        let draining = request.to_owned_message().drain;
        self.sandboxes.set_draining(draining);
        let active = self.run(|host| async move { host.active().await }).await?;
        Response::ok(pb::DrainResponse { draining, active })
    }
}

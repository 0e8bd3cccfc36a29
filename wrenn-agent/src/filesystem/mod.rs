//! The RPC service `filesystem.Filesystem`: directories and what is in them. Contents are `/files`' affair.
//!
//! Everything is done as root; what is new belongs to the user that the call names. Errors are Connect codes as
//! clients of this protocol expect them: what is not there is `not_found`, a path that cannot be
//! `invalid_argument`.

mod entry;
mod queue;
mod tree;
mod watch;
mod watchers;

use std::io;
use std::path::Path;
use std::sync::Arc;

use connectrpc::{ConnectError, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use wrenn_agent_api::proto::filesystem as pb;

use crate::paths;
use crate::rpc;
use crate::settings::Settings;
use crate::sys::Identity;
use crate::users::User;
use watch::Subject;
pub(crate) use watchers::Watchers;

/// The service; cheap to make.
pub(crate) struct FilesystemService {
    pub(crate) settings: Arc<Settings>,
    pub(crate) watchers: Watchers,
}

// The trait promises less about the answers than these types say; nobody but the generated code calls them.
#[allow(refining_impl_trait)]
impl pb::Filesystem for FilesystemService {
    async fn stat(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, pb::StatRequest>,
    ) -> ServiceResult<pb::StatResponse> {
        let (path, _) = self.path(&ctx, request.view().path)?;
        let entry = blocking(move || entry::describe(&path)).await?;
        Response::ok(pb::StatResponse { entry: entry.into() })
    }

    async fn make_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, pb::MakeDirRequest>,
    ) -> ServiceResult<pb::MakeDirResponse> {
        let (path, owner) = self.path(&ctx, request.view().path)?;
        let entry = blocking(move || tree::make(&path, owner)).await?;
        Response::ok(pb::MakeDirResponse { entry: entry.into() })
    }

    async fn r#move(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, pb::MoveRequest>,
    ) -> ServiceResult<pb::MoveResponse> {
        let (source, owner) = self.path(&ctx, request.view().source)?;
        let (destination, _) = self.path(&ctx, request.view().destination)?;
        let entry = blocking(move || tree::rename(&source, &destination, owner)).await?;
        Response::ok(pb::MoveResponse { entry: entry.into() })
    }

    async fn list_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, pb::ListDirRequest>,
    ) -> ServiceResult<pb::ListDirResponse> {
        let (path, _) = self.path(&ctx, request.view().path)?;
        let depth = request.view().depth.max(1);
        let entries = blocking(move || tree::list(&path, depth)).await?;
        Response::ok(pb::ListDirResponse { entries })
    }

    async fn remove(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, pb::RemoveRequest>,
    ) -> ServiceResult<pb::RemoveResponse> {
        let (path, _) = self.path(&ctx, request.view().path)?;
        tree::remove(path).await?;
        Response::ok(pb::RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, pb::WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<pb::WatchDirResponse>> {
        let request = request.view();
        let (path, _) = self.path(&ctx, request.path)?;
        let subject = Subject {
            path,
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        };
        let deadline = ctx.deadline().map(Into::into);
        Response::stream_ok(watchers::watch(subject, rpc::keepalive(&ctx), deadline).await?)
    }

    async fn create_watcher(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, pb::CreateWatcherRequest>,
    ) -> ServiceResult<pb::CreateWatcherResponse> {
        let request = request.view();
        let (path, _) = self.path(&ctx, request.path)?;
        let subject = Subject {
            path,
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        };
        Response::ok(pb::CreateWatcherResponse { watcher_id: self.watchers.create(subject).await? })
    }

    async fn get_watcher_events(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::GetWatcherEventsRequest>,
    ) -> ServiceResult<pb::GetWatcherEventsResponse> {
        let events = self.watchers.events(request.view().watcher_id).await?;
        Response::ok(pb::GetWatcherEventsResponse { events })
    }

    async fn remove_watcher(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, pb::RemoveWatcherRequest>,
    ) -> ServiceResult<pb::RemoveWatcherResponse> {
        self.watchers.remove(request.view().watcher_id)?;
        Response::ok(pb::RemoveWatcherResponse::default())
    }
}

/// A user and a group.
type Owner = Option<(u32, u32)>;

impl FilesystemService {
    /// The absolute path that a call means, and who is to own what it makes there.
    fn path(&self, ctx: &RequestContext, path: &str) -> Result<(String, Owner), ConnectError> {
        let User { home, identity: Identity { uid, gid, .. }, .. } = rpc::user(&self.settings, ctx)?;
        if path.is_empty() || path.contains('\0') {
            return Err(ConnectError::invalid_argument(format!("{path:?} is no path")));
        }
        let owner = rustix::process::geteuid().is_root().then_some((uid, gid));
        Ok((paths::resolve(path, &home), owner))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConnectError> + Send + 'static,
) -> Result<T, ConnectError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(ConnectError::internal(panic.to_string())))
}

/// An error about `path` as the code that clients know.
fn io_error(path: impl AsRef<Path>, error: &io::Error) -> ConnectError {
    let path = path.as_ref().display();
    match error.kind() {
        io::ErrorKind::NotFound => ConnectError::not_found(format!("path '{path}' does not exist")),
        io::ErrorKind::NotADirectory => ConnectError::invalid_argument(format!(
            "path '{path}' is or leads through something that is no directory"
        )),
        _ => match error.raw_os_error() {
            Some(libc::ELOOP | libc::ENAMETOOLONG | libc::EISDIR | libc::ENOTEMPTY | libc::EINVAL) => {
                ConnectError::invalid_argument(format!("path '{path}': {error}"))
            }
            Some(libc::ENOSPC | libc::EDQUOT) => {
                ConnectError::resource_exhausted(format!("no space left at '{path}'"))
            }
            _ => ConnectError::internal(format!("path '{path}': {error}")),
        },
    }
}

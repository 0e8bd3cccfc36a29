//! Following what happens in a directory of the guest.

use connectrpc::client::ServerStream;
use hyper::header::AUTHORIZATION;

use super::files::GuestPath;
use super::process::KEEPALIVE_SECONDS;
use super::stream::fault;
use super::transport::Transport;
use super::tree::{FileInfo, one};
use super::{AgentClient, AgentError, basic, config};
use crate::KEEPALIVE_HEADER;
use crate::proto::filesystem as pb;
use crate::proto::filesystem::__buffa::oneof::watch_dir_response::Event;
use crate::transport::WatchedBody;

/// How a directory is to be watched. Nothing of it, where nothing is said.
#[derive(Debug, Clone, Copy, Default)]
pub struct WatchOptions {
    recursive: bool,
    entries: bool,
    network: bool,
}

impl WatchOptions {
    /// Just the directory itself.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether all directories below are watched as well, those to come included.
    pub fn recursive(mut self, yes: bool) -> Self {
        self.recursive = yes;
        self
    }

    /// Whether events bring along what is there now; see [`FileEvent::info`].
    pub fn with_info(mut self, yes: bool) -> Self {
        self.entries = yes;
        self
    }

    /// Whether the directory may be on a network file system of the guest, where changes made by others are not seen.
    pub fn allow_network_mounts(mut self, yes: bool) -> Self {
        self.network = yes;
        self
    }
}

/// What happened to something in a watched directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileEventKind {
    /// It is there now: made, or moved here.
    Create,
    /// Its contents changed.
    Write,
    /// It is gone.
    Remove,
    /// It was moved away from this name; the new one, if that is watched, has a `Create`.
    Rename,
    /// Its mode, owner or another attribute changed.
    Attributes,
}

/// Something that happened in a watched directory. All texts are the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileEvent {
    /// To what, relative to the watched directory; `.` is that itself.
    pub name: String,
    /// What.
    pub kind: FileEventKind,
    /// What is there now, if that was asked for and it still is.
    pub info: Option<FileInfo>,
}

/// What happens in a directory: a stream to be drawn with [`next`](Self::next). Dropping it ends the watching.
///
/// **Backpressure**: events that nobody draws wait in the guest, in bounded queues. Where these overflow the stream ends
/// with an error, after what came before.
pub struct WatchStream {
    events: ServerStream<WatchedBody, pb::WatchDirResponseView<'static>>,
    transport: Transport,
    ended: bool,
}

impl AgentClient {
    /// Watches a directory. Resolves once it is watched: what happens from then on comes.
    ///
    /// # Errors
    /// [`AgentError::NotFound`] if it is not there; [`AgentError::InvalidArgument`] if it is no directory, or on a
    /// network file system and that was not allowed; [`AgentError::Failed`] with code `resource_exhausted` if there
    /// is more below than can be watched.
    pub async fn watch(
        &self,
        path: impl Into<GuestPath>,
        options: WatchOptions,
    ) -> Result<WatchStream, AgentError> {
        const CALL: &str = "watching a directory";
        let GuestPath { path, user } = path.into();
        let mut call =
            connectrpc::client::CallOptions::default().with_header(KEEPALIVE_HEADER, KEEPALIVE_SECONDS);
        if let Some(user) = user {
            call = call.with_header(AUTHORIZATION, basic(&user));
        }
        let request = pb::WatchDirRequest {
            path,
            recursive: options.recursive,
            include_entry: options.entries,
            allow_network_mounts: options.network,
        };
        let transport = self.transport();
        let client = pb::FilesystemClient::new(transport.clone(), config());
        self.within(CALL, async {
            let events = client
                .watch_dir_with_options(request, call)
                .await
                .map_err(|e| fault(&transport, CALL, &e))?;
            let mut stream = WatchStream { events, transport: transport.clone(), ended: false };
            match stream.draw(CALL).await? {
                Some(Event::Start(_)) => Ok(stream),
                _ => Err(AgentError::protocol(CALL, "the first event is not a start")),
            }
        })
        .await
    }
}

impl WatchStream {
    /// The next event; it may be long in coming. After an error there are no more.
    ///
    /// Cancel safe: dropping the future loses no event.
    ///
    /// # Errors
    /// [`AgentError::Failed`] with code `data_loss` where events came faster than they were drawn: what happened
    /// since the last one has to be found out by looking; with `resource_exhausted` where there came to be more
    /// directories than can be watched. [`AgentError::Disconnected`] when the connection broke.
    pub async fn next(&mut self) -> Result<Option<FileEvent>, AgentError> {
        const CALL: &str = "following a directory";
        while !self.ended {
            let drawn = self.draw(CALL).await;
            let event = match drawn {
                Ok(Some(Event::Filesystem(event))) => *event,
                Ok(Some(_)) => continue,
                Ok(None) => {
                    self.ended = true;
                    return Err(AgentError::protocol(CALL, "the events stopped without an error"));
                }
                Err(error) => {
                    self.ended = true;
                    return Err(error);
                }
            };
            let kind = match event.r#type.as_known() {
                Some(pb::EventType::EVENT_TYPE_CREATE) => FileEventKind::Create,
                Some(pb::EventType::EVENT_TYPE_WRITE) => FileEventKind::Write,
                Some(pb::EventType::EVENT_TYPE_REMOVE) => FileEventKind::Remove,
                Some(pb::EventType::EVENT_TYPE_RENAME) => FileEventKind::Rename,
                Some(pb::EventType::EVENT_TYPE_CHMOD) => FileEventKind::Attributes,
                // Of a kind that only a newer agent knows.
                _ => continue,
            };
            let info = event.entry.into_option().map(|entry| one(CALL, Some(entry))).transpose()?;
            return Ok(Some(FileEvent { name: event.name, kind, info }));
        }
        Ok(None)
    }

    async fn draw(&mut self, call: &'static str) -> Result<Option<Event>, AgentError> {
        loop {
            let message = self.events.message().await.map_err(|e| fault(&self.transport, call, &e))?;
            let Some(message) = message else { return Ok(None) };
            if let Some(event) = message.to_owned_message().event {
                return Ok(Some(event));
            }
        }
    }
}

impl std::fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchStream").field("ended", &self.ended).finish_non_exhaustive()
    }
}

//! What happens on a host, as it happens.

use std::fmt;
use std::time::Duration;

use connectrpc::client::ServerStream;
use wrenn_agent_api::transport::WatchedBody;

use super::transport::Transport;
use super::{HostClient, HostError, config};
use crate::pb;
use crate::types::SandboxEvent;

const CALL: &str = "watching a host";
/// Nothing for so long, not even a sign of life, and the host is gone: it gives one every 15 seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// What a host's events are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchEvent {
    /// Something happened to a sandbox.
    Sandbox(SandboxEvent),
    /// Events were lost in this place, as they were not drawn in time: what there is now says [`HostClient::list`].
    Lost {
        /// How many.
        count: u64,
    },
}

/// The events of a host: drawn with [`next`](Self::next).
pub struct SandboxEvents {
    stream: ServerStream<WatchedBody, pb::__buffa::view::WatchResponseView<'static>>,
    transport: Transport,
}

impl HostClient {
    /// Watches what happens to the host's sandboxes. Once this returns nothing is missed any more: whoever lists them then knows
    /// what there is, and is told of every change.
    ///
    /// # Errors
    /// Those of any call.
    ///
    /// # Cancel safety
    /// A dropped future watches nothing.
    pub async fn watch(&self) -> Result<SandboxEvents, HostError> {
        let transport = Transport::new(&self.link);
        let client = pb::HostClient::new(transport.clone(), config());
        self.within(CALL, async {
            let stream = client.watch(pb::WatchRequest::default()).await;
            let stream = stream.map_err(|error| fault(&transport, false, &error))?;
            let mut events = SandboxEvents { stream, transport: transport.clone() };
            match events.draw().await? {
                Some(pb::__buffa::oneof::watch_response::Event::Ready(_)) => Ok(events),
                _ => Err(HostError::protocol(CALL, "the first event is another than ready")),
            }
        })
        .await
    }
}

impl SandboxEvents {
    /// The next event; `None` once the host ends the stream, as it does when it shuts down.
    ///
    /// # Errors
    /// The connection broke, or nothing came for a minute, not even a sign of life. After an error there are no more
    /// events: watch again, and list what there is.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, HostError> {
        use pb::__buffa::oneof::watch_response::Event;
        loop {
            let drawn = tokio::time::timeout(SILENCE, self.draw()).await;
            match drawn.map_err(|_| HostError::Timeout { call: CALL, limit: SILENCE })?? {
                None => return Ok(None),
                Some(Event::Lost(lost)) => return Ok(Some(WatchEvent::Lost { count: lost.count })),
                Some(Event::Sandbox(event)) => {
                    let event = SandboxEvent::of_wire(*event).map_err(|e| HostError::malformed(CALL, &e))?;
                    if let Some(event) = event {
                        return Ok(Some(WatchEvent::Sandbox(event)));
                    }
                }
                Some(Event::Ready(_) | Event::KeepAlive(_)) => {}
            }
        }
    }

    async fn draw(&mut self) -> Result<Option<pb::__buffa::oneof::watch_response::Event>, HostError> {
        loop {
            let message =
                self.stream.message().await.map_err(|error| fault(&self.transport, true, &error))?;
            let Some(message) = message else { return Ok(None) };
            // One that only a newer host knows means nothing.
            if let Some(event) = message.to_owned_message().event {
                return Ok(Some(event));
            }
        }
    }
}

/// Why a stream failed. `ended` says whether its end alone is a failure: it is, once it has begun.
fn fault(transport: &Transport, ended: bool, error: &connectrpc::ConnectError) -> HostError {
    transport.take_fault(CALL, ended).unwrap_or_else(|| HostError::from_connect(CALL, error))
}

impl fmt::Debug for SandboxEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxEvents").finish_non_exhaustive()
    }
}

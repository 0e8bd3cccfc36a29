//! Events that wait for whoever watches: bounded, and where the bound is met that is told.

use std::collections::VecDeque;

use connectrpc::ConnectError;
use wrenn_agent_api::proto::filesystem::FilesystemEvent;

/// What waiting events may take, in bytes: some ten thousand without entries.
const MAX_SIZE: usize = 4 << 20;

/// What an event takes beside its name, and an entry beside that.
const EVENT_SIZE: usize = 96;
const ENTRY_SIZE: usize = 512;

/// See above.
#[derive(Default)]
pub(super) struct Queue {
    events: VecDeque<FilesystemEvent>,
    size: usize,
    /// Why nothing more is taken until that has been told.
    broken: Option<ConnectError>,
}

impl Queue {
    /// Adds an event. One that says the same as the last says it for both.
    pub(super) fn push(&mut self, event: FilesystemEvent) {
        if self.broken.is_some() {
            return;
        }
        if let Some(last) = self.events.back_mut()
            && last.name == event.name
            && last.r#type == event.r#type
        {
            last.entry = event.entry;
            return;
        }
        let size = size(&event);
        if self.size + size > MAX_SIZE {
            self.lose();
            return;
        }
        self.size += size;
        self.events.push_back(event);
    }

    /// Notes that events were lost, after those that are here.
    pub(super) fn lose(&mut self) {
        self.fail(ConnectError::data_loss("events were lost: they came faster than they were taken"));
    }

    /// Takes no more until `error` has been told, after what is here.
    pub(super) fn fail(&mut self, error: ConnectError) {
        self.broken.get_or_insert(error);
    }

    /// The next event, or, after the last, what broke the queue: then it goes on.
    pub(super) fn pop(&mut self) -> Option<Result<FilesystemEvent, ConnectError>> {
        match self.events.pop_front() {
            Some(event) => {
                self.size -= size(&event);
                Some(Ok(event))
            }
            None => self.broken.take().map(Err),
        }
    }

    /// All events that are here; if there are none, what broke the queue.
    pub(super) fn drain(&mut self) -> Result<Vec<FilesystemEvent>, ConnectError> {
        if self.events.is_empty()
            && let Some(error) = self.broken.take()
        {
            return Err(error);
        }
        self.size = 0;
        Ok(std::mem::take(&mut self.events).into())
    }

    /// Whether nothing broke it so far.
    pub(super) fn is_whole(&self) -> bool {
        self.broken.is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }
}

fn size(event: &FilesystemEvent) -> usize {
    // An entry has the name twice more; what else it says is short.
    let entry = if event.entry.is_set() { ENTRY_SIZE + 2 * event.name.len() } else { 0 };
    EVENT_SIZE + event.name.len() + entry
}

#[cfg(test)]
mod tests {
    use wrenn_agent_api::proto::filesystem::EventType;

    use super::*;

    fn event(name: &str) -> FilesystemEvent {
        FilesystemEvent {
            name: name.into(),
            r#type: EventType::EVENT_TYPE_WRITE.into(),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_full_says_so_once_and_goes_on() {
        let mut queue = Queue::default();
        let fits = MAX_SIZE / (EVENT_SIZE + 6);
        for n in 0..fits + 100 {
            queue.push(event(&format!("{n:06}")));
        }
        assert_eq!(queue.len(), fits);
        assert_eq!(queue.pop().unwrap().unwrap().name, "000000");
        // There is room again, but what came in between is missing.
        queue.push(event("x"));
        assert_eq!(queue.drain().unwrap().len(), fits - 1);
        assert_eq!(queue.drain().unwrap_err().code, connectrpc::ErrorCode::DataLoss);
        assert!(queue.drain().unwrap().is_empty());
        queue.push(event("y"));
        assert_eq!(queue.pop().unwrap().unwrap().name, "y");
        assert!(queue.pop().is_none());
    }

    #[test]
    fn what_repeats_itself_is_said_once() {
        let mut queue = Queue::default();
        for name in ["a", "a", "b", "a"] {
            queue.push(event(name));
        }
        let names: Vec<_> = queue.drain().unwrap().into_iter().map(|event| event.name).collect();
        assert_eq!(names, ["a", "b", "a"]);
    }
}

//! Watching the fault server: a guest whose memory nobody serves any more must not just hang.

use std::os::fd::{AsFd, OwnedFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::exit::{ExitReason, ExitSignal};
use crate::memory::FaultLink;

/// Ends the machine when the fault server hangs up.
#[derive(Debug)]
pub(super) struct FaultWatch {
    connection: OwnedFd,
    exit: ExitSignal,
}

impl FaultWatch {
    pub(super) fn new(link: &FaultLink, exit: ExitSignal) -> std::io::Result<Self> {
        Ok(Self { connection: link.as_fd().try_clone_to_owned()?, exit })
    }
}

impl MutEventSubscriber for FaultWatch {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.exit.raise(ExitReason::FaultServerGone);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Not for reading: the protocol has nothing that the server would say.
        if let Err(error) = ops.add(Events::new(&self.connection, EventSet::READ_HANG_UP)) {
            log::error!("the fault server cannot be watched: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use event_manager::{EventManager, SubscriberOps};

    use super::*;

    #[test]
    fn a_server_that_hangs_up_ends_the_machine() {
        let (server, connection) = UnixStream::pair().unwrap();
        let exit = ExitSignal::new().unwrap();
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(FaultWatch { connection: connection.into(), exit: exit.clone() });
        assert_eq!(events.run_with_timeout(0), Ok(0));
        drop(server);
        assert_eq!(events.run_with_timeout(60_000), Ok(1));
        assert_eq!(exit.reason(), Some(ExitReason::FaultServerGone));
    }
}

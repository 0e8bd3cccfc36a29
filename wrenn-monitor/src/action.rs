//! The one place where the API meets the machine: what can be asked, and what is answered.
//!
//! The API thread parses a request into an [`Action`] and calls [`ActionSender::perform`], which blocks until
//! the main thread, the only one that touches the machine, has answered. The main loop waits for
//! [`ActionReceiver::event`] among its other descriptors, and then drains [`ActionReceiver::try_next`].

use std::sync::mpsc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use wrenn_base::in_one_line;
use wrenn_vmm::api::{
    BootSource, CachedLoad, Drive, EntropyDevice, InstanceInfo, Logger, MachineConfig, NetworkInterface,
    SavedMemory, SnapshotCreate, SnapshotLoad, StateSave, VmState,
};

use crate::api::{MachineConfigUpdate, VmConfig};

/// A well-formed request.
#[derive(Debug)]
pub(crate) enum Action {
    /// `GET /`
    DescribeInstance,
    /// `GET /machine-config`
    DescribeMachine,
    /// `GET /vm/config`
    DescribeConfig,
    /// `PUT /machine-config`
    ConfigureMachine(MachineConfig),
    /// `PATCH /machine-config`: [`MachineConfigUpdate::applied_to`] gives the whole new configuration.
    UpdateMachine(MachineConfigUpdate),
    /// `PUT /boot-source`
    ConfigureBoot(BootSource),
    /// `PUT /drives/{drive_id}`
    ConfigureDrive(Drive),
    /// `PUT /network-interfaces/{iface_id}`
    ConfigureNetwork(NetworkInterface),
    /// `PUT /entropy`
    ConfigureEntropy(EntropyDevice),
    /// `PUT /logger`
    ConfigureLogger(Logger),
    /// `PUT /actions` with `InstanceStart`
    StartInstance,
    /// `PATCH /vm`
    SetState(VmState),
    /// `PUT /snapshot/create`
    CreateSnapshot(SnapshotCreate),
    /// `PUT /snapshot/load`. The API half has folded deprecated spellings into the current ones: `mem_backend`
    /// is there, `mem_file_path` and `enable_diff_snapshots` are not.
    LoadSnapshot(Box<SnapshotLoad>),
    /// `PUT /wrenn/snapshot/save`
    SaveState(StateSave),
    /// `PUT /wrenn/snapshot/load`
    LoadCached(CachedLoad),
}

/// What an action that succeeded has to say.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Nothing: 204.
    Done,
    /// 200 with the instance.
    Instance(InstanceInfo),
    /// 200 with the machine's configuration.
    Machine(MachineConfig),
    /// 200 with everything that was configured.
    Config(Box<VmConfig>),
    /// 200 with where guest memory is.
    Memory(SavedMemory),
}

/// An action that was refused or failed: 400 with this `fault_message`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Fault {
    /// The failure and its causes, outermost first, as one line of text.
    pub(crate) message: String,
}

impl Fault {
    /// Tells `error` with the whole chain of its causes.
    pub(crate) fn from_error(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { message: in_one_line(error) }
    }
}

/// What the main thread makes of an action.
pub(crate) type Outcome = Result<Answer, Fault>;

/// An action on its way, with the way back.
#[derive(Debug)]
pub(crate) struct Pending {
    action: Action,
    reply: mpsc::SyncSender<Outcome>,
}

impl Pending {
    /// Has `perform` do it, and hands the outcome to whoever asked; lost if they are gone.
    pub(crate) fn answer_with(self, perform: impl FnOnce(Action) -> Outcome) {
        let _ = self.reply.send(perform(self.action));
    }
}

/// The API thread's end.
#[derive(Debug)]
pub(crate) struct ActionSender {
    actions: mpsc::Sender<Pending>,
    event: EventFd,
}

impl ActionSender {
    /// Has the main thread perform `action`, and waits for the outcome.
    pub(crate) fn perform(&self, action: Action) -> Outcome {
        let ended = || Fault { message: "the microVM has ended".to_owned() };
        let (reply, outcome) = mpsc::sync_channel(1);
        self.actions.send(Pending { action, reply }).map_err(|_| ended())?;
        self.event.write(1).map_err(|_| ended())?;
        outcome.recv().map_err(|_| ended())?
    }
}

/// The main thread's end.
#[derive(Debug)]
pub(crate) struct ActionReceiver {
    actions: mpsc::Receiver<Pending>,
    event: EventFd,
}

impl ActionReceiver {
    /// The descriptor that is readable while actions may be waiting.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Takes the next action; `None` once there is none, and the event is quiet.
    pub(crate) fn try_next(&self) -> Option<Pending> {
        // Quieted before the look: an action that comes in between makes the event readable again.
        let _ = self.event.read();
        self.actions.try_recv().ok()
    }
}

/// A channel for actions.
pub(crate) fn channel() -> std::io::Result<(ActionSender, ActionReceiver)> {
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let (sender, receiver) = mpsc::channel();
    let sender = ActionSender { actions: sender, event: event.try_clone()? };
    Ok((sender, ActionReceiver { actions: receiver, event }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_answered_across_threads() {
        let (sender, receiver) = channel().unwrap();
        let api = std::thread::spawn(move || sender.perform(Action::DescribeMachine));
        let pending = loop {
            match receiver.try_next() {
                Some(pending) => break pending,
                None => std::thread::yield_now(),
            }
        };
        pending.answer_with(|action| {
            assert!(matches!(action, Action::DescribeMachine));
            Ok(Answer::Done)
        });
        assert!(matches!(api.join().unwrap(), Ok(Answer::Done)));
        assert!(receiver.try_next().is_none());
    }

    #[test]
    fn an_action_that_nobody_will_answer_fails() {
        let (sender, receiver) = channel().unwrap();
        drop(receiver);
        assert!(sender.perform(Action::StartInstance).is_err());
    }

    #[test]
    fn a_fault_tells_the_chain_of_causes() {
        let cause = std::io::Error::other("cause");
        #[derive(Debug, thiserror::Error)]
        #[error("effect")]
        struct Effect(#[source] std::io::Error);
        assert_eq!(Fault::from_error(&Effect(cause)).message, "effect: cause");
    }
}
